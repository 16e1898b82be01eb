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

/// Most rows at a time: their sums for 16 inputs fill 12 of 16 registers.
const ROWS: usize = 6;
/// Most outputs of a panel: some rows' values stay in the first cache, the words in the second.
pub(crate) const PANEL: usize = 1024;
/// The largest magnitude of a whole weight.
const LARGEST: f32 = 4095.0;
/// The largest magnitude of a whole gradient.
const GRAD_MAX: f32 = 32767.0;
/// Most that a row's magnitudes may add up to in a panel before they are rounded, each by a half at most; a hundredth is left
/// for what the sum itself is off: `(SUM_MAX + PANEL / 2) * LARGEST < 2^31`.
const SUM_MAX: f32 = 519_000.0;
/// Below this, values count as zeros: their quotients would not be finite.
const UNDERFLOW: f32 = 1e-30;
/// Added to a number below 2^22, this leaves the nearest integer, to even between two, in the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// What a whole weight counts where the largest magnitude is this: zero for what has no quotient.
pub(crate) fn unit_of(largest: f32) -> f32 {
    // NaN stays NaN.
    if largest < UNDERFLOW * LARGEST {
        0.0
    } else {
        largest / LARGEST
    }
}

/// Rows of the gradient as whole numbers, in the order in which they are read: panel by panel, in a panel [`ROWS`] rows at a time,
/// of these pair by pair of outputs, row by row.
#[derive(Default)]
pub(crate) struct Int16Rows {
    /// Two outputs a word, low half first.
    words: Vec<u32>,
    /// What a whole number counts, for each panel of each row; NaN where a value is not finite.
    steps: Vec<f32>,
    rows: usize,
    /// Outputs, to whole tiles.
    padded: usize,
}

impl Int16Rows {
    /// Makes room; what it held before is forgotten.
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

/// Where the first word of panel `index` of rows `first..`, a group's, lies.
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
    /// How many groups of rows there are to write.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Rounds the rows of group `group`, panel by panel. `x` holds all rows, of as many values as there are outputs; `units` are
    /// whole tiles.
    ///
    /// # Safety
    /// No other thread writes this group meanwhile.
    pub(crate) unsafe fn write(&self, isa: Isa, group: usize, x: &[f32], units: &[f32]) {
        let first = group * ROWS;
        let count = ROWS.min(self.rows - first);
        let outputs = x.len() / self.rows;
        assert!(x.len() == self.rows * outputs && units.len() == self.padded);
        assert!(outputs <= self.padded && outputs.div_ceil(PANEL) == self.panels);
        // Row by row first: stores that lie together.
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
                // As nearly all groups are: a number that the compiler knows.
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

/// What a whole number counts where these are the largest magnitudes, and so much their sum in a panel at most: NaN where a value
/// is not finite, 0 where all are nothing.
#[inline(always)]
fn step_of(largest: [u32; LANES], sum: f32) -> f32 {
    let most = f32::from_bits(largest.into_iter().max().unwrap_or(0));
    if !most.is_finite() {
        f32::NAN
    } else if most > UNDERFLOW {
        (most / GRAD_MAX).max(sum / SUM_MAX)
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

/// Weights of a panel: 32 inputs of whole tiles of outputs.
#[derive(Default)]
pub(crate) struct Panel {
    /// Pairs of outputs for the first 16 inputs, then for the others.
    halves: [Vec<[u32; LANES]>; 2],
}

impl Panel {
    /// Makes room, and gives it tile by tile.
    pub(crate) fn tiles(&mut self, tiles: usize) -> impl Iterator<Item = words::Words<'_>> {
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
