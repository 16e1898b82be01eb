//! Products of whole numbers in 16 bits: the backward through quantized weights where there is no bf16 dot product.
//!
//! A quantized weight is `scale * q + minimum` with a small integer q. Once the gradient is multiplied by the scales and rounded
//! to 16 bits, its product with the integers is one of whole numbers, and its sum is exact in 32 bits:
//!
//! ```text
//! dx[i] = sum over o of dy[o] * (scale[o] * q[o][i] + minimum[o])
//!       = unit * sum over o of z[o] * q[o][i]  +  sum over o of dy[o] * minimum[o],    z[o] = round(dy[o] * scale[o] / unit)
//! ```
//!
//! A row is rounded by its largest value among a panel's outputs: to one part in 2^15 of it, in 2^13 for integers of 8 bits
//! (bf16: every value to one part in 2^9). `vpmaddwd` multiplies and adds twice as many pairs in a cycle as AVX2 has
//! multiply-adds in f32.

use crate::Isa;
use crate::isa::per_isa;
use crate::simd::LANES;
use crate::weights::GROUP;

/// Most rows at a time: their sums for 16 inputs fill 12 of 16 registers.
const ROWS: usize = 6;
/// Most outputs of a panel: with [`range`], no sum leaves 32 bits.
pub(crate) const PANEL: usize = 1024;
/// Below this, a row's values in a panel count as zeros: their quotients would not be finite.
const LEAST: f32 = 1e-30;

/// The largest z for integers of so many bits: `PANEL * 2^bits * range < 2^31`.
fn range(bits: u8) -> f32 {
    if bits == 4 { 32767.0 } else { 8191.0 }
}

/// The weights of a panel, whole tiles of outputs by one group of inputs; kept from panel to panel.
#[derive(Default)]
pub(crate) struct Panel {
    /// Word [p][k]: the integers of outputs 2p (low half) and 2p + 1 for input k.
    pub(crate) words: Vec<u32>,
    /// One scale an output; by [`Panel::scaled`] what a gradient over its row's largest is multiplied by before it is rounded.
    pub(crate) factors: Vec<f32>,
    /// One minimum an output; empty where the layout has none.
    pub(crate) minima: Vec<f32>,
    /// A step of z, in scales, over the row's largest gradient.
    unit: f32,
    rounded: Vec<[u32; PANEL / 2]>,
}

/// Rows of the gradient in front of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// From the panel's first output on in the first row.
    pub(crate) values: &'a [f32],
    /// From a row to the next.
    pub(crate) stride: usize,
    /// Outputs that there are; the panel may have more, with scales of zero.
    pub(crate) outputs: usize,
    /// [`largest`] of each row's values in this panel.
    pub(crate) largest: &'a [f32],
    /// From a row's largest value to the next's.
    pub(crate) largest_stride: usize,
}

/// The largest magnitude; NaN where a value is not finite.
pub(crate) fn largest(isa: Isa, x: &[f32]) -> f32 {
    let x = f32::from_bits(largest_bits(isa, x));
    if x.is_finite() { x } else { f32::NAN }
}

impl Panel {
    /// Turns scales into factors, for integers of so many bits.
    pub(crate) fn scaled(&mut self, isa: Isa, bits: u8) {
        let most = largest(isa, &self.factors);
        let range = range(bits);
        let factor = if most > LEAST { range / most } else { 0.0 };
        for scale in &mut self.factors {
            *scale *= factor;
        }
        self.unit = most / range;
    }

    /// Adds the product of `count` rows with the panel to `out`, 32 columns, rows `out_stride` apart.
    ///
    /// # Safety
    /// `out` covers the rows.
    pub(crate) unsafe fn multiply(
        &mut self,
        isa: Isa,
        count: usize,
        rows: Rows,
        out: *mut f32,
        out_stride: usize,
    ) {
        let padded = self.factors.len();
        assert!(padded.is_multiple_of(LANES) && padded <= PANEL && rows.outputs <= padded);
        assert_eq!(self.words.len(), padded / 2 * GROUP);
        self.rounded.resize(ROWS, [0; PANEL / 2]);
        let mut short = [0f32; PANEL];
        for first in (0..count).step_by(ROWS) {
            let now = ROWS.min(count - first);
            let mut offsets = [0f32; ROWS];
            for (m, offset) in offsets.iter_mut().enumerate().take(now) {
                let mut x = &rows.values[(first + m) * rows.stride..][..rows.outputs];
                if rows.outputs < padded {
                    short[..rows.outputs].copy_from_slice(x);
                    x = &short[..padded];
                }
                let most = rows.largest[(first + m) * rows.largest_stride];
                let inverse = if most > LEAST { 1.0 / most } else { 0.0 };
                let to = &mut self.rounded[m][..padded / 2];
                round(isa, x, inverse, &self.factors, to);
                if !self.minima.is_empty() {
                    *offset = dot(isa, x, &self.minima);
                }
            }
            let mut sums = [[0i32; GROUP]; ROWS];
            sum_of_products(isa, &self.words, &self.rounded[..now], &mut sums);
            for m in 0..now {
                let most = rows.largest[(first + m) * rows.largest_stride];
                // SAFETY: the caller's contract.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(out.add((first + m) * out_stride), GROUP)
                };
                add(isa, &sums[m], most * self.unit, offsets[m], out);
            }
        }
    }
}

per_isa! {
    /// Magnitudes are ordered as their bits are; those of NaN come last.
    fn largest_bits(x: &[f32]) -> u32 {
        let mut lanes = [0u32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (most, v) in lanes.iter_mut().zip(chunk) {
                *most = (*most).max(v.to_bits() & 0x7fff_ffff);
            }
        }
        let rest = rest.iter().map(|v| v.to_bits() & 0x7fff_ffff);
        lanes.into_iter().chain(rest).max().unwrap_or(0)
    }
}

per_isa! {
    /// A sum in 16 chains, which are then added half by half.
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut sums = [0f32; LANES];
        for (x, y) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks::<LANES>().0) {
            for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                *sum = x.mul_add(*y, *sum);
            }
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
        }
        sums[0]
    }
}

per_isa! {
    fn add(sums: &[i32; GROUP], unit: f32, offset: f32, out: &mut [f32]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (*sum as f32).mul_add(unit, *out + offset);
        }
    }
}

/// Words of two whole numbers each: `x * inverse * factor`, to the nearest, to even between two.
fn round(isa: Isa, x: &[f32], inverse: f32, factors: &[f32], out: &mut [u32]) {
    assert!(x.len() == factors.len() && x.len() == 2 * out.len() && x.len().is_multiple_of(LANES));
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: such a device exists only where AVX2 is; the lengths are asserted above.
        return unsafe { x86::round(x, inverse, factors, out) };
    }
    let _ = isa;
    for ((out, x), f) in out
        .iter_mut()
        .zip(x.as_chunks::<2>().0)
        .zip(factors.as_chunks::<2>().0)
    {
        let whole = |i: usize| (x[i] * inverse * f[i]).round_ties_even() as i16 as u16;
        *out = u32::from(whole(0)) | u32::from(whole(1)) << 16;
    }
}

/// `sums[m][k] = sum over pairs of rows[m] times words[..][k]`.
fn sum_of_products(
    isa: Isa,
    words: &[u32],
    rows: &[[u32; PANEL / 2]],
    sums: &mut [[i32; GROUP]; ROWS],
) {
    assert!(words.len() <= PANEL / 2 * GROUP && rows.len() <= ROWS);
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: such a device exists only where AVX2 is.
        unsafe {
            return match rows.len() {
                6 => x86::products::<6>(words, rows, sums),
                5 => x86::products::<5>(words, rows, sums),
                4 => x86::products::<4>(words, rows, sums),
                3 => x86::products::<3>(words, rows, sums),
                2 => x86::products::<2>(words, rows, sums),
                _ => x86::products::<1>(words, rows, sums),
            };
        }
    }
    let _ = isa;
    let halves = |word: u32| [i32::from(word as i16), i32::from((word >> 16) as i16)];
    for (p, words) in words.as_chunks::<GROUP>().0.iter().enumerate() {
        for (row, sums) in rows.iter().zip(sums.iter_mut()) {
            let z = halves(row[p]);
            for (sum, word) in sums.iter_mut().zip(words) {
                let q = halves(*word);
                *sum += z[0] * q[0] + z[1] * q[1];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{GROUP, LANES, PANEL, ROWS};
    use crate::simd::unroll;
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX2; whole vectors of 16 values, as many words as pairs of them.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn round(x: &[f32], inverse: f32, factors: &[f32], out: &mut [u32]) {
        let inverse = _mm256_set1_ps(inverse);
        for i in (0..x.len()).step_by(LANES) {
            // SAFETY: the caller's contract.
            unsafe {
                let whole = |i: usize| {
                    let x = _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(i)), inverse);
                    _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_loadu_ps(factors.as_ptr().add(i))))
                };
                // Packing works by halves of 128 bits: the middle quarters change places.
                let packed = _mm256_packs_epi32(whole(i), whole(i + 8));
                let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                _mm256_storeu_si256(out.as_mut_ptr().add(i / 2).cast(), ordered);
            }
        }
    }

    /// # Safety
    /// AVX2; at least M rows.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn products<const M: usize>(
        words: &[u32],
        rows: &[[u32; PANEL / 2]],
        sums: &mut [[i32; GROUP]; ROWS],
    ) {
        assert!(M <= rows.len() && M <= ROWS);
        let pairs = words.len() / GROUP;
        for k in (0..GROUP).step_by(LANES) {
            let mut acc = [[_mm256_setzero_si256(); 2]; M];
            // SAFETY: `words` holds `pairs` groups, a row at least so many pairs.
            unsafe {
                let (w, z) = (words.as_ptr().add(k), rows.as_ptr().cast::<i32>());
                for p in 0..pairs {
                    let w = w.add(p * GROUP).cast::<__m256i>();
                    let w = [_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1))];
                    unroll!(M, |m| {
                        let z = _mm256_set1_epi32(*z.add(m * (PANEL / 2) + p));
                        unroll!(2, |n| {
                            acc[m][n] = _mm256_add_epi32(acc[m][n], _mm256_madd_epi16(w[n], z));
                        });
                    });
                }
                let sums = sums.as_mut_ptr().cast::<i32>().add(k);
                unroll!(M, |m| {
                    unroll!(2, |n| {
                        let to = sums.add(m * GROUP + 8 * n);
                        _mm256_storeu_si256(to.cast(), acc[m][n]);
                    });
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u32);
    impl Random {
        fn unit(&mut self) -> f32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
        }
    }

    fn isas() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    /// A panel of integers from `least` to `most`, with its integers by output.
    fn panel(
        r: &mut Random,
        outputs: usize,
        (least, most): (i32, i32),
        minima: bool,
    ) -> (Panel, Vec<[i32; GROUP]>) {
        let padded = outputs.next_multiple_of(LANES);
        let mut integer = || least + ((r.unit() + 1.0) / 2.0 * (most - least + 1) as f32) as i32;
        let integers: Vec<[i32; GROUP]> = (0..padded)
            .map(|_| std::array::from_fn(|_| integer().min(most)))
            .collect();
        let words = integers
            .as_chunks::<2>()
            .0
            .iter()
            .flat_map(|[low, high]| {
                (0..GROUP).map(|k| u32::from(low[k] as i16 as u16) | (high[k] as u32) << 16)
            })
            .collect();
        let mut scales: Vec<f32> = (0..padded).map(|_| 0.01 * r.unit()).collect();
        let mut lows: Vec<f32> = (0..padded).map(|_| 0.05 * r.unit()).collect();
        scales[outputs..].fill(0.0);
        lows[outputs..].fill(0.0);
        let panel = Panel {
            words,
            factors: scales,
            minima: if minima { lows } else { Vec::new() },
            ..Panel::default()
        };
        (panel, integers)
    }

    #[test]
    fn products_are_close_to_exact_ones_and_the_same_on_every_isa() {
        let mut r = Random(3);
        for (outputs, bits, integers, minima, rows) in [
            (1024, 4, (0, 15), true, 13),
            (1024, 8, (-128, 127), false, 6),
            (1024, 8, (0, 255), true, 1),
            (40, 4, (-8, 7), false, 4),
            (37, 4, (0, 15), true, 3),
        ] {
            let (scales, integers) = panel(&mut r, outputs, integers, minima);
            let stride = outputs + 5;
            let x: Vec<f32> = (0..rows * stride).map(|_| r.unit().powi(5)).collect();
            let start: Vec<f32> = (0..rows * 40).map(|_| r.unit()).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in isas() {
                let most: Vec<f32> = (0..rows)
                    .map(|m| largest(isa, &x[m * stride..][..outputs]))
                    .collect();
                let mut panel = Panel {
                    words: scales.words.clone(),
                    factors: scales.factors.clone(),
                    minima: scales.minima.clone(),
                    ..Panel::default()
                };
                panel.scaled(isa, bits);
                let rows_of = Rows {
                    values: &x,
                    stride,
                    outputs,
                    largest: &most,
                    largest_stride: 1,
                };
                let mut got = start.clone();
                // SAFETY: rows of 40 columns, of which 32 are written.
                unsafe { panel.multiply(isa, rows, rows_of, got.as_mut_ptr(), 40) };
                for m in 0..rows {
                    // Each of the products is off by half a unit, at most.
                    let step = f64::from(most[m] * panel.unit);
                    let size = integers.iter().flatten().map(|q| q.abs()).max().unwrap();
                    let bound = step * f64::from(size) * (outputs as f64).sqrt() + 1e-5;
                    for k in 0..40 {
                        let mut want = f64::from(start[m * 40 + k]);
                        for o in 0..if k < GROUP { outputs } else { 0 } {
                            let low = f64::from(scales.minima.get(o).copied().unwrap_or(0.0));
                            let weight =
                                f64::from(scales.factors[o]) * f64::from(integers[o][k]) + low;
                            want += f64::from(x[m * stride + o]) * weight;
                        }
                        let off = (f64::from(got[m * 40 + k]) - want).abs();
                        assert!(
                            off < bound,
                            "{outputs} outputs, row {m}, input {k}: {off} {bound}"
                        );
                    }
                }
                let first = first.get_or_insert_with(|| got.clone());
                assert_eq!(*first, got, "{}", isa.name());
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        let most = Rows {
            values: &[1.0; PANEL],
            stride: PANEL,
            outputs: PANEL,
            largest: &[1.0],
            largest_stride: 1,
        };
        for (bits, integer) in [(4, 15u32), (8, 255)] {
            for isa in isas() {
                let mut panel = Panel {
                    words: vec![integer | integer << 16; PANEL / 2 * GROUP],
                    factors: vec![1.0; PANEL],
                    ..Panel::default()
                };
                panel.scaled(isa, bits);
                let mut out = [0f32; GROUP];
                // SAFETY: one row of 32.
                unsafe { panel.multiply(isa, 1, most, out.as_mut_ptr(), GROUP) };
                let want = (PANEL as u32 * integer) as f32;
                assert!(
                    out.iter().all(|x| (x - want).abs() < 1e-4 * want),
                    "{out:?}"
                );
            }
        }
    }

    #[test]
    fn rows_that_are_zero_or_not_finite_stay_so() {
        let mut r = Random(5);
        let (mut panel, _) = panel(&mut r, 32, (0, 15), false);
        panel.scaled(Isa::Scalar, 4);
        let mut x = vec![0f32; 4 * 32];
        x[32 + 3] = f32::NAN;
        x[64 + 3] = f32::INFINITY;
        x[96 + 3] = 1e-35;
        for isa in isas() {
            let most: Vec<f32> = x.chunks(32).map(|row| largest(isa, row)).collect();
            let rows = Rows {
                values: &x,
                stride: 32,
                outputs: 32,
                largest: &most,
                largest_stride: 1,
            };
            let mut out = vec![0f32; 4 * GROUP];
            // SAFETY: four rows of 32.
            unsafe { panel.multiply(isa, 4, rows, out.as_mut_ptr(), GROUP) };
            assert!(out[..GROUP].iter().all(|x| *x == 0.0));
            assert!(out[GROUP..3 * GROUP].iter().all(|x| x.is_nan()));
            assert!(out[3 * GROUP..].iter().all(|x| *x == 0.0));
        }
    }
}
