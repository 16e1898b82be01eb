//! Low-rank adapters next to a product, a different one for each row: `y += scale * (x A^T) B^T`.
//!
//! Both matrices have the summed dimension outside and 16 lanes inside. bf16 values are stored in pairs, as the dot product reads
//! them: those of sums 2p and 2p + 1 share a word.

mod backward;
mod dot;
mod dropout;
mod layout;

use crate::cpu::gemm::{Bf16Bits, F16Bits};
use crate::cpu::isa::Isa;
use crate::cpu::simd::{LANES, Simd, instantiate, prefetch, unroll};
use crate::dtype::LoraType;
use crate::error::KernelError;
use crate::rows::Run;
pub use backward::LoraGrad;
pub(crate) use dot::expand as expand_dot;
pub use dropout::Dropout;
pub use layout::LoraArena;
use layout::{Packed, Transposed, Values};

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
    /// B^T in tiles of 16 outputs: tile > rank > 16, so that the values of a tile are adjacent.
    b: Values,
    // Both with an even number of columns; what is too much is 0.
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
        let (a_layout, b_layout) = (Transposed::of_a(inputs, rank), Transposed::of_b(rank));
        let b_len = outputs.div_ceil(LANES) * b_layout.tile;
        Ok(LoraPack {
            inputs,
            outputs,
            rank,
            padded: a_layout.stride,
            scale,
            a: Values::new(&arena.a, dtype, a_layout.tile, a, a_layout)?,
            b: Values::new(&arena.b, dtype, b_len, b, b_layout)?,
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

    /// Whether [`LoraPack::shrink_dot`] and [`expand_dot`] take it, where the machine has them.
    pub(crate) fn is_paired(&self) -> bool {
        matches!(self.a, Values::Bf16(_))
    }

    /// [`LoraPack::shrink`] of rows that are bf16 pairs; `h` becomes bf16 pairs too, `padded / 2` words a row.
    ///
    /// # Safety
    /// `x` covers rows x inputs.div_ceil(2) words, `h` rows at `h_row` >= padded; the pack is paired and
    /// [`crate::cpu::isa::has_bf16_dot`] said yes.
    pub(crate) unsafe fn shrink_dot(
        &self,
        x: *const u32,
        rows: usize,
        scale: f32,
        h: *mut f32,
        h_row: usize,
    ) {
        // SAFETY: passed on.
        unsafe {
            dot::shrink(dot::Shrink {
                x,
                pairs: self.inputs.div_ceil(2),
                a: self.a.words(0),
                padded: self.padded,
                rows,
                scale: scale * self.scale,
                h: h.cast(),
                h_row,
            });
        }
    }

    /// Prefetches the part of B that [`expand`] will read for `columns`: pieces of many adapters are far apart, and the
    /// products in between give them time to arrive.
    pub(crate) fn prefetch(&self, isa: Isa, columns: std::ops::Range<usize>) {
        let piece = self.rank.next_multiple_of(2) * LANES;
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
        let at = to.first_column * run.pack.rank.next_multiple_of(2);
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
unsafe fn expand_run<S: Simd, E: Packed>(run: &Expansion<'_>, b: *const E, to: ExpandTo) {
    let piece = run.pack.rank.next_multiple_of(2) * LANES;
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
/// As `expand_all`; `out` is the run's first row at the first of N full tiles.
#[inline(always)]
unsafe fn expand_tiles<S: Simd, E: Packed, const N: usize>(
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
unsafe fn expand_rows<S: Simd, E: Packed, const M: usize, const N: usize>(
    run: &Expansion<'_>,
    b: *const E,
    first: usize,
    out: *mut f32,
    out_row: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        // An odd rank ends in a column of zeros, and so does h.
        let rank = run.pack.rank.next_multiple_of(2);
        let out = |m: usize, n: usize| out.add((first + m) * out_row + n * LANES);
        let h = run.h.add(first * run.h_row);
        let mut acc = [[S::zero(); M]; N];
        unroll!(N, |n| {
            unroll!(M, |m| { acc[n][m] = S::load(out(m, n)) });
        });
        for p in 0..rank / 2 {
            unroll!(N, |n| {
                let (even, odd) = E::columns::<S>(b.add(n * rank * LANES), LANES, p);
                unroll!(M, |m| {
                    let h = h.add(m * run.h_row + 2 * p);
                    acc[n][m] = S::fma(S::splat(*h), even, acc[n][m]);
                    acc[n][m] = S::fma(S::splat(*h.add(1)), odd, acc[n][m]);
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
const AHEAD: usize = 4096;

/// Chains that a sum over the inputs is split into: one alone would wait for each addition before the next.
const CHAINS: usize = 4;

/// # Safety
/// `Simd`'s contract; `job`'s pointers and `a` cover its shapes.
#[inline(always)]
unsafe fn shrink_rows<S: Simd, E: Packed, const M: usize>(job: &Shrink, a: *const E, first: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let x = |m: usize, k: usize| S::splat(*job.x.add((first + m) * job.inputs + k));
        for lane in (0..job.padded).step_by(LANES) {
            let mut acc = [[S::zero(); M]; CHAINS];
            let from = a.add(if E::PAIRED { 2 * lane } else { lane });
            let whole = job.inputs / CHAINS * CHAINS;
            let ahead = |k: usize, columns: usize| {
                let at = k * job.padded * size_of::<E>() + AHEAD;
                for line in 0..(columns * LANES * size_of::<E>()).div_ceil(64) {
                    S::prefetch(from.cast::<u8>().wrapping_add(at + 64 * line));
                }
            };
            if S::REGISTERS >= 32 || M < 4 {
                for k in (0..whole).step_by(CHAINS) {
                    ahead(k, CHAINS);
                    unroll!(2, |pair| {
                        let (even, odd) = E::columns::<S>(from, job.padded, k / 2 + pair);
                        unroll!(M, |m| {
                            let (even_x, odd_x) = (x(m, k + 2 * pair), x(m, k + 2 * pair + 1));
                            acc[2 * pair][m] = S::fma(even_x, even, acc[2 * pair][m]);
                            acc[2 * pair + 1][m] = S::fma(odd_x, odd, acc[2 * pair + 1][m]);
                        });
                    });
                }
            } else {
                // Chain after chain: the sums of all of them would not fit the registers.
                unroll!(4, |chain| {
                    let mut sums = [S::zero(); M];
                    for k in (0..whole).step_by(CHAINS) {
                        ahead(k + chain, 1);
                        let (even, odd) = E::columns::<S>(from, job.padded, (k + chain) / 2);
                        let w = if chain.is_multiple_of(2) { even } else { odd };
                        unroll!(M, |m| { sums[m] = S::fma(x(m, k + chain), w, sums[m]) });
                    }
                    acc[chain] = sums;
                });
            }
            for k in whole..job.inputs {
                let (even, odd) = E::columns::<S>(from, job.padded, k / 2);
                let w = if k % 2 == 0 { even } else { odd };
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
unsafe fn shrink_all<S: Simd, E: Packed>(job: Shrink, a: *const E) {
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

/// Which adapters the rows of one product carry. Rows in no run carry none.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// Non-overlapping, ascending.
    pub runs: &'a [Run],
    /// By slot: the adapter's pair for this linear layer, if it has one.
    pub packs: &'a [Option<&'a LoraPack>],
    /// What the adapters do not see of their inputs, in training.
    pub dropout: Option<Dropout<'a>>,
}

impl Lora<'_> {
    /// No adapters.
    pub const NONE: Lora<'static> = Lora {
        runs: &[],
        packs: &[],
        dropout: None,
    };
}
