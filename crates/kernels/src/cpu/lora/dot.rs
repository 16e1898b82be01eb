//! Mixed LoRA by products of bf16 pairs (`vdpbf16ps`), for serving: x and h are rounded to bf16 as the adapter is, sums are
//! f32. A sixth of the work of widening every value, and at a few rows the widening is what costs.

use super::{ExpandTo, Expansion};

/// Some rows through A.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
pub(super) struct Shrink {
    /// Rows as bf16 pairs, `pairs` words each.
    pub(super) x: *const u32,
    pub(super) pairs: usize,
    /// pairs x padded words.
    pub(super) a: *const u32,
    pub(super) padded: usize,
    pub(super) rows: usize,
    pub(super) scale: f32,
    /// rows x padded / 2 words, `h_row` words apart.
    pub(super) h: *mut u32,
    pub(super) h_row: usize,
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::cpu::lora::{AHEAD, CHAINS};
    use crate::cpu::simd::{LANES, unroll};
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// acc + lo * lo + hi * hi, lane by lane, of a vector of pairs and one pair for all lanes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot(acc: __m512, w: __m512i, x: u32) -> __m512 {
        let x = _mm512_set1_epi32(x as i32);
        // SAFETY: vectors of 16 words and of 32 bf16 are the same 64 bytes.
        unsafe {
            _mm512_dpbf16_ps(
                acc,
                transmute::<__m512i, __m512bh>(w),
                transmute::<__m512i, __m512bh>(x),
            )
        }
    }

    /// # Safety
    /// The pointers cover what the counts say.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn shrink(job: Shrink) {
        let mut first = 0;
        // SAFETY: the caller's contract.
        unsafe {
            while job.rows - first >= 4 {
                shrink_rows::<4>(&job, first);
                first += 4;
            }
            while job.rows - first >= 1 {
                shrink_rows::<1>(&job, first);
                first += 1;
            }
        }
    }

    /// # Safety
    /// As `shrink`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn shrink_rows<const M: usize>(job: &Shrink, first: usize) {
        // SAFETY: the caller's contract; a prefetch may point anywhere.
        unsafe {
            let x = |m: usize, p: usize| *job.x.add((first + m) * job.pairs + p);
            for lane in (0..job.padded).step_by(LANES) {
                let a = job.a.add(lane);
                let mut acc = [[_mm512_setzero_ps(); M]; CHAINS];
                let whole = job.pairs / CHAINS * CHAINS;
                for p in (0..whole).step_by(CHAINS) {
                    unroll!(CHAINS, |chain| {
                        let from = a.add((p + chain) * job.padded);
                        _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(AHEAD));
                        let w = _mm512_loadu_si512(from.cast());
                        unroll!(M, |m| {
                            acc[chain][m] = dot(acc[chain][m], w, x(m, p + chain))
                        });
                    });
                }
                for p in whole..job.pairs {
                    let w = _mm512_loadu_si512(a.add(p * job.padded).cast());
                    for (m, acc) in acc[p - whole].iter_mut().enumerate() {
                        *acc = dot(*acc, w, x(m, p));
                    }
                }
                let scale = _mm512_set1_ps(job.scale);
                unroll!(M, |m| {
                    let low = _mm512_add_ps(acc[0][m], acc[1][m]);
                    let high = _mm512_add_ps(acc[2][m], acc[3][m]);
                    let h = _mm512_mul_ps(_mm512_add_ps(low, high), scale);
                    let words = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(h));
                    let to = job.h.add((first + m) * job.h_row + lane / 2);
                    _mm256_storeu_si256(to.cast(), words);
                });
            }
        }
    }

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

/// h = scale * x A^T, rounded to bf16 pairs.
///
/// # Safety
/// The pointers cover what the counts say, and [`crate::cpu::isa::has_bf16_dot`] said yes.
pub(super) unsafe fn shrink(job: Shrink) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's contract.
    unsafe {
        x86::shrink(job)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = job;
        unreachable!("no bf16 dot product on this architecture")
    }
}

/// out += h B^T, for each of some expansions whose h are pairs.
///
/// # Safety
/// As [`super::expand`], and [`crate::cpu::isa::has_bf16_dot`] said yes.
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
