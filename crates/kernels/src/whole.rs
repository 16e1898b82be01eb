//! Products of whole numbers in 16 bits: the backward through quantized weights where there is no bf16 dot product.
//!
//! A quantized weight is `scale * q + minimum` with a small integer q. Once the gradient and the scales are rounded to 16 bits, its
//! product with the integers is one of whole numbers, and its sum is exact in 32 bits:
//!
//! ```text
//! dx[i] = sum over o of dy[o] * (scale[o] * q[o][i] + minimum[o])
//!       ~ unit * sum over o of z[o] * q[o][i]  +  sum over o of dy[o] * minimum[o],    z[o] = round(dy[o] * scale[o] / unit)
//! ```
//!
//! A row is rounded by its largest value among a panel's outputs, to one part in 2^15 of it, and a panel's scales and minima by
//! theirs (2^13 for scales of integers of 8 bits). bf16 rounds every value to one part in 2^9. `vpmaddwd` multiplies and adds
//! twice as many pairs in a cycle as AVX2 has multiply-adds in f32.

use crate::Isa;
use crate::isa::per_isa;
use crate::simd::LANES;
use crate::weights::GROUP;

/// Most rows at a time: their sums for 16 inputs fill 12 of 16 registers.
const ROWS: usize = 6;
/// Most outputs of a panel: with [`range`], no sum leaves 32 bits.
pub(crate) const PANEL: usize = 1024;
/// What the largest value becomes.
const WHOLE: f32 = 32767.0;
/// Below this, values count as zeros: their quotients would not be finite.
const LEAST: f32 = 1e-30;

/// What the largest scale becomes for integers of so many bits: `PANEL * 2^bits * range < 2^31`.
fn range(bits: u8) -> f32 {
    if bits == 4 { WHOLE } else { 8191.0 }
}

/// Rows of the gradient as whole numbers.
#[derive(Default)]
pub(crate) struct WholeRows {
    /// Row after row, each a whole number of tiles, zeros past its end.
    pub(crate) values: Vec<i16>,
    /// The largest magnitude of each panel of each row; NaN where one is not finite.
    pub(crate) largest: Vec<f32>,
    /// Values of a row.
    pub(crate) padded: usize,
    /// Panels of a row.
    pub(crate) panels: usize,
}

impl WholeRows {
    /// Makes room, all zeros.
    pub(crate) fn new(rows: usize, outputs: usize) -> WholeRows {
        let (padded, panels) = (outputs.next_multiple_of(LANES), outputs.div_ceil(PANEL));
        WholeRows {
            values: vec![0; rows * padded],
            largest: vec![0.0; rows * panels],
            padded,
            panels,
        }
    }
}

/// Rounds a row of the gradient, panel by panel.
pub(crate) fn round_row(isa: Isa, x: &[f32], values: &mut [i16], largest: &mut [f32]) {
    for ((x, values), most) in x.chunks(PANEL).zip(values.chunks_mut(PANEL)).zip(largest) {
        *most = round(isa, x, WHOLE, values);
    }
}

/// `values = round(x / largest * range)`; returns the largest magnitude, NaN where a value is not finite.
fn round(isa: Isa, x: &[f32], range: f32, values: &mut [i16]) -> f32 {
    let most = f32::from_bits(largest_bits(isa, x));
    let factor = if most > LEAST { range / most } else { 0.0 };
    times(isa, x, factor, values);
    if most.is_finite() { most } else { f32::NAN }
}

/// The weights of a panel, whole tiles of outputs by one group of inputs; kept from panel to panel.
#[derive(Default)]
pub(crate) struct Panel {
    /// Word [p][k]: the integers of outputs 2p (low half) and 2p + 1 for input k.
    pub(crate) words: Vec<u32>,
    /// One scale an output.
    pub(crate) scales: Vec<f32>,
    /// One minimum an output; empty where the layout has none.
    pub(crate) minima: Vec<f32>,
    /// Scales and minima as whole numbers, and their steps.
    whole_scales: Vec<i16>,
    whole_minima: Vec<i16>,
    scale_step: f32,
    minimum_step: f32,
    products: Vec<[i16; PANEL]>,
}

impl Panel {
    /// Rounds scales and minima, for integers of so many bits.
    pub(crate) fn round(&mut self, isa: Isa, bits: u8) {
        self.whole_scales.resize(self.scales.len(), 0);
        self.whole_minima.resize(self.minima.len(), 0);
        let most = round(isa, &self.scales, range(bits), &mut self.whole_scales);
        // A product of two whole numbers is shifted by 15 bits.
        self.scale_step = most / range(bits) * (32768.0 / WHOLE);
        let most = round(isa, &self.minima, WHOLE, &mut self.whole_minima);
        self.minimum_step = most / WHOLE / WHOLE;
    }

    /// Adds the product of all rows with the panel, whose first output is `PANEL * index`, to `out`, 32 columns, rows
    /// `out_stride` apart.
    ///
    /// # Safety
    /// `out` covers the rows.
    pub(crate) unsafe fn multiply(
        &mut self,
        isa: Isa,
        rows: &WholeRows,
        index: usize,
        out: *mut f32,
        out_stride: usize,
    ) {
        let padded = self.whole_scales.len();
        assert!(padded.is_multiple_of(LANES) && padded <= PANEL);
        assert_eq!(self.words.len(), padded / 2 * GROUP);
        self.products.resize(ROWS, [0; PANEL]);
        let count = rows.largest.len() / rows.panels;
        for first in (0..count).step_by(ROWS) {
            let now = ROWS.min(count - first);
            let mut offsets = [0f32; ROWS];
            for (m, offset) in offsets.iter_mut().enumerate().take(now) {
                let from = (first + m) * rows.padded + index * PANEL;
                let y = &rows.values[from..][..padded];
                let to = &mut self.products[m][..padded];
                *offset = times_panel(isa, y, &self.whole_scales, &self.whole_minima, to);
            }
            let mut sums = [[0i32; GROUP]; ROWS];
            sum_of_products(isa, &self.words, &self.products[..now], &mut sums);
            for m in 0..now {
                let most = rows.largest[(first + m) * rows.panels + index];
                let (unit, offset) = (
                    most * self.scale_step,
                    most * self.minimum_step * offsets[m],
                );
                // SAFETY: the caller's contract.
                let out = unsafe { &mut *out.add((first + m) * out_stride).cast::<[f32; GROUP]>() };
                add(isa, &sums[m], unit, offset, out);
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
    fn add(sums: &[i32; GROUP], unit: f32, offset: f32, out: &mut [f32; GROUP]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (*sum as f32).mul_add(unit, *out + offset);
        }
    }
}

/// `values = x * factor`, to the nearest, to even between two; products within 16 bits.
fn times(isa: Isa, x: &[f32], factor: f32, values: &mut [i16]) {
    let values = &mut values[..x.len()];
    let whole = x.len() / LANES * LANES;
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: such a device exists only where AVX2 is; whole vectors of both.
        unsafe { x86::times(&x[..whole], factor, &mut values[..whole]) };
        return times_each(&x[whole..], factor, &mut values[whole..]);
    }
    let _ = (isa, whole);
    times_each(x, factor, values);
}

fn times_each(x: &[f32], factor: f32, values: &mut [i16]) {
    for (value, x) in values.iter_mut().zip(x) {
        *value = (x * factor).round_ties_even() as i16;
    }
}

/// `products = y * scales`, shifted by 15 bits and rounded; returns the sum of `y * minima` where there are minima.
fn times_panel(isa: Isa, y: &[i16], scales: &[i16], minima: &[i16], products: &mut [i16]) -> f32 {
    assert!(y.len() == scales.len() && y.len() == products.len() && y.len().is_multiple_of(LANES));
    assert!(minima.is_empty() || minima.len() == y.len());
    // Pairs of products in 8 chains, which are then added half by half.
    let mut sums = [0f32; 8];
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: such a device exists only where AVX2 is; the lengths are asserted above.
        unsafe {
            if minima.is_empty() {
                x86::times_panel::<false>(y, scales, minima, products, &mut sums);
            } else {
                x86::times_panel::<true>(y, scales, minima, products, &mut sums);
            }
        }
        return fold(sums);
    }
    let _ = isa;
    for ((product, y), scale) in products.iter_mut().zip(y).zip(scales) {
        *product = ((((i32::from(*y) * i32::from(*scale)) >> 14) + 1) >> 1) as i16;
    }
    for (y, minima) in y
        .as_chunks::<LANES>()
        .0
        .iter()
        .zip(minima.as_chunks::<LANES>().0)
    {
        for (i, sum) in sums.iter_mut().enumerate() {
            let product = |i: usize| i32::from(y[i]) * i32::from(minima[i]);
            *sum += (product(2 * i) + product(2 * i + 1)) as f32;
        }
    }
    fold(sums)
}

fn fold(mut sums: [f32; 8]) -> f32 {
    for half in [4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// `sums[m][k] = sum over pairs of rows[m] times words[..][k]`.
fn sum_of_products(
    isa: Isa,
    words: &[u32],
    rows: &[[i16; PANEL]],
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
    for (p, words) in words.as_chunks::<GROUP>().0.iter().enumerate() {
        for (row, sums) in rows.iter().zip(sums.iter_mut()) {
            let z = [row[2 * p], row[2 * p + 1]].map(i32::from);
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum += z[0] * i32::from(*word as i16) + z[1] * i32::from((word >> 16) as i16);
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
    /// AVX2; whole vectors of 16, as many values as products.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn times(x: &[f32], factor: f32, values: &mut [i16]) {
        let factor = _mm256_set1_ps(factor);
        for i in (0..x.len()).step_by(LANES) {
            // SAFETY: the caller's contract.
            unsafe {
                let whole = |i: usize| {
                    _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(i)), factor))
                };
                // Packing works by halves of 128 bits: the middle quarters change places.
                let packed = _mm256_packs_epi32(whole(i), whole(i + 8));
                let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                _mm256_storeu_si256(values.as_mut_ptr().add(i).cast(), ordered);
            }
        }
    }

    /// # Safety
    /// AVX2; whole vectors of 16, all of one length, but for the minima where there are none.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn times_panel<const MINIMA: bool>(
        y: &[i16],
        scales: &[i16],
        minima: &[i16],
        products: &mut [i16],
        sums: &mut [f32; 8],
    ) {
        let mut sum = _mm256_setzero_ps();
        for i in (0..y.len()).step_by(LANES) {
            // SAFETY: the caller's contract.
            unsafe {
                let load = |from: &[i16]| _mm256_loadu_si256(from.as_ptr().add(i).cast());
                let y = load(y);
                let product = _mm256_mulhrs_epi16(y, load(scales));
                _mm256_storeu_si256(products.as_mut_ptr().add(i).cast(), product);
                if MINIMA {
                    let pairs = _mm256_madd_epi16(y, load(minima));
                    sum = _mm256_add_ps(sum, _mm256_cvtepi32_ps(pairs));
                }
            }
        }
        // SAFETY: eight values.
        unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), sum) };
    }

    /// # Safety
    /// AVX2; at least M rows.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn products<const M: usize>(
        words: &[u32],
        rows: &[[i16; PANEL]],
        sums: &mut [[i32; GROUP]; ROWS],
    ) {
        assert!(M <= rows.len() && M <= ROWS);
        let pairs = words.len() / GROUP;
        for k in (0..GROUP).step_by(LANES) {
            let mut acc = [[_mm256_setzero_si256(); 2]; M];
            // SAFETY: `words` holds `pairs` groups, a row at least so many pairs (read without alignment).
            unsafe {
                let (w, z) = (words.as_ptr().add(k), rows.as_ptr().cast::<i32>());
                for p in 0..pairs {
                    let w = w.add(p * GROUP).cast::<__m256i>();
                    let w = [_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1))];
                    unroll!(M, |m| {
                        let z = _mm256_set1_epi32(z.add(m * (PANEL / 2) + p).read_unaligned());
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

    fn rounded(isa: Isa, x: &[f32], rows: usize, stride: usize, outputs: usize) -> WholeRows {
        let mut whole = WholeRows::new(rows, outputs);
        for m in 0..rows {
            round_row(
                isa,
                &x[m * stride..][..outputs],
                &mut whole.values[m * whole.padded..][..whole.padded],
                &mut whole.largest[m * whole.panels..][..whole.panels],
            );
        }
        whole
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
            scales,
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
            let (panel, integers) = panel(&mut r, outputs, integers, minima);
            let stride = outputs + 5;
            let x: Vec<f32> = (0..rows * stride).map(|_| r.unit().powi(5)).collect();
            let start: Vec<f32> = (0..rows * 40).map(|_| r.unit()).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in isas() {
                let gradient = rounded(isa, &x, rows, stride, outputs);
                let mut panel = Panel {
                    words: panel.words.clone(),
                    scales: panel.scales.clone(),
                    minima: panel.minima.clone(),
                    ..Panel::default()
                };
                panel.round(isa, bits);
                let mut got = start.clone();
                // SAFETY: rows of 40 columns, of which 32 are written.
                unsafe { panel.multiply(isa, &gradient, 0, got.as_mut_ptr(), 40) };
                for m in 0..rows {
                    // A z is off by one, at most, with either sign; so is each of the rounded minima and its gradient.
                    let most = f64::from(gradient.largest[m]);
                    let size = integers.iter().flatten().map(|q| q.abs()).max().unwrap();
                    let step = most * f64::from(panel.scale_step) * f64::from(size)
                        + 2.0 * most * f64::from(panel.minimum_step * WHOLE);
                    let bound = step * (outputs as f64).sqrt() + 1e-5;
                    for k in 0..40 {
                        let mut want = f64::from(start[m * 40 + k]);
                        for o in 0..if k < GROUP { outputs } else { 0 } {
                            let low = f64::from(panel.minima.get(o).copied().unwrap_or(0.0));
                            let weight =
                                f64::from(panel.scales[o]) * f64::from(integers[o][k]) + low;
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
        for (bits, integer) in [(4, 15u32), (8, 255)] {
            for isa in isas() {
                let most = rounded(isa, &[1.0; PANEL], 1, PANEL, PANEL);
                let mut panel = Panel {
                    words: vec![integer | integer << 16; PANEL / 2 * GROUP],
                    scales: vec![1.0; PANEL],
                    ..Panel::default()
                };
                panel.round(isa, bits);
                let mut out = [0f32; GROUP];
                // SAFETY: one row of 32.
                unsafe { panel.multiply(isa, &most, 0, out.as_mut_ptr(), GROUP) };
                let want = (PANEL as u32 * integer) as f32;
                assert!(
                    out.iter().all(|x| (x - want).abs() < 2e-4 * want),
                    "{out:?}"
                );
            }
        }
    }

    #[test]
    fn rows_that_are_zero_or_not_finite_stay_so() {
        let mut r = Random(5);
        let (mut panel, _) = panel(&mut r, 32, (0, 15), false);
        panel.round(Isa::Scalar, 4);
        let mut x = vec![0f32; 4 * 32];
        x[32 + 3] = f32::NAN;
        x[64 + 3] = f32::INFINITY;
        x[96 + 3] = 1e-35;
        for isa in isas() {
            let rows = rounded(isa, &x, 4, 32, 32);
            let mut out = vec![0f32; 4 * GROUP];
            // SAFETY: four rows of 32.
            unsafe { panel.multiply(isa, &rows, 0, out.as_mut_ptr(), GROUP) };
            assert!(out[..GROUP].iter().all(|x| *x == 0.0));
            assert!(out[GROUP..3 * GROUP].iter().all(|x| x.is_nan()));
            assert!(out[3 * GROUP..].iter().all(|x| *x == 0.0));
        }
    }
}
