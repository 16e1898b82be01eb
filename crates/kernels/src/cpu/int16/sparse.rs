//! Gradients of a softmax: a row has a few large values and tens of thousands that round to zero.
//!
//! A row is rounded by one step, the same for all panels. Values that round to zero are left out of the products; their sum is
//! multiplied with the mean over all outputs:
//!
//! ```text
//! dx[i] ~ step * sum over o with z[o] != 0 of z[o] * q[o][i]  +  (sum over o with z[o] = 0 of dy[o]) * mean over all o of w[o][i]
//! ```
//!
//! Leaving out what is small in the head's gradient is from Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
//! 2024, section 4.3; there the limit is 2^-12, and nothing replaces what is left out.

use super::panel::Panel;
use super::products::{Job, some_rows};
use super::rounding::{MAGIC, PANEL, ROWS, step_of, weigh};
use crate::cpu::isa::Isa;
use crate::cpu::isa::per_isa;
use crate::cpu::pool::Pool;
use crate::cpu::scatter::Scatter;
use crate::cpu::simd::LANES;

/// The nonzero values of a gradient's rows.
#[derive(Default)]
pub(crate) struct SparseRows {
    groups: Vec<Group>,
    rows: usize,
}

/// The nonzero values of [`ROWS`] rows, or of the last ones.
#[derive(Default)]
struct Group {
    /// Pairs of outputs with a nonzero value in some row: their indices in their panels.
    places: Vec<u16>,
    /// The rows' values for those: two outputs a word, low half first.
    words: Vec<u32>,
    /// The end of each panel's pairs.
    ends: Vec<usize>,
    /// The value of an integer 1 in each row; NaN if a value is not finite.
    steps: [f32; ROWS],
    /// The sum of each row's values that round to zero.
    rest: [f32; ROWS],
}

impl SparseRows {
    /// Takes the rows of `dy`, `rows` of `outputs`; replacing what it held. `units` are padded to a multiple of the lanes.
    pub(crate) fn fill(&mut self, isa: Isa, pool: &Pool, dy: &[f32], rows: usize, units: &[f32]) {
        self.rows = rows;
        self.groups.resize_with(rows.div_ceil(ROWS), Group::default);
        let outputs = dy.len() / rows;
        assert!(units.len() == outputs.next_multiple_of(LANES));
        let groups = Scatter::new(&mut self.groups);
        pool.run(rows.div_ceil(ROWS), &|index| {
            let first = index * ROWS;
            let count = ROWS.min(rows - first);
            // SAFETY: one task a group.
            let group = unsafe { &mut groups.part(index, 1)[0] };
            gather(
                isa,
                &dy[first * outputs..][..count * outputs],
                outputs,
                units,
                group,
            );
        });
    }

    /// The product of all rows with panel `index` added to `out`, 32 columns, rows `out_row` apart.
    ///
    /// # Safety
    /// `out` covers the rows, and no other thread touches these columns.
    pub(crate) unsafe fn multiply(
        &self,
        isa: Isa,
        index: usize,
        panel: &Panel,
        out: *mut f32,
        out_row: usize,
    ) {
        for (i, group) in self.groups.iter().enumerate() {
            let count = ROWS.min(self.rows - i * ROWS);
            let pairs = if index == 0 { 0 } else { group.ends[index - 1] }..group.ends[index];
            if pairs.is_empty() {
                continue;
            }
            for (half, words) in panel.halves.iter().enumerate() {
                let job = Job {
                    words,
                    places: Some(&group.places[pairs.clone()]),
                    values: &group.words[count * pairs.start..count * pairs.end],
                    steps: &group.steps[..count],
                    steps_row: 1,
                    // SAFETY: inside, by the caller's contract.
                    out: unsafe { out.add(i * ROWS * out_row + half * LANES) },
                    out_row,
                    add: true,
                };
                // SAFETY: the caller's contract, and the slices' lengths; `gather` made the places.
                unsafe { some_rows(isa, count, job) };
            }
        }
    }

    /// The number of nonzero pairs in all groups.
    #[cfg(test)]
    pub(super) fn counted(&self) -> usize {
        self.groups.iter().map(|group| group.places.len()).sum()
    }

    /// The factor of the outputs' mean, for each row.
    pub(crate) fn rest(&self) -> impl Iterator<Item = f32> {
        let each = self.groups.iter().flat_map(|group| group.rest);
        each.take(self.rows)
    }
}

per_isa! {
    /// Rounds the rows of a group and collects the nonzero pairs.
    fn gather(rows: &[f32], outputs: usize, units: &[f32], group: &mut Group) {
        let count = rows.len() / outputs;
        group.places.clear();
        group.words.clear();
        group.ends.clear();
        // Reserved memory costs nothing until it is written; growing would copy, and leave half unused.
        group.places.reserve_exact(units.len() / 2);
        group.words.reserve_exact(count * units.len() / 2);
        let mut factors = [0f32; ROWS];
        for (m, row) in rows.chunks_exact(outputs).enumerate() {
            let mut largest = [0u32; LANES];
            let mut sum = 0f32;
            for (x, units) in row.chunks(PANEL).zip(units.chunks(PANEL)) {
                sum = sum.max(weigh(x, units, &mut largest));
            }
            group.steps[m] = step_of(largest, sum);
            factors[m] = if group.steps[m] > 0.0 { 1.0 / group.steps[m] } else { 0.0 };
        }
        let mut rest = [[0f32; LANES]; ROWS];
        for (tile, unit) in units.as_chunks::<LANES>().0.iter().enumerate() {
            let at = tile * LANES;
            let mut words = [[0u32; LANES / 2]; ROWS];
            let mut any = [0u32; LANES / 2];
            for m in 0..count {
                let row = &rows[m * outputs..][..outputs];
                let x: [f32; LANES] = match row[at..].first_chunk() {
                    Some(x) => *x,
                    None => std::array::from_fn(|lane| row.get(at + lane).copied().unwrap_or(0.0)),
                };
                let mut bits = [0u32; LANES];
                for lane in 0..LANES {
                    bits[lane] = (x[lane] * unit[lane] * factors[m] + MAGIC).to_bits();
                    let none = bits[lane] & 0xffff == 0;
                    rest[m][lane] += if none { x[lane] } else { 0.0 };
                }
                for (i, pair) in bits.as_chunks::<2>().0.iter().enumerate() {
                    words[m][i] = pair[0] & 0xffff | pair[1] << 16;
                    any[i] |= words[m][i];
                }
            }
            if at > 0 && at.is_multiple_of(PANEL) {
                group.ends.push(group.places.len());
            }
            if any == [0; LANES / 2] {
                continue;
            }
            for (i, any) in any.iter().enumerate() {
                if *any != 0 {
                    group.places.push(((at % PANEL) / 2 + i) as u16);
                    group.words.extend(words[..count].iter().map(|words| words[i]));
                }
            }
        }
        group.ends.push(group.places.len());
        for (m, rest) in rest.iter().enumerate() {
            // A value that is not finite stays so, whatever its bits were rounded to.
            group.rest[m] = if group.steps[m].is_nan() { f32::NAN } else { rest.iter().sum() };
        }
    }
}
