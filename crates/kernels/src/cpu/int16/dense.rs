//! Gradients whose values all count, and their product with a panel.

use super::panel::Panel;
use super::products::{Job, some_rows};
use super::rounding::{MAGIC, PANEL, ROWS, step_of, weigh};
use crate::cpu::isa::Isa;
use crate::cpu::isa::per_isa;
use crate::cpu::scatter::Scatter;
use crate::cpu::simd::LANES;

/// Rows of the gradient as integers, in the order in which they are read: by panel, then by group of [`ROWS`] rows, then by pair
/// of outputs, then by row.
#[derive(Default)]
pub(crate) struct Int16Rows {
    /// Two outputs a word, low half first.
    words: Vec<u32>,
    /// The value of an integer 1, for each panel of each row; NaN if a value is not finite.
    pub(super) steps: Vec<f32>,
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

    pub(super) fn panels(&self) -> usize {
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
