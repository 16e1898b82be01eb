//! Low-rank adapters beside a product, a different one for each row: `y += scale * (x A^T) B^T`.

use crate::arena::{Arena, Slab};
use crate::gemm::{Bf16Bits, Element, F16Bits};
use crate::simd::{LANES, Simd, instantiate, prefetch, unroll};
use crate::{Isa, KernelError};
use bytemuck::Pod;

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
    F32(Slab<f32>),
    F16(Slab<F16Bits>),
    Bf16(Slab<Bf16Bits>),
}

impl Values {
    /// `len` values of which `fill` writes those that are not 0.
    fn new(
        arena: &LoraArena,
        dtype: LoraType,
        len: usize,
        source: &[f32],
        layout: Transposed,
    ) -> Result<Values, KernelError> {
        fn packed<E: Element + Pod>(
            arena: &LoraArena,
            len: usize,
            source: &[f32],
            layout: Transposed,
        ) -> Result<Slab<E>, KernelError> {
            let mut values = arena.0.zeros::<E>(len)?;
            layout.fill(source, &mut values);
            Ok(values)
        }
        Ok(match dtype {
            LoraType::F32 => Values::F32(packed(arena, len, source, layout)?),
            LoraType::F16 => Values::F16(packed(arena, len, source, layout)?),
            LoraType::Bf16 => Values::Bf16(packed(arena, len, source, layout)?),
        })
    }

    fn pointer(&self, at: usize) -> *const u8 {
        match self {
            Values::F32(v) => v[at..].as_ptr().cast(),
            Values::F16(v) => v[at..].as_ptr().cast(),
            Values::Bf16(v) => v[at..].as_ptr().cast(),
        }
    }

    fn value_bytes(&self) -> usize {
        match self {
            Values::F32(_) => 4,
            Values::F16(_) | Values::Bf16(_) => 2,
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

/// A row-major matrix written column by column: the value of (row, column) goes to `column * stride + row`, and where rows
/// come in tiles of 16, each tile after the one before.
#[derive(Clone, Copy)]
struct Transposed {
    columns: usize,
    stride: usize,
    /// From one tile of 16 rows to the next.
    tile: usize,
}

impl Transposed {
    fn fill<E: Element>(self, source: &[f32], to: &mut [E]) {
        let rows: Vec<&[f32]> = source.chunks_exact(self.columns).collect();
        for (tile, rows) in rows.chunks(LANES).enumerate() {
            for column in 0..self.columns {
                let to = &mut to[tile * self.tile + column * self.stride..][..rows.len()];
                for (to, row) in to.iter_mut().zip(rows) {
                    *to = E::from_f32(row[column]);
                }
            }
        }
    }
}

/// Where the pairs of one adapter lie: side by side, and given back together.
#[derive(Default)]
pub struct LoraArena(Arena);

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
    /// The lengths do not fit the shape, or there is no memory.
    pub fn new(
        arena: &LoraArena,
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
        let a_layout = Transposed {
            columns: inputs,
            stride: padded,
            tile: LANES,
        };
        let b_layout = Transposed {
            columns: rank,
            stride: LANES,
            tile: rank * LANES,
        };
        let b_len = outputs.div_ceil(LANES) * rank * LANES;
        Ok(LoraPack {
            inputs,
            outputs,
            rank,
            padded,
            scale,
            a: Values::new(arena, dtype, inputs * padded, a, a_layout)?,
            b: Values::new(arena, dtype, b_len, b, b_layout)?,
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

    /// Asks for the part of B that [`LoraPack::expand`] will read for `columns`: pieces of many adapters lie far apart, and
    /// the products in between give them time to come.
    pub(crate) fn prefetch(&self, isa: Isa, columns: std::ops::Range<usize>) {
        let piece = self.rank * LANES;
        let tiles = columns.start / LANES..columns.end.div_ceil(LANES);
        let bytes = tiles.len() * piece * self.b.value_bytes();
        let from = self.b.pointer(tiles.start * piece);
        for line in (0..bytes).step_by(64) {
            prefetch(isa, from.wrapping_add(line));
        }
    }
}

/// Rows of one product that go through one adapter's B.
#[derive(Clone, Copy)]
pub(crate) struct Expansion<'a> {
    pub(crate) pack: &'a LoraPack,
    /// rows x rank, `h_row` apart.
    pub(crate) h: *const f32,
    pub(crate) h_row: usize,
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

/// Where [`expand`] adds: `columns` outputs from `first_column` on, of rows from 0 on.
#[derive(Clone, Copy)]
pub(crate) struct ExpandTo {
    pub(crate) out: *mut f32,
    pub(crate) out_row: usize,
    pub(crate) first_column: usize,
    pub(crate) columns: usize,
}

/// out += h B^T, for each of some expansions.
///
/// # Safety
/// `Simd`'s contract; the pointers cover what the counts say, and `first_column` starts a tile.
#[inline(always)]
unsafe fn expand_all<S: Simd>(expansions: &[Expansion<'_>], to: ExpandTo) {
    for run in expansions {
        assert!(to.first_column + to.columns <= run.pack.outputs);
        let at = to.first_column * run.pack.rank;
        // SAFETY: shapes by construction and by the caller's contract.
        unsafe {
            match &run.pack.b {
                Values::F32(b) => expand_run::<S, f32>(run, b[at..].as_ptr(), to),
                Values::F16(b) => expand_run::<S, F16Bits>(run, b[at..].as_ptr(), to),
                Values::Bf16(b) => expand_run::<S, Bf16Bits>(run, b[at..].as_ptr(), to),
            }
        }
    }
}

instantiate!(pub(crate) fn expand(expansions: &[Expansion<'_>], to: ExpandTo) = expand_all);

/// # Safety
/// As `expand_all`; `b` is the first tile.
#[inline(always)]
unsafe fn expand_run<S: Simd, E: Element>(run: &Expansion<'_>, b: *const E, to: ExpandTo) {
    let piece = run.pack.rank * LANES;
    let mut column = 0;
    // SAFETY: the caller's contract; columns that fill no tile go through a buffer of one.
    unsafe {
        let out = to.out.add(run.first * to.out_row);
        while to.columns - column >= 2 * LANES {
            let b = b.add(column / LANES * piece);
            expand_tiles::<S, E, 2>(run, b, out.add(column), to.out_row);
            column += 2 * LANES;
        }
        while to.columns - column >= LANES {
            let b = b.add(column / LANES * piece);
            expand_tiles::<S, E, 1>(run, b, out.add(column), to.out_row);
            column += LANES;
        }
        let left = to.columns - column;
        if left > 0 {
            let b = b.add(column / LANES * piece);
            for m in 0..run.rows {
                let out = std::slice::from_raw_parts_mut(out.add(m * to.out_row + column), left);
                let mut y = [0f32; LANES];
                y[..left].copy_from_slice(out);
                let row = Expansion {
                    h: run.h.add(m * run.h_row),
                    rows: 1,
                    ..*run
                };
                expand_tiles::<S, E, 1>(&row, b, y.as_mut_ptr(), LANES);
                out.copy_from_slice(&y[..left]);
            }
        }
    }
}

/// # Safety
/// As `expand_all`; `out` is the run's first row at the first of N whole tiles.
#[inline(always)]
unsafe fn expand_tiles<S: Simd, E: Element, const N: usize>(
    run: &Expansion<'_>,
    b: *const E,
    out: *mut f32,
    out_row: usize,
) {
    let mut first = 0;
    macro_rules! by {
        ($rows:literal) => {
            while run.rows - first >= $rows {
                // SAFETY: the caller's contract.
                unsafe { expand_rows::<S, E, $rows, N>(run, b, first, out, out_row) };
                first += $rows;
            }
        };
    }
    if S::REGISTERS >= 32 {
        by!(8);
    }
    by!(2);
    by!(1);
}

/// Each output is one chain from what is there, in the order of the rank, however many rows and tiles share the call.
///
/// # Safety
/// As `expand_tiles`.
#[inline(always)]
unsafe fn expand_rows<S: Simd, E: Element, const M: usize, const N: usize>(
    run: &Expansion<'_>,
    b: *const E,
    first: usize,
    out: *mut f32,
    out_row: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let rank = run.pack.rank;
        let out = |m: usize, n: usize| out.add((first + m) * out_row + n * LANES);
        let h = run.h.add(first * run.h_row);
        let mut acc = [[S::zero(); M]; N];
        unroll!(N, |n| {
            unroll!(M, |m| { acc[n][m] = S::load(out(m, n)) });
        });
        for r in 0..rank {
            unroll!(N, |n| {
                let w = E::load::<S>(b.add((n * rank + r) * LANES));
                unroll!(M, |m| {
                    acc[n][m] = S::fma(S::splat(*h.add(m * run.h_row + r)), w, acc[n][m])
                });
            });
        }
        unroll!(N, |n| {
            unroll!(M, |m| { S::store(out(m, n), acc[n][m]) });
        });
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

/// How far in front of the products A is asked for, in bytes.
const AHEAD: usize = 2048;

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
                let from = a.add(k * job.padded + lane);
                let ahead = from.cast::<u8>().wrapping_add(AHEAD);
                for line in 0..(CHAINS * LANES * size_of::<E>()).div_ceil(64) {
                    S::prefetch(ahead.wrapping_add(64 * line));
                }
                unroll!(CHAINS, |chain| {
                    let w = E::load::<S>(from.add(chain * job.padded));
                    unroll!(M, |m| {
                        acc[chain][m] = S::fma(x(m, k + chain), w, acc[chain][m])
                    });
                });
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
