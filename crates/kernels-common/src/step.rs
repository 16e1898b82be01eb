//! A step's metadata, checked, in this process's memory.

use crate::rows::{BLOCK_TOKENS, RowDropout, Run, StepRows};

/// The rows of one sequence, with its own copy of the block table.
pub struct Sequence {
    /// First row in the batch.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Tokens that already have keys and values.
    pub past: usize,
    /// Block numbers, the block of position 0 first.
    pub blocks: Vec<u32>,
}

/// What [`StepRows`] says, copied, with the position of each row.
pub struct Step {
    /// One token a row.
    pub tokens: Vec<u32>,
    /// The position of each row in its sequence.
    pub positions: Vec<u32>,
    /// The sequences.
    pub sequences: Vec<Sequence>,
    /// The adapters of the rows.
    pub runs: Vec<Run>,
    /// One entry a row, or none.
    pub dropout: Vec<RowDropout>,
}

/// Checks that what kernels write by index is disjoint, because their tasks write at the same time.
///
/// # Panics
/// Two sequences have a row in common, or write the same place of a block of the KV cache.
pub fn assert_disjoint(sequences: &[Sequence]) {
    let mut end = 0;
    let mut written: Vec<(u32, usize, usize)> = Vec::new();
    for s in sequences {
        assert!(
            s.first >= end,
            "a sequence starts at row {}, but the one before it ends at row {end}",
            s.first
        );
        end = s.first + s.rows;
        let tokens = s.past..s.past + s.rows;
        for b in tokens.start / BLOCK_TOKENS..tokens.end.div_ceil(BLOCK_TOKENS) {
            let at = b * BLOCK_TOKENS;
            let from = tokens.start.max(at) - at;
            let to = (tokens.end - at).min(BLOCK_TOKENS);
            if from < to {
                written.push((s.blocks[b], from, to));
            }
        }
    }
    written.sort_unstable();
    for pair in written.windows(2) {
        let [(block, _, to), (next_block, from, _)] = pair else {
            continue;
        };
        assert!(
            block != next_block || to <= from,
            "two sequences write token {from} of block {block}"
        );
    }
}

/// # Panics
/// Runs that overlap or do not ascend.
fn assert_ascending(runs: &[Run]) {
    let mut end = 0;
    for run in runs {
        assert!(
            run.first >= end,
            "a run starts at row {}, but the one before it ends at row {end}",
            run.first
        );
        end = run.first + run.rows;
    }
}

impl Step {
    /// Checks the metadata and copies it.
    ///
    /// # Panics
    /// A span past the rows or with too few blocks; spans or runs that overlap; two spans that write the same place of a block.
    pub fn new(rows: StepRows) -> Step {
        assert_ascending(rows.runs);
        let mut positions = vec![0; rows.tokens.len()];
        for span in rows.spans {
            assert!(span.blocks.len() * BLOCK_TOKENS >= span.past + span.rows);
            let rows = &mut positions[span.first..span.first + span.rows];
            for (position, at) in rows.iter_mut().zip(span.past as u32..) {
                *position = at;
            }
        }
        let sequence = |span: &crate::rows::Span| Sequence {
            first: span.first,
            rows: span.rows,
            past: span.past,
            blocks: span.blocks.to_vec(),
        };
        let sequences: Vec<Sequence> = rows.spans.iter().map(sequence).collect();
        assert_disjoint(&sequences);
        Step {
            tokens: rows.tokens.to_vec(),
            positions,
            sequences,
            runs: rows.runs.to_vec(),
            dropout: rows.dropout.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Span;

    fn sequence(first: usize, rows: usize, past: usize, blocks: &[u32]) -> Sequence {
        Sequence {
            first,
            rows,
            past,
            blocks: blocks.to_vec(),
        }
    }

    #[test]
    fn sequences_may_read_the_same_blocks() {
        assert_disjoint(&[
            sequence(0, 3, 16, &[4, 5]),
            sequence(3, 1, 32, &[4, 6, 7]),
            sequence(4, 0, 3, &[]),
            sequence(9, 20, 0, &[8, 9]),
        ]);
    }

    #[test]
    fn sequences_may_write_different_tokens_of_a_block() {
        assert_disjoint(&[sequence(0, 3, 0, &[4]), sequence(3, 2, 3, &[4])]);
    }

    #[test]
    #[should_panic = "a sequence starts at row 2, but the one before it ends at row 3"]
    fn sequences_with_a_row_in_common_panic() {
        assert_disjoint(&[sequence(0, 3, 0, &[1]), sequence(2, 3, 0, &[2])]);
    }

    #[test]
    #[should_panic = "two sequences write token 2 of block 4"]
    fn sequences_that_write_the_same_token_of_a_block_panic() {
        assert_disjoint(&[sequence(0, 3, 0, &[4]), sequence(3, 5, 18, &[1, 4])]);
    }

    #[test]
    #[should_panic = "two sequences write token 0 of block 7"]
    fn one_sequence_with_a_repeated_block_panics() {
        assert_disjoint(&[sequence(0, 20, 0, &[7, 7])]);
    }

    #[test]
    #[should_panic = "a run starts at row 1, but the one before it ends at row 2"]
    fn runs_that_overlap_panic() {
        let run = |first, rows| Run {
            first,
            rows,
            slots: vec![(0, 1.0)],
        };
        Step::new(StepRows {
            tokens: &[1, 2, 3],
            runs: &[run(0, 2), run(1, 1)],
            ..StepRows::default()
        });
    }

    #[test]
    #[should_panic = "two sequences write token 0 of block 3"]
    fn a_step_with_overlapping_spans_panics() {
        let span = |first| Span {
            first,
            rows: 1,
            past: 0,
            blocks: &[3],
        };
        Step::new(StepRows {
            tokens: &[1, 2],
            spans: &[span(0), span(1)],
            ..StepRows::default()
        });
    }
}
