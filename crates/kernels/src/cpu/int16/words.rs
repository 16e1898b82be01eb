//! Weights as 16-bit integers, 32 inputs of 16 outputs at a time: `round(weight / unit)`.

use super::rounding::MAGIC;
use crate::cpu::isa::Isa;
use crate::cpu::isa::per_isa;
use crate::cpu::simd::LANES;
use crate::cpu::weights::unpack::{Block, unpack_block};
use crate::cpu::weights::{GROUP, Layout, TileBytes as _};

/// A tile's integers in pairs of outputs: word [half][p][k] holds outputs 2p (low half) and 2p + 1 for input k of 16.
pub(crate) type Words<'a> = [&'a mut [[u32; LANES]; LANES / 2]; 2];

fn inverse(units: &[f32; LANES]) -> [f32; LANES] {
    units.map(|unit| if unit > 0.0 { 1.0 / unit } else { 0.0 })
}

/// Rounds `block / units`.
pub(crate) fn of_floats(isa: Isa, block: &Block, units: &[f32; LANES], words: Words) {
    let inverse = inverse(units);
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: such a device exists only where AVX2 and FMA are.
        return unsafe { x86::of_floats(block, &inverse, words) };
    }
    portable(isa, block, &inverse, words);
}

/// Rounds the values of a block of quantized weights, by their units.
pub(crate) fn of_quantized(
    isa: Isa,
    layout: &Layout,
    block: &[u8],
    units: &[f32; LANES],
    words: Words,
) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        assert!(block.len() >= layout.quants());
        let lines = crate::cpu::weights::unpack::read_lines(isa, layout, block);
        let inverse = inverse(units);
        // SAFETY: such a device exists only where AVX2 and FMA are; the block holds its integers.
        return unsafe {
            match layout.bits {
                4 => x86::of_quantized::<4>(block, layout.offset, &lines, &inverse, words),
                _ => x86::of_quantized::<8>(block, layout.offset, &lines, &inverse, words),
            }
        };
    }
    let mut values = [[0f32; LANES]; GROUP];
    unpack_block(isa, layout, block, &mut values);
    of_floats(isa, &values, units, words);
}

per_isa! {
    fn portable(block: &Block, inverse: &[f32; LANES], words: Words) {
        for (block, words) in block.as_chunks::<LANES>().0.iter().zip(words) {
            // Rounded first, so that what is transposed is words.
            let mut pairs = [[0u32; LANES / 2]; LANES];
            for (pairs, row) in pairs.iter_mut().zip(block) {
                let mut bits = [0u32; LANES];
                for lane in 0..LANES {
                    bits[lane] = (row[lane] * inverse[lane] + MAGIC).to_bits();
                }
                for (word, pair) in pairs.iter_mut().zip(bits.as_chunks::<2>().0) {
                    *word = pair[0] & 0xffff | pair[1] << 16;
                }
            }
            for (pair, words) in words.iter_mut().enumerate() {
                for (word, pairs) in words.iter_mut().zip(&pairs) {
                    *word = pairs[pair];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Block, LANES, Words};
    use crate::cpu::simd::unroll;
    use crate::cpu::weights::unpack::Lines;
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn of_floats(block: &Block, inverse: &[f32; LANES], words: Words) {
        let inverse = vectors(inverse);
        for (half, words) in words.into_iter().enumerate() {
            for eight in 0..2 {
                let mut rows = [_mm256_setzero_si256(); 8];
                unroll!(8, |k| {
                    let row = vectors(&block[16 * half + 8 * eight + k]);
                    rows[k] = rounded(row, inverse);
                });
                // SAFETY: the caller's contract.
                unsafe { put(rows, words, 8 * eight) };
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; the block holds 32 integers of 16 outputs.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn of_quantized<const BITS: usize>(
        block: &[u8],
        offset: i32,
        lines: &Lines,
        inverse: &[f32; LANES],
        words: Words,
    ) {
        let (offset, inverse) = (_mm256_set1_epi32(offset), vectors(inverse));
        let mask = _mm256_set1_epi32((1 << BITS) - 1);
        for (half, words) in words.into_iter().enumerate() {
            let (scale, minimum) = (vectors(&lines.scale[half]), vectors(&lines.minimum[half]));
            for eight in 0..2 {
                let mut rows = [_mm256_setzero_si256(); 8];
                unroll!(8, |k| {
                    // Two steps of four inputs: in one run of 64 bytes, or in two.
                    let steps = 2 * half + eight;
                    let (at, shift) = if BITS == 4 {
                        (64 * steps, 8 * (k % 4) + 4 * (k / 4))
                    } else {
                        (64 * (2 * steps + k / 4), 8 * (k % 4))
                    };
                    let shift = _mm_cvtsi32_si128(shift as i32);
                    let mut values = [_mm256_setzero_ps(); 2];
                    unroll!(2, |n| {
                        // SAFETY: the caller's contract.
                        let word =
                            unsafe { _mm256_loadu_si256(block.as_ptr().add(at + 32 * n).cast()) };
                        let integer = _mm256_and_si256(_mm256_srl_epi32(word, shift), mask);
                        let integer = _mm256_cvtepi32_ps(_mm256_sub_epi32(integer, offset));
                        values[n] = _mm256_fmadd_ps(integer, scale[n], minimum[n]);
                    });
                    rows[k] = rounded(values, inverse);
                });
                // SAFETY: the caller's contract.
                unsafe { put(rows, words, 8 * eight) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn vectors(x: &[f32; LANES]) -> [__m256; 2] {
        let p = x.as_ptr();
        // SAFETY: 8 of 16 values each.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn rounded(values: [__m256; 2], inverse: [__m256; 2]) -> __m256i {
        _mm256_packs_epi32(
            _mm256_cvtps_epi32(_mm256_mul_ps(values[0], inverse[0])),
            _mm256_cvtps_epi32(_mm256_mul_ps(values[1], inverse[1])),
        )
    }

    /// Writes eight inputs, from input `first` on. Packing left the pairs of outputs in this order: 0, 1, 4, 5, 2, 3, 6, 7.
    ///
    /// # Safety
    /// `first` is 0 or 8.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn put(rows: [__m256i; 8], words: &mut [[u32; LANES]; LANES / 2], first: usize) {
        let mut fours = [[_mm256_setzero_si256(); 4]; 2];
        unroll!(2, |i| {
            let r = 4 * i;
            let low = _mm256_unpacklo_epi32(rows[r], rows[r + 1]);
            let high = _mm256_unpackhi_epi32(rows[r], rows[r + 1]);
            let next_low = _mm256_unpacklo_epi32(rows[r + 2], rows[r + 3]);
            let next_high = _mm256_unpackhi_epi32(rows[r + 2], rows[r + 3]);
            fours[i] = [
                _mm256_unpacklo_epi64(low, next_low),
                _mm256_unpackhi_epi64(low, next_low),
                _mm256_unpacklo_epi64(high, next_high),
                _mm256_unpackhi_epi64(high, next_high),
            ];
        });
        let [a, b] = fours;
        const PAIRS: [[usize; 2]; 4] = [[0, 2], [1, 3], [4, 6], [5, 7]];
        unroll!(4, |i| {
            let [low, high] = PAIRS[i].map(|pair| words[pair].as_mut_ptr());
            // SAFETY: 8 of a pair's 16 words.
            unsafe {
                let (low, high) = (low.add(first).cast(), high.add(first).cast());
                _mm256_storeu_si256(low, _mm256_permute2x128_si256::<0x20>(a[i], b[i]));
                _mm256_storeu_si256(high, _mm256_permute2x128_si256::<0x31>(a[i], b[i]));
            }
        });
    }
}
