//! Rows of bf16 pairs through A.

use crate::cpu::lora::pack::LoraPack;

impl LoraPack {
    /// [`LoraPack::shrink`] of rows that are bf16 pairs; `h` becomes bf16 pairs too, `padded / 2` words a row.
    ///
    /// # Safety
    /// `x` covers rows x inputs.div_ceil(2) words, `h` rows at `h_row` >= padded; the pack is paired and
    /// [`crate::cpu::isa::has_bf16_dot`] returned true.
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
            shrink(Shrink {
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
}

/// Some rows through A.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
struct Shrink {
    /// Rows as bf16 pairs, `pairs` words each.
    x: *const u32,
    pairs: usize,
    /// pairs x padded words.
    a: *const u32,
    padded: usize,
    rows: usize,
    scale: f32,
    /// rows x padded / 2 words, `h_row` words apart.
    h: *mut u32,
    h_row: usize,
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Shrink;
    use crate::cpu::lora::dot::product::dot;
    use crate::cpu::lora::shrink::{AHEAD, CHAINS};
    use crate::cpu::simd::{LANES, unroll};
    use std::arch::x86_64::*;
    use std::mem::transmute;

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
}

/// h = scale * x A^T, rounded to bf16 pairs.
///
/// # Safety
/// The pointers cover what the counts say, and [`crate::cpu::isa::has_bf16_dot`] returned true.
unsafe fn shrink(job: Shrink) {
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
