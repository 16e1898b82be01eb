//! The product that both directions are made of.

use std::arch::x86_64::*;
use std::mem::transmute;

/// acc + lo * lo + hi * hi, lane by lane, of a vector of pairs and one pair for all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn dot(acc: __m512, w: __m512i, x: u32) -> __m512 {
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
