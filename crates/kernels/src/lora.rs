//! Low-rank adapters beside a product, a different one for each row: `y += scale * (x A^T) B^T`.

use crate::gemm::{Bf16Bits, Element, F16Bits, Gemm, gemm_bf16, gemm_f16, gemm_f32};
use crate::linear::typed;
use crate::simd::LANES;
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
    /// B^T: rank x outputs.
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
        let mut bt = vec![0f32; rank * outputs];
        for (n, row) in b.chunks_exact(rank).enumerate() {
            for (r, &x) in row.iter().enumerate() {
                bt[r * outputs + n] = x;
            }
        }
        Ok(LoraPack {
            inputs,
            outputs,
            rank,
            padded,
            scale,
            a: Values::new(dtype, &at),
            b: Values::new(dtype, &bt),
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
        // SAFETY: shapes by construction and by the caller's contract.
        unsafe {
            let g = |b| Gemm {
                m: rows,
                n: self.padded,
                p: self.inputs,
                a: x,
                a_row: self.inputs,
                a_column: 1,
                b,
                b_row: self.padded,
                out: h,
                out_row: h_row,
                accumulate: false,
            };
            let scale = scale * self.scale;
            self.dispatch(isa, &self.a, 0, g);
            for m in 0..rows {
                for r in 0..self.padded {
                    *h.add(m * h_row + r) *= scale;
                }
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
        assert!(columns.end <= self.outputs);
        // SAFETY: shapes by construction and by the caller's contract.
        unsafe {
            let g = |b| Gemm {
                m: rows,
                n: columns.len(),
                p: self.rank,
                a: h,
                a_row: h_row,
                a_column: 1,
                b,
                b_row: self.outputs,
                out,
                out_row,
                accumulate: true,
            };
            self.dispatch(isa, &self.b, columns.start, g);
        }
    }

    /// # Safety
    /// The product `g` makes of the values' pointer, moved by `offset`, is inside its buffers.
    unsafe fn dispatch(
        &self,
        isa: Isa,
        values: &Values,
        offset: usize,
        g: impl Fn(*const f32) -> Gemm<f32>,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            match values {
                Values::F32(v) => gemm_f32(isa, g(v.as_ptr().add(offset))),
                Values::F16(v) => gemm_f16(isa, typed(g(std::ptr::null()), v.as_ptr().add(offset))),
                Values::Bf16(v) => {
                    gemm_bf16(isa, typed(g(std::ptr::null()), v.as_ptr().add(offset)))
                }
            }
        }
    }
}

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
