//! The products themselves: a few rows against 16 inputs of a panel.

use crate::cpu::isa::Isa;
use crate::cpu::simd::LANES;

/// A few rows against 16 inputs of a panel.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) words: &'a [[u32; LANES]],
    /// The indices of the words that are multiplied; default: all.
    pub(super) places: Option<&'a [u16]>,
    /// The values of each pair of outputs that is multiplied, row by row.
    pub(super) values: &'a [u32],
    pub(super) steps: &'a [f32],
    pub(super) steps_row: usize,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    pub(super) add: bool,
}

/// # Safety
/// The job's slices and pointer cover `count` rows, of at most [`super::rounding::ROWS`]; its places are among the words.
pub(super) unsafe fn some_rows(isa: Isa, count: usize, job: Job) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: such a device exists only where AVX2 is; the caller's contract.
        unsafe {
            return if job.places.is_some() {
                x86::some_rows::<true>(count, job)
            } else {
                x86::some_rows::<false>(count, job)
            };
        }
    }
    let _ = isa;
    for m in 0..count {
        let row = job.values[m..].iter().step_by(count);
        let mut sums = [0i32; LANES];
        match job.places {
            Some(places) => {
                for (z, place) in row.zip(places) {
                    multiply_pair(*z, &job.words[usize::from(*place)], &mut sums);
                }
            }
            None => {
                for (z, words) in row.zip(job.words) {
                    multiply_pair(*z, words, &mut sums);
                }
            }
        }
        // SAFETY: the caller's contract.
        let out = unsafe { &mut *job.out.add(m * job.out_row).cast::<[f32; LANES]>() };
        for (out, sum) in out.iter_mut().zip(sums) {
            let before = if job.add { *out } else { 0.0 };
            *out = (sum as f32).mul_add(job.steps[m * job.steps_row], before);
        }
    }
}

fn multiply_pair(z: u32, words: &[u32; LANES], sums: &mut [i32; LANES]) {
    let halves = |word: u32| [i32::from(word as i16), i32::from((word >> 16) as i16)];
    let z = halves(z);
    for (sum, word) in sums.iter_mut().zip(words) {
        let w = halves(*word);
        *sum += z[0] * w[0] + z[1] * w[1];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Job;
    use crate::cpu::simd::unroll;
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX2 and FMA; the job covers `count` rows, and has places if it is sparse.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn some_rows<const SPARSE: bool>(count: usize, job: Job) {
        // SAFETY: the caller's contract.
        unsafe {
            match count {
                6 => products::<6, SPARSE>(job),
                5 => products::<5, SPARSE>(job),
                4 => products::<4, SPARSE>(job),
                3 => products::<3, SPARSE>(job),
                2 => products::<2, SPARSE>(job),
                _ => products::<1, SPARSE>(job),
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; the job covers M rows, and has places if it is sparse.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn products<const M: usize, const SPARSE: bool>(job: Job) {
        let places = job.places.unwrap_or_default();
        let count = if SPARSE {
            places.len()
        } else {
            job.words.len()
        };
        let mut acc = [[_mm256_setzero_si256(); 2]; M];
        // SAFETY: the caller's contract.
        unsafe {
            let words = job.words.as_ptr().cast::<__m256i>();
            let values = job.values.as_ptr().cast::<i32>();
            for i in 0..count {
                let p = if SPARSE {
                    usize::from(*places.get_unchecked(i))
                } else {
                    i
                };
                let w = [0, 1].map(|n| _mm256_loadu_si256(words.add(2 * p + n)));
                unroll!(M, |m| {
                    let z = _mm256_set1_epi32(*values.add(i * M + m));
                    unroll!(2, |n| {
                        acc[m][n] = _mm256_add_epi32(acc[m][n], _mm256_madd_epi16(w[n], z));
                    });
                });
            }
            unroll!(M, |m| {
                let step = _mm256_set1_ps(*job.steps.get_unchecked(m * job.steps_row));
                unroll!(2, |n| {
                    let to = job.out.add(m * job.out_row + 8 * n);
                    let sum = _mm256_cvtepi32_ps(acc[m][n]);
                    let before = if job.add {
                        _mm256_loadu_ps(to)
                    } else {
                        _mm256_setzero_ps()
                    };
                    _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, step, before));
                });
            });
        }
    }
}
