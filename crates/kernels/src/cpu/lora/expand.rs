//! Rows of rank values through B, onto the outputs of a product.

use super::layout::{Packed, Values};
use super::pack::LoraPack;
use crate::cpu::gemm::{Bf16Bits, F16Bits};
use crate::cpu::simd::{LANES, Simd, instantiate, unroll};

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
