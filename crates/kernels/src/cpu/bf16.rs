//! Products of bf16 pairs with f32 sums (`vdpbf16ps`): the float path of training, twice as fast as f32 where it exists.

/// `out[m][n] (+)= sum over pairs p of a[m][p].lo * b[p][n].lo + a[m][p].hi * b[p][n].hi`, n in whole vectors of 16.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
pub(crate) struct PairGemm {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) pairs: usize,
    pub(crate) a: *const u32,
    pub(crate) a_row: usize,
    pub(crate) b: *const u32,
    pub(crate) b_row: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_row: usize,
    pub(crate) accumulate: bool,
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PairGemm;
    use crate::cpu::simd::unroll;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// # Safety
    /// The pointers cover the block at (row, column).
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn block<const M: usize, const N: usize>(g: &PairGemm, row: usize, column: usize) {
        // SAFETY: the caller's contract; a vector of 16 words and one of 32 bf16 are the same 64 bytes.
        unsafe {
            let out = |m: usize, n: usize| g.out.add((row + m) * g.out_row + column + n * 16);
            let mut acc = [[_mm512_setzero_ps(); N]; M];
            if g.accumulate {
                unroll!(M, |m| {
                    unroll!(N, |n| { acc[m][n] = _mm512_loadu_ps(out(m, n)) });
                });
            }
            let a = g.a.add(row * g.a_row);
            let b = g.b.add(column);
            for p in 0..g.pairs {
                let mut w = [_mm512_setzero_si512(); N];
                unroll!(N, |n| {
                    w[n] = _mm512_loadu_si512(b.add(p * g.b_row + n * 16).cast())
                });
                unroll!(M, |m| {
                    let x = _mm512_set1_epi32(*a.add(m * g.a_row + p) as i32);
                    unroll!(N, |n| {
                        acc[m][n] = _mm512_dpbf16_ps(
                            acc[m][n],
                            transmute::<__m512i, __m512bh>(w[n]),
                            transmute::<__m512i, __m512bh>(x),
                        )
                    });
                });
            }
            unroll!(M, |m| {
                unroll!(N, |n| { _mm512_storeu_ps(out(m, n), acc[m][n]) });
            });
        }
    }

    /// # Safety
    /// As `block`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn columns<const N: usize>(g: &PairGemm, column: usize) {
        let mut row = 0;
        // SAFETY: the caller's contract.
        unsafe {
            while g.m - row >= 8 {
                block::<8, N>(g, row, column);
                row += 8;
            }
            if g.m - row >= 4 {
                block::<4, N>(g, row, column);
                row += 4;
            }
            while g.m - row >= 1 {
                block::<1, N>(g, row, column);
                row += 1;
            }
        }
    }

    /// # Safety
    /// As `block`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn product(g: PairGemm) {
        let mut column = 0;
        // SAFETY: the caller's contract.
        unsafe {
            while g.n - column >= 32 {
                columns::<2>(&g, column);
                column += 32;
            }
            if g.n - column >= 16 {
                columns::<1>(&g, column);
            }
        }
    }
}

/// # Safety
/// The pointers cover the shapes, `n` is a multiple of 16, and [`crate::cpu::isa::has_bf16_dot`] returned true.
pub(crate) unsafe fn pair_gemm(g: PairGemm) {
    debug_assert!(g.n.is_multiple_of(16));
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's contract.
    unsafe {
        x86::product(g)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = g;
        unreachable!("no bf16 dot product on this architecture")
    }
}
