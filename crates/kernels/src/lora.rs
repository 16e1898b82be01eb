//! Low-rank adapters beside a product, a different one for each row: `y += scale * (x A^T) B^T`.

use crate::gemm::{Bf16Bits, Element, F16Bits, Gemm, gemm_bf16, gemm_f16, gemm_f32};
use crate::linear::typed;
use crate::simd::{LANES, Simd, instantiate};
use crate::{Isa, KernelError};

/// How an adapter's values are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraType {
    /// 4 bytes a value; training.
    F32,
    /// 2 bytes a value.
    F16,
    /// 2 bytes a value.
    Bf16,
}

enum Values {
    F32(Vec<f32>),
    F16(Vec<F16Bits>),
    Bf16(Vec<Bf16Bits>),
}

impl Values {
    fn new(dtype: LoraType, values: &[f32]) -> Values {
        fn convert<E: Element>(values: &[f32]) -> Vec<E> {
            values.iter().map(|&x| E::from_f32(x)).collect()
        }
        match dtype {
            LoraType::F32 => Values::F32(convert(values)),
            LoraType::F16 => Values::F16(convert(values)),
            LoraType::Bf16 => Values::Bf16(convert(values)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Values::F32(v) => v.len() * 4,
            Values::F16(v) => v.len() * 2,
            Values::Bf16(v) => v.len() * 2,
        }
    }
}

/// One adapter's pair of matrices for one linear layer, packed for products.
pub struct LoraPack {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) rank: usize,
    /// Rank rounded up to whole vectors.
    pub(crate) padded: usize,
    /// alpha / rank, or what the adapter says instead.
    pub(crate) scale: f32,
    /// A^T: inputs x padded.
    a: Values,
    /// B^T in tiles of 16 outputs: tile > rank > 16, so that what a tile needs lies together.
    b: Values,
}

impl LoraPack {
    /// Packs `a` (rank x inputs) and `b` (outputs x rank), both row-major; `scale` multiplies their product.
    ///
    /// # Errors
    /// The lengths do not fit the shape.
    pub fn new(
        a: &[f32],
        b: &[f32],
        (outputs, inputs, rank): (usize, usize, usize),
        scale: f32,
        dtype: LoraType,
    ) -> Result<LoraPack, KernelError> {
        if rank == 0
            || rank.checked_mul(inputs) != Some(a.len())
            || rank.checked_mul(outputs) != Some(b.len())
        {
            return Err(KernelError::Shape {
                what: format!(
                    "LoRA of rank {rank} on {outputs} x {inputs} with {} and {} values",
                    a.len(),
                    b.len()
                ),
            });
        }
        let padded = rank.next_multiple_of(LANES);
        let mut at = vec![0f32; inputs * padded];
        for (r, row) in a.chunks_exact(inputs).enumerate() {
            for (k, &x) in row.iter().enumerate() {
                at[k * padded + r] = x;
            }
        }
        let mut tiles = vec![0f32; outputs.div_ceil(LANES) * rank * LANES];
        for (n, row) in b.chunks_exact(rank).enumerate() {
            for (r, &x) in row.iter().enumerate() {
                tiles[(n / LANES * rank + r) * LANES + n % LANES] = x;
            }
        }
        Ok(LoraPack {
            inputs,
            outputs,
            rank,
            padded,
            scale,
            a: Values::new(dtype, &at),
            b: Values::new(dtype, &tiles),
        })
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.b.bytes()
    }

    /// h = scale * pack's scale * x A^T for `rows` rows; `h` is rows x padded, `h_row` apart.
    ///
    /// # Safety
    /// `x` covers rows x inputs, `h` rows at `h_row` >= padded.
    pub(crate) unsafe fn shrink(
        &self,
        isa: Isa,
        x: *const f32,
        rows: usize,
        scale: f32,
        h: *mut f32,
        h_row: usize,
    ) {
        let job = Shrink {
            x,
            inputs: self.inputs,
            padded: self.padded,
            rows,
            scale: scale * self.scale,
            h,
            h_row,
        };
        // SAFETY: shapes by construction and by the caller's contract.
        unsafe {
            match &self.a {
                Values::F32(a) => shrink_f32(isa, job, a.as_ptr()),
                Values::F16(a) => shrink_f16(isa, job, a.as_ptr()),
                Values::Bf16(a) => shrink_bf16(isa, job, a.as_ptr()),
            }
        }
    }

    /// out[.., columns] += h B^T for `rows` rows.
    ///
    /// # Safety
    /// `h` covers rows x rank at `h_row`; `out` points to the first of `columns`, rows `out_row` apart.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn expand(
        &self,
        isa: Isa,
        h: *const f32,
        h_row: usize,
        rows: usize,
        columns: std::ops::Range<usize>,
        out: *mut f32,
        out_row: usize,
    ) {
        assert!(columns.end <= self.outputs && columns.start.is_multiple_of(LANES));
        for first in columns.clone().step_by(LANES) {
            // SAFETY: shapes by construction and by the caller's contract.
            unsafe {
                let g = Gemm {
                    m: rows,
                    n: LANES.min(columns.end - first),
                    p: self.rank,
                    a: h,
                    a_row: h_row,
                    a_column: 1,
                    b: std::ptr::null::<f32>(),
                    b_row: LANES,
                    out: out.add(first - columns.start),
                    out_row,
                    accumulate: true,
                };
                let at = first * self.rank;
                match &self.b {
                    Values::F32(v) => gemm_f32(isa, typed(g, v[at..].as_ptr())),
                    Values::F16(v) => gemm_f16(isa, typed(g, v[at..].as_ptr())),
                    Values::Bf16(v) => gemm_bf16(isa, typed(g, v[at..].as_ptr())),
                }
            }
        }
    }
}

/// Some rows through A.
#[derive(Clone, Copy)]
struct Shrink {
    x: *const f32,
    inputs: usize,
    padded: usize,
    rows: usize,
    scale: f32,
    h: *mut f32,
    h_row: usize,
}

/// Chains that a sum over the inputs is split into: one alone would wait for each addition before the next.
const CHAINS: usize = 4;

/// # Safety
/// `Simd`'s contract; `job`'s pointers and `a` cover its shapes.
#[inline(always)]
unsafe fn shrink_rows<S: Simd, E: Element, const M: usize>(
    job: &Shrink,
    a: *const E,
    first: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let x = |m: usize, k: usize| S::splat(*job.x.add((first + m) * job.inputs + k));
        for lane in (0..job.padded).step_by(LANES) {
            let mut acc = [[S::zero(); M]; CHAINS];
            let whole = job.inputs / CHAINS * CHAINS;
            for k in (0..whole).step_by(CHAINS) {
                for (chain, acc) in acc.iter_mut().enumerate() {
                    let w = E::load::<S>(a.add((k + chain) * job.padded + lane));
                    for (m, acc) in acc.iter_mut().enumerate() {
                        *acc = S::fma(x(m, k + chain), w, *acc);
                    }
                }
            }
            for k in whole..job.inputs {
                let w = E::load::<S>(a.add(k * job.padded + lane));
                for (m, acc) in acc[k - whole].iter_mut().enumerate() {
                    *acc = S::fma(x(m, k), w, *acc);
                }
            }
            let [a, b, c, d] = acc;
            for (m, (((a, b), c), d)) in a.into_iter().zip(b).zip(c).zip(d).enumerate() {
                let sum = S::add(S::add(a, b), S::add(c, d));
                let h = job.h.add((first + m) * job.h_row + lane);
                S::store(h, S::mul(sum, S::splat(job.scale)));
            }
        }
    }
}

/// # Safety
/// As `shrink_rows`.
#[inline(always)]
unsafe fn shrink_all<S: Simd, E: Element>(job: Shrink, a: *const E) {
    let mut first = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while job.rows - first >= 4 {
            shrink_rows::<S, E, 4>(&job, a, first);
            first += 4;
        }
        while job.rows - first >= 1 {
            shrink_rows::<S, E, 1>(&job, a, first);
            first += 1;
        }
    }
}

#[inline(always)]
unsafe fn shrink_all_f32<S: Simd>(job: Shrink, a: *const f32) {
    // SAFETY: passed on.
    unsafe { shrink_all::<S, f32>(job, a) }
}
#[inline(always)]
unsafe fn shrink_all_f16<S: Simd>(job: Shrink, a: *const F16Bits) {
    // SAFETY: passed on.
    unsafe { shrink_all::<S, F16Bits>(job, a) }
}
#[inline(always)]
unsafe fn shrink_all_bf16<S: Simd>(job: Shrink, a: *const Bf16Bits) {
    // SAFETY: passed on.
    unsafe { shrink_all::<S, Bf16Bits>(job, a) }
}
instantiate!(fn shrink_f32(job: Shrink, a: *const f32) = shrink_all_f32);
instantiate!(fn shrink_f16(job: Shrink, a: *const F16Bits) = shrink_all_f16);
instantiate!(fn shrink_bf16(job: Shrink, a: *const Bf16Bits) = shrink_all_bf16);

/// Consecutive rows that carry the same adapters: `(slot, scale)` each, several for a blend.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Slots with their scales, in the order in which they are added.
    pub slots: Vec<(u32, f32)>,
}

/// Which adapters the rows of one product carry. Rows in no run carry none.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// Non-overlapping, ascending.
    pub runs: &'a [Run],
    /// By slot: the adapter's pair for this linear layer, if it has one.
    pub packs: &'a [Option<&'a LoraPack>],
}

impl Lora<'_> {
    /// No adapters.
    pub const NONE: Lora<'static> = Lora {
        runs: &[],
        packs: &[],
    };
}
