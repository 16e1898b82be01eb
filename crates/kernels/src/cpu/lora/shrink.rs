//! Rows of inputs through A.

use super::layout::{Packed, Values};
use super::pack::LoraPack;
use crate::cpu::gemm::{Bf16Bits, F16Bits};
use crate::cpu::isa::Isa;
use crate::cpu::simd::{LANES, Simd, instantiate, unroll};

impl LoraPack {
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

/// How far ahead of the products A is prefetched, in bytes.
pub(super) const AHEAD: usize = 4096;

/// Chains that a sum over the inputs is split into: one alone would wait for each addition before the next.
pub(super) const CHAINS: usize = 4;

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
