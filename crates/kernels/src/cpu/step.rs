//! A step's metadata in this process's memory.

use crate::cpu::lora::Dropout;
use crate::rows::{BLOCK_TOKENS, RowDropout, Run, StepRows};

/// The rows of one sequence, with its own copy of the block table.
pub(crate) struct Sequence {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) past: usize,
    pub(crate) blocks: Vec<u32>,
}

/// What [`StepRows`] says, copied, with the position of each row.
pub(crate) struct Step {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) runs: Vec<Run>,
    pub(crate) dropout: Vec<RowDropout>,
}

impl Step {
    pub(crate) fn new(rows: StepRows) -> Step {
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
        Step {
            tokens: rows.tokens.to_vec(),
            positions,
            sequences: rows.spans.iter().map(sequence).collect(),
            runs: rows.runs.to_vec(),
            dropout: rows.dropout.to_vec(),
        }
    }

    /// Dropout at one linear layer, if the step has any.
    pub(crate) fn dropout_at(&self, linear: u32) -> Option<Dropout<'_>> {
        (!self.dropout.is_empty()).then_some(Dropout {
            rows: &self.dropout,
            linear,
        })
    }
}
