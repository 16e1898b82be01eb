//! The limits and units of the rounding to integers.

use crate::cpu::simd::LANES;

/// The number of rows multiplied at a time, at most: their sums for 16 inputs fill 12 of 16 registers.
pub(super) const ROWS: usize = 6;
/// The number of outputs in a panel, at most: a few rows' values stay in the L1 cache, the words in L2.
pub(crate) const PANEL: usize = 1024;
/// The largest magnitude of an integer weight.
pub(super) const WEIGHT_MAX: f32 = 4095.0;
/// The largest magnitude of an integer gradient.
pub(super) const GRAD_MAX: f32 = 32767.0;
/// The largest sum of a row's magnitudes in a panel, before each is rounded by at most a half. It leaves one percent for the
/// error of the sum itself: `(SUM_MAX + PANEL / 2) * WEIGHT_MAX < 2^31`.
pub(super) const SUM_MAX: f32 = 519_000.0;
/// Values below this count as zero: their quotients would not be finite.
pub(super) const UNDERFLOW: f32 = 1e-30;
/// Added to a number below 2^22, this leaves the nearest integer, to even between two, in the low bits of the sum.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// The unit of an output whose largest weight has this magnitude: zero if quotients would not be finite.
pub(crate) fn unit_of(largest: f32) -> f32 {
    // NaN stays NaN.
    if largest < UNDERFLOW * WEIGHT_MAX {
        0.0
    } else {
        largest / WEIGHT_MAX
    }
}

/// The sum of a panel's magnitudes, each in its output's units; `largest` takes the bits of the largest ones.
#[inline(always)]
pub(super) fn weigh(x: &[f32], units: &[f32], largest: &mut [u32; LANES]) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut last = [0f32; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let tiles = chunks.iter().chain(std::iter::once(&last));
    for (x, unit) in tiles.zip(units.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            let size = (x[lane] * unit[lane]).to_bits() & 0x7fff_ffff;
            // Magnitudes are ordered as their bits are; those of NaN come last.
            largest[lane] = largest[lane].max(size);
            sums[lane] += f32::from_bits(size);
        }
    }
    sums.iter().sum()
}

/// The step for rows with these largest magnitudes and this sum in a panel, at most: NaN if a value is not finite, 0 if all
/// values count as zero.
#[inline(always)]
pub(super) fn step_of(largest: [u32; LANES], sum: f32) -> f32 {
    let largest = f32::from_bits(largest.into_iter().max().unwrap_or(0));
    if !largest.is_finite() {
        f32::NAN
    } else if largest > UNDERFLOW {
        (largest / GRAD_MAX).max(sum / SUM_MAX)
    } else {
        0.0
    }
}
