//! Products of whole numbers in 16 bits: the backward where there is no bf16 dot product.
//!
//! Weights and gradients are rounded to whole numbers, so that a sum is exact in 32 bits and has no order:
//!
//! ```text
//! dx[i] = sum over o of dy[o] * w[o][i]  ~  step * sum over o of z[o] * q[o][i]
//! q[o][i] = round(w[o][i] / unit[o])        unit[o]: the largest magnitude of output o's weights, by 4095
//! z[o]    = round(dy[o] * unit[o] / step)   step: as small as leaves z in 16 bits and every sum in 32
//! ```
//!
//! As the units are the outputs' own, a row of the gradient is rounded once for all inputs. A sum is at most the row's sum of
//! magnitudes times 4095, and that is what bounds a step where the largest value does not: z has 10 to 15 bits, and q 12. bf16
//! rounds every value to 8. `vpmaddwd` multiplies and adds twice as many pairs in a cycle as AVX2 has multiply-adds in f32.

mod sparse;

pub(crate) use self::sparse::SparseRows;

use crate::Isa;
use crate::isa::per_isa;
use crate::pool::Scatter;
use crate::simd::LANES;
use crate::weights::GROUP;

/// Most rows at a time: their sums for 16 inputs fill 12 of 16 registers.
const ROWS: usize = 6;
/// Most outputs of a panel: some rows' values stay in the first cache, the words in the second.
pub(crate) const PANEL: usize = 1024;
/// The largest magnitude of a whole weight.
const LARGEST: f32 = 4095.0;
/// The largest magnitude of a whole gradient.
const WHOLE: f32 = 32767.0;
/// Most that a row's magnitudes may add up to in a panel before they are rounded, each by a half at most; a hundredth is left
/// for what the sum itself is off: `(MOST + PANEL / 2) * LARGEST < 2^31`.
const MOST: f32 = 519_000.0;
/// Below this, values count as zeros: their quotients would not be finite.
const LEAST: f32 = 1e-30;
/// Added to a number below 2^22, this leaves the nearest integer, to even between two, in the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// What a whole weight counts where the largest magnitude is this: zero for what has no quotient.
pub(crate) fn unit(largest: f32) -> f32 {
    // NaN stays NaN.
    if largest < LEAST * LARGEST {
        0.0
    } else {
        largest / LARGEST
    }
}

/// Rows of the gradient as whole numbers, in the order in which they are read: panel by panel, in a panel [`ROWS`] rows at a time,
/// of these pair by pair of outputs, row by row.
#[derive(Default)]
pub(crate) struct WholeRows {
    /// Two outputs a word, low half first.
    words: Vec<u32>,
    /// What a whole number counts, for each panel of each row; NaN where a value is not finite.
    steps: Vec<f32>,
    rows: usize,
    /// Outputs, to whole tiles.
    padded: usize,
}

impl WholeRows {
    /// Makes room; what it held before is forgotten.
    pub(crate) fn resize(&mut self, rows: usize, outputs: usize) {
        (self.rows, self.padded) = (rows, outputs.next_multiple_of(LANES));
        self.words.resize(rows * self.padded / 2, 0);
        self.steps.resize(rows * self.panels(), 0.0);
    }

    fn panels(&self) -> usize {
        self.padded.div_ceil(PANEL)
    }

    pub(crate) fn writer(&mut self) -> WholeWriter<'_> {
        WholeWriter {
            rows: self.rows,
            padded: self.padded,
            panels: self.panels(),
            words: Scatter::new(&mut self.words),
            steps: Scatter::new(&mut self.steps),
        }
    }
}

/// Where the first word of panel `index` of rows `first..`, a group's, lies.
fn group_at(rows: usize, padded: usize, index: usize, first: usize) -> usize {
    let width = PANEL.min(padded - index * PANEL);
    (rows * index * PANEL + first * width) / 2
}

/// Writes rows of [`WholeRows`], from several threads.
pub(crate) struct WholeWriter<'a> {
    rows: usize,
    padded: usize,
    panels: usize,
    words: Scatter<'a, u32>,
    steps: Scatter<'a, f32>,
}

impl WholeWriter<'_> {
    /// Rounds row `row`, panel by panel. `units` are whole tiles.
    ///
    /// # Safety
    /// No other thread writes this row meanwhile.
    pub(crate) unsafe fn write(&self, isa: Isa, row: usize, x: &[f32], units: &[f32]) {
        assert!(row < self.rows && units.len() == self.padded);
        assert!(x.len() <= units.len() && x.len().div_ceil(PANEL) == self.panels);
        let first = row / ROWS * ROWS;
        for (index, (x, units)) in x.chunks(PANEL).zip(units.chunks(PANEL)).enumerate() {
            let at = group_at(self.rows, self.padded, index, first) + row - first;
            let to = Cells {
                words: self.words.pointer(at),
                stride: ROWS.min(self.rows - first),
            };
            let step = round(isa, x, units, to);
            // SAFETY: the caller's contract.
            unsafe { *self.steps.pointer(row * self.panels + index) = step };
        }
    }
}

/// Where the pairs of one row's panel go, `stride` words apart. Made by [`WholeWriter::write`] alone, which saw that there is room.
#[derive(Clone, Copy)]
struct Cells {
    words: *mut u32,
    stride: usize,
}

per_isa! {
    /// `round(x * units / step)`, zeros past the end of `x`; returns the step.
    fn round(x: &[f32], units: &[f32], to: Cells) -> f32 {
        let mut largest = [0u32; LANES];
        let mut sums = [0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        let (units, last_units) = units.as_chunks::<LANES>().0.split_at(chunks.len());
        let mut last = [0f32; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let last = [last];
        let last = &last[..last_units.len()];
        let all = || chunks.iter().zip(units).chain(last.iter().zip(last_units));
        for (x, unit) in all() {
            for lane in 0..LANES {
                let size = (x[lane] * unit[lane]).to_bits() & 0x7fff_ffff;
                // Magnitudes are ordered as their bits are; those of NaN come last.
                largest[lane] = largest[lane].max(size);
                sums[lane] += f32::from_bits(size);
            }
        }
        let most = f32::from_bits(largest.into_iter().max().unwrap_or(0));
        let sum: f32 = sums.iter().sum();
        let step = if !most.is_finite() {
            f32::NAN
        } else if most > LEAST {
            (most / WHOLE).max(sum / MOST)
        } else {
            0.0
        };
        let factor = if step > 0.0 { 1.0 / step } else { 0.0 };
        for (tile, (x, unit)) in all().enumerate() {
            let mut bits = [0u32; LANES];
            for lane in 0..LANES {
                bits[lane] = (x[lane] * unit[lane] * factor + MAGIC).to_bits();
            }
            for (i, pair) in bits.as_chunks::<2>().0.iter().enumerate() {
                let word = pair[0] & 0xffff | pair[1] << 16;
                // SAFETY: `Cells` has room for the pairs of all units, and its maker's caller keeps other threads off them.
                unsafe { *to.words.add((tile * LANES / 2 + i) * to.stride) = word };
            }
        }
        step
    }
}

per_isa! {
    /// Weights of 16 outputs, as whole numbers in pairs of outputs: word [half][p][k] holds outputs 2p (low half) and 2p + 1 for
    /// input k of 16.
    pub(crate) fn round_block(
        block: &[[f32; LANES]; GROUP],
        units: &[f32; LANES],
        words: [&mut [[u32; LANES]; LANES / 2]; 2],
    ) {
        let inverse = units.map(|unit| if unit > 0.0 { 1.0 / unit } else { 0.0 });
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

/// Weights of a panel: 32 inputs of whole tiles of outputs.
#[derive(Default)]
pub(crate) struct Panel {
    /// Pairs of outputs for the first 16 inputs, then for the others.
    halves: [Vec<[u32; LANES]>; 2],
}

impl Panel {
    /// Makes room, and gives it tile by tile.
    pub(crate) fn tiles(
        &mut self,
        tiles: usize,
    ) -> impl Iterator<Item = [&mut [[u32; LANES]; LANES / 2]; 2]> {
        let [low, high] = self.halves.each_mut().map(|half| {
            half.resize(tiles * LANES / 2, [0; LANES]);
            half.as_chunks_mut::<{ LANES / 2 }>().0.iter_mut()
        });
        low.zip(high).map(|(low, high)| [low, high])
    }
}

/// The product of all rows with a panel, whose first output is `PANEL * index`, onto `out`, 32 columns, rows `out_row` apart: in
/// place of what is there, or added to it.
///
/// # Safety
/// `out` covers the rows, and no other thread touches these columns.
pub(crate) unsafe fn multiply(
    isa: Isa,
    rows: &WholeRows,
    index: usize,
    panel: &Panel,
    out: *mut f32,
    out_row: usize,
    add: bool,
) {
    let width = PANEL.min(rows.padded - index * PANEL);
    let panels = rows.panels();
    for first in (0..rows.rows).step_by(ROWS) {
        let count = ROWS.min(rows.rows - first);
        let at = group_at(rows.rows, rows.padded, index, first);
        for (half, words) in panel.halves.iter().enumerate() {
            assert_eq!(2 * words.len(), width);
            let job = Job {
                words,
                places: None,
                values: &rows.words[at..][..count * width / 2],
                steps: &rows.steps[first * panels + index..][..(count - 1) * panels + 1],
                steps_row: panels,
                // SAFETY: inside, by the caller's contract.
                out: unsafe { out.add(first * out_row + half * LANES) },
                out_row,
                add,
            };
            // SAFETY: the caller's contract, and the slices' lengths.
            unsafe { some_rows(isa, count, job) };
        }
    }
}

/// A few rows against 16 inputs of a panel.
#[derive(Clone, Copy)]
struct Job<'a> {
    words: &'a [[u32; LANES]],
    /// Which of the words are multiplied; without, all.
    places: Option<&'a [u16]>,
    /// Those of each pair of outputs that is multiplied, row by row.
    values: &'a [u32],
    steps: &'a [f32],
    steps_row: usize,
    out: *mut f32,
    out_row: usize,
    add: bool,
}

/// # Safety
/// The job's slices and pointer cover `count` rows, of at most [`ROWS`]; its places are among the words.
unsafe fn some_rows(isa: Isa, count: usize, job: Job) {
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
    use crate::simd::unroll;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;

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

    fn rounded(
        isa: Isa,
        x: &[f32],
        rows: usize,
        stride: usize,
        outputs: usize,
        units: &[f32],
    ) -> WholeRows {
        let mut whole = WholeRows::default();
        whole.resize(rows, outputs);
        let to = whole.writer();
        for m in 0..rows {
            // SAFETY: one thread.
            unsafe { to.write(isa, m, &x[m * stride..][..outputs], units) };
        }
        whole
    }

    /// Weights of whole tiles of outputs, [output][input]: their units, and their panels.
    fn panels(isa: Isa, weights: &[[f32; GROUP]]) -> (Vec<f32>, Vec<Panel>) {
        let largest = |w: &[f32; GROUP]| w.iter().fold(0f32, |most, w| most.max(w.abs()));
        let units: Vec<f32> = weights.iter().map(|w| unit(largest(w))).collect();
        let panel = |(weights, units): (&[[f32; GROUP]], &[f32])| {
            let mut panel = Panel::default();
            let tiles = weights
                .as_chunks::<LANES>()
                .0
                .iter()
                .zip(units.as_chunks::<LANES>().0);
            for ((tile, units), words) in tiles.zip(panel.tiles(weights.len() / LANES)) {
                let block: [[f32; LANES]; GROUP] =
                    std::array::from_fn(|k| std::array::from_fn(|lane| tile[lane][k]));
                round_block(isa, &block, units, words);
            }
            panel
        };
        let panels = weights
            .chunks(PANEL)
            .zip(units.chunks(PANEL))
            .map(panel)
            .collect();
        (units, panels)
    }

    #[test]
    fn products_are_close_to_exact_ones_and_the_same_on_every_isa() {
        let mut r = Random(3);
        for (outputs, rows, heavy) in [
            (1024, 113, 1),
            (512, 6, 9),
            (1100, 7, 3),
            (40, 4, 5),
            (37, 3, 1),
        ] {
            let padded = usize::next_multiple_of(outputs, LANES);
            let mut weights = vec![[0f32; GROUP]; padded];
            for weights in &mut weights[..outputs] {
                let size = 10f32.powf(2.0 * r.unit());
                weights.fill_with(|| size * r.unit());
            }
            let stride = outputs + 5;
            let x: Vec<f32> = (0..rows * stride).map(|_| r.unit().powi(heavy)).collect();
            let start: Vec<f32> = (0..rows * 40).map(|_| r.unit()).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in isas() {
                let (units, panels) = panels(isa, &weights);
                let gradient = rounded(isa, &x, rows, stride, outputs, &units);
                let mut got = start.clone();
                // SAFETY: rows of 40 columns, of which 32 are written.
                unsafe {
                    for (index, panel) in panels.iter().enumerate() {
                        multiply(isa, &gradient, index, panel, got.as_mut_ptr(), 40, true);
                    }
                }
                for m in 0..rows {
                    let x = &x[m * stride..][..outputs];
                    // Either factor is off by half a step at most, with either sign, and the result is an f32.
                    let steps = &gradient.steps[m * gradient.panels()..][..gradient.panels()];
                    let step = f64::from(steps.iter().fold(0f32, |most, step| most.max(*step)));
                    let off = |x: f32, unit: f32| {
                        (0.5 * f64::from((x * unit).abs())).powi(2)
                            + (0.5 * step * f64::from(LARGEST)).powi(2)
                    };
                    let bound: f64 = x.iter().zip(&units).map(|(x, unit)| off(*x, *unit)).sum();
                    let bound = 4.0 * bound.sqrt() + 1e-5;
                    for k in 0..40 {
                        let mut want = f64::from(start[m * 40 + k]);
                        for (x, weights) in x.iter().zip(&weights) {
                            want += f64::from(*x) * weights.get(k).map_or(0.0, |w| f64::from(*w));
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
    fn a_softmaxs_gradient_is_close_to_the_exact_one_and_the_same_on_every_isa() {
        let mut r = Random(7);
        for (outputs, rows) in [(5000, 13), (1024, 6), (37, 3), (2049, 1)] {
            let padded = usize::next_multiple_of(outputs, LANES);
            let mut weights = vec![[0f32; GROUP]; padded];
            let tilt: [f32; GROUP] = std::array::from_fn(|_| 0.3 * r.unit());
            for weights in &mut weights[..outputs] {
                *weights = tilt.map(|tilt| tilt + r.unit());
            }
            let mean: [f32; GROUP] =
                std::array::from_fn(|k| weights.iter().map(|w| w[k]).sum::<f32>() / outputs as f32);
            // From what nobody is sure of to what everybody is; and one that is wrong, where the small ones count together.
            let x: Vec<f32> = (0..rows)
                .flat_map(|m| {
                    let target = m * 7 % outputs;
                    let sure = (20 * m + 1) as f32;
                    let mut x: Vec<f32> = (0..outputs)
                        .map(|_| (sure * (r.unit() - 1.0)).exp())
                        .collect();
                    if m + 1 == rows {
                        x.fill_with(|| 0.7 + 0.3 * r.unit());
                        x[target + 1] = 1e5;
                    }
                    let sum: f32 = x.iter().sum();
                    x.into_iter()
                        .enumerate()
                        .map(move |(o, x)| x / sum - f32::from(u8::from(o == target)))
                })
                .collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in isas() {
                let (units, panels) = panels(isa, &weights);
                let mut gradient = SparseRows::default();
                // What was there before is forgotten.
                for _ in 0..2 {
                    gradient.fill(isa, &Pool::new(3), &x, rows, &units);
                }
                let mut got = vec![0f32; rows * 40];
                // SAFETY: rows of 40 columns, of which 32 are written.
                unsafe {
                    for (index, panel) in panels.iter().enumerate() {
                        gradient.multiply(isa, index, panel, got.as_mut_ptr(), 40);
                    }
                }
                for (m, rest) in gradient.rest().enumerate() {
                    for (got, mean) in got[m * 40..].iter_mut().zip(mean) {
                        *got += rest * mean;
                    }
                }
                for m in 0..rows {
                    let (mut off, mut size) = (0f64, 0f64);
                    for k in 0..GROUP {
                        let each = x[m * outputs..][..outputs].iter().zip(&weights);
                        let want: f64 = each.map(|(x, w)| f64::from(*x) * f64::from(w[k])).sum();
                        off += (f64::from(got[m * 40 + k]) - want).powi(2);
                        size += want.powi(2);
                    }
                    let off = (off / size).sqrt();
                    assert!(off < 1e-3, "{outputs} outputs, row {m}: {off}");
                }
                let all = rows.div_ceil(ROWS) * padded / 2;
                assert!(outputs < 5000 || 3 * gradient.counted() < 2 * all);
                let first = first.get_or_insert_with(|| got.clone());
                assert_eq!(*first, got, "{}", isa.name());
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        // One value that fills 16 bits, values that fill the sum, and something between.
        for large in [1, 10, 100, PANEL] {
            let mut x = [0f32; PANEL];
            x[..large].fill(-1.0);
            for isa in isas() {
                let (units, panels) = panels(isa, &[[0.5; GROUP]; PANEL]);
                let gradient = rounded(isa, &x, 1, PANEL, PANEL, &units);
                let mut out = [7f32; GROUP];
                // SAFETY: one row of 32.
                unsafe {
                    multiply(
                        isa,
                        &gradient,
                        0,
                        &panels[0],
                        out.as_mut_ptr(),
                        GROUP,
                        false,
                    )
                };
                let want = -0.5 * large as f32;
                assert!(
                    out.iter().all(|x| (x / want - 1.0).abs() < 1e-3),
                    "{large} values: {out:?}"
                );
            }
        }
    }

    #[test]
    fn rows_that_are_zero_or_not_finite_stay_so() {
        let mut r = Random(5);
        let weights: Vec<[f32; GROUP]> =
            (0..32).map(|_| std::array::from_fn(|_| r.unit())).collect();
        let mut x = vec![0f32; 4 * 32];
        x[32 + 3] = f32::NAN;
        x[64 + 3] = f32::INFINITY;
        x[96 + 3] = 1e-35;
        for isa in isas() {
            let (units, panels) = panels(isa, &weights);
            let rows = rounded(isa, &x, 4, 32, 32, &units);
            let mut out = vec![7f32; 4 * GROUP];
            // SAFETY: four rows of 32.
            unsafe { multiply(isa, &rows, 0, &panels[0], out.as_mut_ptr(), GROUP, false) };
            assert!(out[..GROUP].iter().all(|x| *x == 0.0));
            assert!(out[GROUP..3 * GROUP].iter().all(|x| x.is_nan()));
            assert!(out[3 * GROUP..].iter().all(|x| *x == 0.0));
        }
    }
}
