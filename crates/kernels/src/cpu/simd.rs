//! Vectors of sixteen lanes on every instruction set: the operations in which the tile kernels are written.
//!
//! A kernel is generic over [`Simd`], is `#[inline(always)]`, and is instantiated once inside a `#[target_feature]`
//! function for each instruction set (see [`instantiate`]). `Portable` is plain arrays: the reference on every machine and
//! the code that NEON runs (the compiler vectorises it there).

use half::{bf16, f16};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Sixteen f32 lanes, sixteen i32 lanes, 64 bytes.
///
/// # Safety
/// All methods: the instruction set is there, and pointers are valid for what is read or written (16 elements; 64 bytes
/// for `load_bytes`; 4 bytes for the activations of `dot_*`).
pub(crate) trait Simd: Copy {
    /// Vectors of 16 lanes that the registers hold at a time.
    const REGISTERS: usize;
    type F: Copy;
    type I: Copy;
    type B: Copy;
    /// Sums of products of nibbles over a group of 32, which fit 16 bits: 8 steps * 2 * 15 * 127 < 2^15.
    type P: Copy;
    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// 16 words of two bf16 each: the low ones and the high ones.
    unsafe fn load_bf16_pairs(p: *const u32) -> (Self::F, Self::F);
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f32(a: Self::I) -> Self::F;
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    unsafe fn low_nibbles(b: Self::B) -> Self::B;
    unsafe fn high_nibbles(b: Self::B) -> Self::B;
    /// Prefetches the cache line at `p`, which may be outside of any object.
    unsafe fn prefetch(p: *const u8);
    /// acc + sum over 4 of (unsigned byte below 16) * (signed byte): lane i takes bytes 4i..4i+4; `x` is the same 4
    /// signed bytes for all lanes.
    unsafe fn dot_nibbles(acc: Self::I, w: Self::B, x: *const i8) -> Self::I;
    /// The same for any unsigned byte.
    unsafe fn dot_bytes(acc: Self::I, w: Self::B, x: *const i8) -> Self::I;
    /// `dot_nibbles` onto the sums of one group: at most 8 steps, `x` not below -127.
    unsafe fn dot_group(acc: Self::P, w: Self::B, x: *const i8) -> Self::P;
    unsafe fn zero_group() -> Self::P;
    /// acc + a group's sums.
    unsafe fn add_group(acc: Self::I, group: Self::P) -> Self::I;
}

/// Plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    const REGISTERS: usize = 8;
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];
    type P = [i32; LANES];
    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: by the trait's contract; so below.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: as above.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(|b| f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: as above.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(|b| bf16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u32) -> (Self::F, Self::F) {
        // SAFETY: as above.
        let words = unsafe { p.cast::<[u32; LANES]>().read_unaligned() };
        (
            words.map(|w| f32::from_bits(w << 16)),
            words.map(|w| f32::from_bits(w & 0xffff_0000)),
        )
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: as above.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I) -> Self::F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: as above.
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: Self::B) -> Self::B {
        b.map(|x| x & 15)
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: Self::B) -> Self::B {
        b.map(|x| x >> 4)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn dot_nibbles(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: as above.
        unsafe { Self::dot_bytes(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: as above.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() }.map(i32::from);
        std::array::from_fn(|i| {
            let w = |b: usize| i32::from(w[4 * i + b]);
            acc[i] + w(0) * x[0] + w(1) * x[1] + w(2) * x[2] + w(3) * x[3]
        })
    }
    #[inline(always)]
    unsafe fn dot_group(acc: Self::P, w: Self::B, x: *const i8) -> Self::P {
        // SAFETY: as above.
        unsafe { Self::dot_bytes(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn zero_group() -> Self::P {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn add_group(acc: Self::I, group: Self::P) -> Self::I {
        // SAFETY: as above.
        unsafe { Self::add_i(acc, group) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// AVX-512 with VNNI: a vector is one register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    // SAFETY (all blocks here): by the trait's contract the instruction set is there and the pointers are valid.
    impl Simd for Avx512 {
        const REGISTERS: usize = 32;
        type F = __m512;
        type I = __m512i;
        type B = __m512i;
        type P = __m512i;
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u32) -> (__m512, __m512) {
            unsafe {
                let words = _mm512_loadu_si512(p.cast());
                let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                (
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
                    _mm512_castsi512_ps(high),
                )
            }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn splat_i(x: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn to_f32(a: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(a) }
        }
        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn low_nibbles(b: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(b, _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn high_nibbles(b: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn dot_nibbles(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
            unsafe { Self::dot_bytes(acc, w, x) }
        }
        #[inline(always)]
        unsafe fn dot_bytes(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
            unsafe {
                _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned()))
            }
        }
        #[inline(always)]
        unsafe fn dot_group(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
            unsafe { Self::dot_bytes(acc, w, x) }
        }
        #[inline(always)]
        unsafe fn zero_group() -> __m512i {
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn add_group(acc: __m512i, group: __m512i) -> __m512i {
            unsafe { _mm512_add_epi32(acc, group) }
        }
    }

    /// AVX2 with FMA and F16C: a vector is two registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    // SAFETY (all blocks here): by the trait's contract the instruction set is there and the pointers are valid.
    impl Simd for Avx2 {
        const REGISTERS: usize = 8;
        type F = (__m256, __m256);
        type I = (__m256i, __m256i);
        type B = (__m256i, __m256i);
        type P = (__m256i, __m256i);
        #[inline(always)]
        unsafe fn zero() -> Self::F {
            unsafe { (_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::F {
            let v = unsafe { _mm256_set1_ps(x) };
            (v, v)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::F {
            unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self::F {
            unsafe {
                (
                    _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
                )
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self::F {
            unsafe {
                let half = |p: *const u16| {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                };
                (half(p), half(p.add(8)))
            }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u32) -> (Self::F, Self::F) {
            unsafe {
                let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let a = _mm256_loadu_si256(p.cast());
                let b = _mm256_loadu_si256(p.add(8).cast());
                let low = |w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
                let high = |w| _mm256_castsi256_ps(_mm256_and_si256(w, mask));
                ((low(a), low(b)), (high(a), high(b)))
            }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::F) {
            unsafe {
                _mm256_storeu_ps(p, v.0);
                _mm256_storeu_ps(p.add(8), v.1);
            }
        }
        #[inline(always)]
        unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
            unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
            unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            unsafe {
                (
                    _mm256_fmadd_ps(a.0, b.0, c.0),
                    _mm256_fmadd_ps(a.1, b.1, c.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn splat_i(x: i32) -> Self::I {
            let v = unsafe { _mm256_set1_epi32(x) };
            (v, v)
        }
        #[inline(always)]
        unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
            unsafe { (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn to_f32(a: Self::I) -> Self::F {
            unsafe { (_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1)) }
        }
        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> Self::B {
            unsafe {
                (
                    _mm256_loadu_si256(p.cast()),
                    _mm256_loadu_si256(p.add(32).cast()),
                )
            }
        }
        #[inline(always)]
        unsafe fn low_nibbles(b: Self::B) -> Self::B {
            unsafe {
                let mask = _mm256_set1_epi8(15);
                (_mm256_and_si256(b.0, mask), _mm256_and_si256(b.1, mask))
            }
        }
        #[inline(always)]
        unsafe fn high_nibbles(b: Self::B) -> Self::B {
            unsafe {
                let mask = _mm256_set1_epi8(15);
                (
                    _mm256_and_si256(_mm256_srli_epi16::<4>(b.0), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(b.1), mask),
                )
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn dot_nibbles(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
            unsafe {
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                let ones = _mm256_set1_epi16(1);
                let dot = |w| _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones);
                (
                    _mm256_add_epi32(acc.0, dot(w.0)),
                    _mm256_add_epi32(acc.1, dot(w.1)),
                )
            }
        }
        #[inline(always)]
        unsafe fn dot_bytes(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
            // maddubs saturates at 16 bits, which 255 * 127 * 2 passes: the low seven bits and the top bit go apart.
            unsafe {
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                let ones = _mm256_set1_epi16(1);
                let seven = _mm256_set1_epi8(0x7f);
                let one = _mm256_set1_epi8(1);
                let dot = |w| {
                    let low = _mm256_madd_epi16(
                        _mm256_maddubs_epi16(_mm256_and_si256(w, seven), x),
                        ones,
                    );
                    let top = _mm256_and_si256(_mm256_srli_epi16::<7>(w), one);
                    let top = _mm256_madd_epi16(_mm256_maddubs_epi16(top, x), ones);
                    _mm256_add_epi32(low, _mm256_slli_epi32::<7>(top))
                };
                (
                    _mm256_add_epi32(acc.0, dot(w.0)),
                    _mm256_add_epi32(acc.1, dot(w.1)),
                )
            }
        }
        #[inline(always)]
        unsafe fn dot_group(acc: Self::P, w: Self::B, x: *const i8) -> Self::P {
            // Widening to 32 bits is left to `add_group`, once a group.
            unsafe {
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                (
                    _mm256_add_epi16(acc.0, _mm256_maddubs_epi16(w.0, x)),
                    _mm256_add_epi16(acc.1, _mm256_maddubs_epi16(w.1, x)),
                )
            }
        }
        #[inline(always)]
        unsafe fn zero_group() -> Self::P {
            unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
        }
        #[inline(always)]
        unsafe fn add_group(acc: Self::I, group: Self::P) -> Self::I {
            unsafe {
                let ones = _mm256_set1_epi16(1);
                (
                    _mm256_add_epi32(acc.0, _mm256_madd_epi16(group.0, ones)),
                    _mm256_add_epi32(acc.1, _mm256_madd_epi16(group.1, ones)),
                )
            }
        }
    }
}

/// Prefetches the cache line at `p`, which may be any address.
#[inline(always)]
pub(crate) fn prefetch(isa: crate::cpu::isa::Isa, p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    if isa != crate::cpu::isa::Isa::Scalar {
        // SAFETY: a prefetch reads nothing that the program could see, and every x86-64 has it.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast()) }
    }
    let _ = (isa, p);
}

/// `unroll!(N, |i| { .. })` writes the block out for i = 0, 1, .. below the constant N, 16 at most, so that arrays indexed by
/// `i` stay in registers. (A loop over a const generic is unrolled only where the compiler thinks it small; a kernel whose
/// accumulators went to the stack runs at half its speed.)
macro_rules! unroll {
    ($n:expr, |$i:ident| $body:block) => {
        $crate::cpu::simd::unroll!(@ $n, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $n:expr, $i:ident, $body:block, $($k:literal)*) => {
        const { assert!($n <= 16) };
        $(if $k < $n {
            let $i: usize = $k;
            $body
        })*
    };
}
pub(crate) use unroll;

/// Makes a safe-to-dispatch function out of a kernel generic over [`Simd`]: one instance an instruction set, chosen at run
/// time.
///
/// `instantiate!(fn name(a: A, b: B) = kernel::<{S}>)` defines `unsafe fn name(isa: Isa, a: A, b: B)`.
macro_rules! instantiate {
    ($vis:vis fn $name:ident $(<$(const $g:ident : $gt:ty),*>)? ( $($arg:ident : $ty:ty),* $(,)? ) = $kernel:ident) => {
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name $(<$(const $g: $gt),*>)? (isa: $crate::cpu::isa::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512 $(<$(const $g: $gt),*>)? ($($arg: $ty),*) {
                // SAFETY: by the caller's contract.
                unsafe { $kernel::<$crate::cpu::simd::Avx512 $($(, $g)*)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2 $(<$(const $g: $gt),*>)? ($($arg: $ty),*) {
                // SAFETY: by the caller's contract.
                unsafe { $kernel::<$crate::cpu::simd::Avx2 $($(, $g)*)?>($($arg),*) }
            }
            // SAFETY: an `Isa` other than Scalar exists only in a device where `Isa::available` returned true; the rest is the
            // caller's contract.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx512 => avx512 $(::<$($g),*>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx2 => avx2 $(::<$($g),*>)? ($($arg),*),
                    _ => $kernel::<$crate::cpu::simd::Portable $($(, $g)*)?>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use instantiate;
