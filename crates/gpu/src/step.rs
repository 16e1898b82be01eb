//! A step's metadata on the card.
//!
//! ```text
//! row > token, position, where its block list is, where its adapters are, how many adapters, unused, unused, unused
//! block lists of the sequences; (slot, scale) lists of the runs
//! ```

use crate::device::GpuDevice;
use crate::executor::Buffer;
use kernels_common::rows::StepRows;
use kernels_common::step::Step as Checked;
use std::sync::{Arc, Mutex, PoisonError};

const ROW_WORDS: usize = 8;

/// The metadata of a step's rows, on the card.
pub struct Step {
    pub(crate) buffer: Buffer,
    pub(crate) rows: usize,
    /// Tokens of the longest sequence.
    pub(crate) longest: usize,
    /// The most adapters of a row.
    pub(crate) entries: usize,
    /// One more than the largest block number.
    pub(crate) blocks: usize,
    /// One more than the largest slot.
    pub(crate) slots: usize,
    /// One more than the largest token and position.
    pub(crate) tokens: usize,
    pub(crate) positions: usize,
    spare: Arc<Mutex<Vec<Buffer>>>,
}

impl Drop for Step {
    fn drop(&mut self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(self.buffer.clone());
    }
}

impl GpuDevice {
    /// Checks and uploads the metadata of a step.
    ///
    /// # Panics
    /// As [`Checked::new`]; or there is dropout.
    pub fn step(&self, rows: StepRows) -> Step {
        let checked = Checked::new(rows);
        assert!(checked.dropout.is_empty(), "dropout runs on the CPU only");
        let count = checked.tokens.len();
        let mut words = vec![0u32; count * ROW_WORDS];
        for (row, words) in words.chunks_exact_mut(ROW_WORDS).enumerate() {
            words[0] = checked.tokens[row];
            words[1] = checked.positions[row];
        }
        for sequence in &checked.sequences {
            let at = words.len() as u32;
            for row in sequence.first..sequence.first + sequence.rows {
                words[row * ROW_WORDS + 2] = at;
            }
            words.extend(&sequence.blocks);
        }
        for run in &checked.runs {
            let at = words.len() as u32;
            for row in run.first..run.first + run.rows {
                words[row * ROW_WORDS + 3] = at;
                words[row * ROW_WORDS + 4] = run.slots.len() as u32;
            }
            for (slot, scale) in &run.slots {
                words.extend([*slot, scale.to_bits()]);
            }
        }
        let past_largest =
            |values: &mut dyn Iterator<Item = u32>| values.max().map_or(0, |n| n as usize + 1);
        Step {
            buffer: self.upload_step(&words),
            rows: count,
            longest: checked
                .sequences
                .iter()
                .map(|s| s.past + s.rows)
                .max()
                .unwrap_or(0),
            entries: checked
                .runs
                .iter()
                .map(|r| r.slots.len())
                .max()
                .unwrap_or(0),
            blocks: past_largest(
                &mut checked
                    .sequences
                    .iter()
                    .flat_map(|s| s.blocks.iter().copied()),
            ),
            slots: past_largest(
                &mut checked
                    .runs
                    .iter()
                    .flat_map(|r| r.slots.iter().map(|s| s.0)),
            ),
            tokens: past_largest(&mut checked.tokens.iter().copied()),
            positions: past_largest(&mut checked.positions.iter().copied()),
            spare: self.spare.clone(),
        }
    }

    /// A buffer of an earlier step is used again, so that the bind groups of the last step serve this one.
    fn upload_step(&self, words: &[u32]) -> Buffer {
        let bytes = 4 * words.len() as u64;
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let buffer = spare.filter(|b| b.bytes() >= bytes).unwrap_or_else(|| {
            let room = bytes.next_power_of_two().max(1 << 14);
            self.executor()
                .buffer(room)
                .unwrap_or_else(|e| panic!("{e}"))
        });
        self.executor().write(&buffer, 0, words);
        buffer
    }
}
