//! The most probable tokens of rows of logits, so that the rows themselves stay on the card.

use crate::device::GpuDevice;
use crate::executor::{Buffer, Launch};
use crate::kernels::CANDIDATES;
use crate::tensor::{Growing, Tensor};
use kernels_common::candidates::{Candidates, MOST_CANDIDATES};

/// Columns of a row that a workgroup searches, as in candidates.wgsl.
const CHUNK: usize = 4096;
/// Words in front of the tokens of a result.
const HEADER: usize = 4;

/// What the search keeps from step to step.
pub struct Search {
    /// Results by chunk.
    parts: Growing,
    /// Results by row.
    rows: Growing,
    read: Vec<u32>,
}

impl GpuDevice {
    /// Empty buffers of a search.
    pub fn search(&self) -> Search {
        Search {
            parts: Growing::new(self.executor()),
            rows: Growing::new(self.executor()),
            read: Vec::new(),
        }
    }

    /// The `count` most probable tokens of each (row, count) in `rows`. Waits for the card.
    ///
    /// # Panics
    /// A row past the last; a count of 0 or more than [`MOST_CANDIDATES`].
    pub fn candidates(
        &self,
        search: &mut Search,
        logits: &Tensor,
        rows: &[(usize, usize)],
    ) -> Vec<Candidates> {
        let Some(most) = rows.iter().map(|(_, count)| *count).max() else {
            return Vec::new();
        };
        assert!(
            rows.iter()
                .all(|(row, count)| *row < logits.rows() && *count > 0)
        );
        assert!(most <= MOST_CANDIDATES);
        let columns = logits.columns();
        let chunks = columns.div_ceil(CHUNK);
        let words = HEADER + 2 * most;
        let wanted = rows
            .iter()
            .flat_map(|(row, count)| [*row as u32, *count as u32]);
        let (tables, at) = self.table(wanted.collect());
        let launch = |merge: u32, input: &Buffer, result: &Buffer, chunks_x: usize| {
            self.executor().launch(&Launch {
                kernel: &CANDIDATES,
                constants: &[("MERGE", merge)],
                buffers: &[&tables, input, result],
                parameters: &[columns as u32, at, most as u32, chunks as u32],
                groups: [chunks_x, rows.len(), 1],
            });
        };
        let parts = search.parts.with_room(rows.len() * chunks * words);
        launch(0, logits.buffer(), parts, chunks);
        let of_rows = search.rows.with_room(rows.len() * words);
        launch(1, parts, of_rows, 1);
        search.read.resize(rows.len() * words, 0);
        self.executor().read(of_rows, &mut search.read);
        search.read.chunks_exact(words).map(candidates).collect()
    }
}

/// A row's result.
fn candidates(words: &[u32]) -> Candidates {
    let (header, tokens) = words.split_at(HEADER);
    let largest = f32::from_bits(header[0]);
    if header[1] != 0 || !largest.is_finite() {
        return Candidates::default();
    }
    let tokens = tokens.chunks_exact(2).take(header[3] as usize);
    Candidates {
        tokens: tokens
            .map(|pair| (pair[0], f32::from_bits(pair[1])))
            .collect(),
        log_sum: f64::from(largest) + f64::from(f32::from_bits(header[2])).ln(),
    }
}
