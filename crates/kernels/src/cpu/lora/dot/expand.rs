//! Rows of bf16 pairs of rank values through B, onto the outputs of a product.

use crate::cpu::lora::expand::{ExpandTo, Expansion};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{ExpandTo, Expansion};
    use crate::cpu::lora::dot::product::dot;
    use crate::cpu::simd::{LANES, unroll};
    use std::arch::x86_64::*;

    /// # Safety
    /// As [`super::expand`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn expand(expansions: &[Expansion<'_>], to: ExpandTo) {
        for run in expansions {
            // SAFETY: the caller's contract.
            unsafe {
                let mut column = 0;
                while to.columns - column >= 2 * LANES {
                    expand_tiles::<2>(run, to, column);
                    column += 2 * LANES;
                }
                while to.columns - column >= LANES {
                    expand_tiles::<1>(run, to, column);
                    column += LANES;
                }
                let left = to.columns - column;
                for m in 0..if left > 0 { run.rows } else { 0 } {
                    // Columns that fill no tile go through a buffer of one.
                    let out = to.out.add((run.first + m) * to.out_row + column);
                    let out = std::slice::from_raw_parts_mut(out, left);
                    let mut y = [0f32; LANES];
                    y[..left].copy_from_slice(out);
                    let row = Expansion {
                        h: run.h.add(m * run.h_row),
                        first: 0,
                        rows: 1,
                        ..*run
                    };
                    let buffer = ExpandTo {
                        out: y.as_mut_ptr(),
                        out_row: LANES,
                        first_column: to.first_column + column,
                        columns: LANES,
                    };
                    expand_tiles::<1>(&row, buffer, 0);
                    out.copy_from_slice(&y[..left]);
                }
            }
        }
    }

    /// N whole tiles from `column` on, all rows.
    ///
    /// # Safety
    /// As [`super::expand`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn expand_tiles<const N: usize>(run: &Expansion<'_>, to: ExpandTo, column: usize) {
        let pairs = run.pack.rank.div_ceil(2);
        let tile = (to.first_column + column) / LANES;
        let b = run.pack.b.words(tile * pairs * LANES);
        let mut first = 0;
        // SAFETY: the caller's contract.
        unsafe {
            let out = to.out.add(run.first * to.out_row + column);
            while run.rows - first >= 8 {
                expand_rows::<8, N>(run, b, pairs, first, out, to.out_row);
                first += 8;
            }
            while run.rows - first >= 1 {
                expand_rows::<1, N>(run, b, pairs, first, out, to.out_row);
                first += 1;
            }
        }
    }

    /// # Safety
    /// As [`super::expand`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn expand_rows<const M: usize, const N: usize>(
        run: &Expansion<'_>,
        b: *const u32,
        pairs: usize,
        first: usize,
        out: *mut f32,
        out_row: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            let out = |m: usize, n: usize| out.add((first + m) * out_row + n * LANES);
            let h = run.h.cast::<u32>().add(first * run.h_row);
            let mut acc = [[_mm512_setzero_ps(); M]; N];
            unroll!(N, |n| {
                unroll!(M, |m| { acc[n][m] = _mm512_loadu_ps(out(m, n)) });
            });
            for p in 0..pairs {
                unroll!(N, |n| {
                    let w = _mm512_loadu_si512(b.add((n * pairs + p) * LANES).cast());
                    unroll!(M, |m| {
                        acc[n][m] = dot(acc[n][m], w, *h.add(m * run.h_row + p))
                    });
                });
            }
            unroll!(N, |n| {
                unroll!(M, |m| { _mm512_storeu_ps(out(m, n), acc[n][m]) });
            });
        }
    }
}

/// out += h B^T, for each of some expansions whose h are pairs.
///
/// # Safety
/// As [`crate::cpu::lora::expand`], and [`crate::cpu::isa::has_bf16_dot`] returned true.
pub(crate) unsafe fn expand(expansions: &[Expansion<'_>], to: ExpandTo) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's contract.
    unsafe {
        x86::expand(expansions, to)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (expansions, to);
        unreachable!("no bf16 dot product on this architecture")
    }
}
