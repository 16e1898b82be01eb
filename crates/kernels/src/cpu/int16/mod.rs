//! Products of 16-bit integers: the backward on machines without a bf16 dot product.
//!
//! Weights and gradients are rounded to integers, so a sum is exact in 32 bits, in any order of its terms:
//!
//! ```text
//! dx[i] = sum over o of dy[o] * w[o][i]  ~  step * sum over o of z[o] * q[o][i]
//! q[o][i] = round(w[o][i] / unit[o])        unit[o]: the largest magnitude of output o's weights, divided by 4095
//! z[o]    = round(dy[o] * unit[o] / step)   step: the smallest that keeps z in 16 bits and every sum in 32
//! ```
//!
//! Units belong to outputs, so a row of the gradient is rounded once for all inputs. A sum is at most the row's sum of magnitudes
//! times 4095; a step is bounded by that sum or by the row's largest value: z has 10 to 15 bits, and q 12. bf16
//! rounds every value to 8. `vpmaddwd` multiplies and adds twice as many pairs in a cycle as AVX2 has multiply-adds in f32.

mod products;
mod sparse;
#[cfg(test)]
mod tests;
mod weights;
mod words;

pub(crate) use self::sparse::SparseRows;

use self::products::{Job, some_rows};
use crate::cpu::isa::Isa;
use crate::cpu::isa::per_isa;
use crate::cpu::pool::Scatter;
use crate::cpu::simd::LANES;

/// The number of rows multiplied at a time, at most: their sums for 16 inputs fill 12 of 16 registers.
const ROWS: usize = 6;
/// The number of outputs in a panel, at most: a few rows' values stay in the L1 cache, the words in L2.
pub(crate) const PANEL: usize = 1024;
/// The largest magnitude of an integer weight.
const WEIGHT_MAX: f32 = 4095.0;
/// The largest magnitude of an integer gradient.
const GRAD_MAX: f32 = 32767.0;
/// The largest sum of a row's magnitudes in a panel, before each is rounded by at most a half. It leaves one percent for the
/// error of the sum itself: `(SUM_MAX + PANEL / 2) * WEIGHT_MAX < 2^31`.
const SUM_MAX: f32 = 519_000.0;
/// Values below this count as zero: their quotients would not be finite.
const UNDERFLOW: f32 = 1e-30;
/// Added to a number below 2^22, this leaves the nearest integer, to even between two, in the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// The unit of an output whose largest weight has this magnitude: zero if quotients would not be finite.
pub(crate) fn unit_of(largest: f32) -> f32 {
    // NaN stays NaN.
    if largest < UNDERFLOW * WEIGHT_MAX {
        0.0
    } else {
        largest / WEIGHT_MAX
    }
}

/// Rows of the gradient as integers, in the order in which they are read: by panel, then by group of [`ROWS`] rows, then by pair
/// of outputs, then by row.
#[derive(Default)]
pub(crate) struct Int16Rows {
    /// Two outputs a word, low half first.
    words: Vec<u32>,
    /// The value of an integer 1, for each panel of each row; NaN if a value is not finite.
    steps: Vec<f32>,
    rows: usize,
    /// Outputs, rounded up to a multiple of the lanes.
    padded: usize,
}

impl Int16Rows {
    /// Makes room. The contents are unspecified until written.
    pub(crate) fn resize(&mut self, rows: usize, outputs: usize) {
        (self.rows, self.padded) = (rows, outputs.next_multiple_of(LANES));
        self.words.resize(rows * self.padded / 2, 0);
        self.steps.resize(rows * self.panels(), 0.0);
    }

    fn panels(&self) -> usize {
        self.padded.div_ceil(PANEL)
    }

    pub(crate) fn writer(&mut self) -> Int16Writer<'_> {
        Int16Writer {
            rows: self.rows,
            padded: self.padded,
            panels: self.panels(),
            words: Scatter::new(&mut self.words),
            steps: Scatter::new(&mut self.steps),
        }
    }
}

/// The place of the first word of panel `index` of the group of rows that starts at `first`.
fn group_at(rows: usize, padded: usize, index: usize, first: usize) -> usize {
    let width = PANEL.min(padded - index * PANEL);
    (rows * index * PANEL + first * width) / 2
}

/// Writes rows of [`Int16Rows`], from several threads.
pub(crate) struct Int16Writer<'a> {
    rows: usize,
    padded: usize,
    panels: usize,
    words: Scatter<'a, u32>,
    steps: Scatter<'a, f32>,
}

impl Int16Writer<'_> {
    /// The number of groups of rows.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Rounds the rows of group `group`, panel by panel. `x` holds all rows, of as many values as there are outputs; `units` are
    /// padded to a multiple of the lanes.
    ///
    /// # Safety
    /// No other thread writes this group meanwhile.
    pub(crate) unsafe fn write(&self, isa: Isa, group: usize, x: &[f32], units: &[f32]) {
        let first = group * ROWS;
        let count = ROWS.min(self.rows - first);
        let outputs = x.len() / self.rows;
        assert!(x.len() == self.rows * outputs && units.len() == self.padded);
        assert!(outputs <= self.padded && outputs.div_ceil(PANEL) == self.panels);
        // Row by row first: adjacent stores.
        let mut rounded = [[0u32; PANEL / 2]; ROWS];
        for (index, units) in units.chunks(PANEL).enumerate() {
            let pairs = units.len() / 2;
            for (m, rounded) in rounded[..count].iter_mut().enumerate() {
                let row = &x[(first + m) * outputs..][..outputs];
                let row = &row[index * PANEL..outputs.min((index + 1) * PANEL)];
                let step = round(isa, row, units, &mut rounded[..pairs]);
                // SAFETY: the caller's contract.
                unsafe { *self.steps.pointer((first + m) * self.panels + index) = step };
            }
            let at = group_at(self.rows, self.padded, index, first);
            // SAFETY: the caller's contract.
            let to = unsafe { self.words.part(at, count * pairs) };
            match count {
                // Nearly all groups: the compiler knows the number.
                ROWS => interleave::<ROWS>(&rounded, to),
                _ => {
                    for (m, row) in rounded[..count].iter().enumerate() {
                        for (to, word) in to[m..].iter_mut().step_by(count).zip(row) {
                            *to = *word;
                        }
                    }
                }
            }
        }
    }
}

/// Word i of each row, then word i + 1 of each.
fn interleave<const M: usize>(rows: &[[u32; PANEL / 2]; M], to: &mut [u32]) {
    for (i, to) in to.as_chunks_mut::<M>().0.iter_mut().enumerate() {
        *to = std::array::from_fn(|m| rows[m][i]);
    }
}

/// The sum of a panel's magnitudes, each in its output's units; `largest` takes the bits of the largest ones.
#[inline(always)]
fn weigh(x: &[f32], units: &[f32], largest: &mut [u32; LANES]) -> f32 {
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
fn step_of(largest: [u32; LANES], sum: f32) -> f32 {
    let largest = f32::from_bits(largest.into_iter().max().unwrap_or(0));
    if !largest.is_finite() {
        f32::NAN
    } else if largest > UNDERFLOW {
        (largest / GRAD_MAX).max(sum / SUM_MAX)
    } else {
        0.0
    }
}

per_isa! {
    /// `round(x * units / step)`, zeros past the end of `x`, two a word; returns the step.
    fn round(x: &[f32], units: &[f32], to: &mut [u32]) -> f32 {
        let mut largest = [0u32; LANES];
        let sum = weigh(x, units, &mut largest);
        let step = step_of(largest, sum);
        let (chunks, rest) = x.as_chunks::<LANES>();
        let (units, last_units) = units.as_chunks::<LANES>().0.split_at(chunks.len());
        let mut last = [0f32; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let last = [last];
        let last = &last[..last_units.len()];
        let all = chunks.iter().zip(units).chain(last.iter().zip(last_units));
        let factor = if step > 0.0 { 1.0 / step } else { 0.0 };
        for ((x, unit), to) in all.zip(to.as_chunks_mut::<{ LANES / 2 }>().0) {
            let mut bits = [0u32; LANES];
            for lane in 0..LANES {
                bits[lane] = (x[lane] * unit[lane] * factor + MAGIC).to_bits();
            }
            for (to, pair) in to.iter_mut().zip(bits.as_chunks::<2>().0) {
                *to = pair[0] & 0xffff | pair[1] << 16;
            }
        }
        step
    }
}

/// The weights of a panel: 32 inputs of all outputs of its tiles.
#[derive(Default)]
pub(crate) struct Panel {
    /// Pairs of outputs for the first 16 inputs, then for the others.
    halves: [Vec<[u32; LANES]>; 2],
}

impl Panel {
    /// Makes room for `tiles` tiles and returns it tile by tile.
    pub(crate) fn tiles(&mut self, tiles: usize) -> impl Iterator<Item = words::Words<'_>> {
        let [low, high] = self.halves.each_mut().map(|half| {
            half.resize(tiles * LANES / 2, [0; LANES]);
            half.as_chunks_mut::<{ LANES / 2 }>().0.iter_mut()
        });
        low.zip(high).map(|(low, high)| [low, high])
    }
}

/// The product of all rows with a panel, whose first output is `PANEL * index`, onto `out`, 32 columns, rows `out_row` apart: replacing
/// what is there, or added to it.
///
/// # Safety
/// `out` covers the rows, and no other thread touches these columns.
pub(crate) unsafe fn multiply(
    isa: Isa,
    rows: &Int16Rows,
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
