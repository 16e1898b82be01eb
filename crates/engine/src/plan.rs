//! A step that the scheduler has decided: the batch for the model, and which sequence each part of it belongs to.

use std::sync::Arc;

use crate::adapter_id::AdapterId;
use crate::adapter_pool::Lease;
use crate::batch::{Batch, SequenceRows};
use crate::sequence::{Arrival, Sequence};

/// A batch and its sequences.
pub(crate) struct Plan<A> {
    pub batch: Batch<A>,
    /// One for each of `batch.sequences`, in the same order.
    pub sequences: Vec<PlannedSequence>,
    /// Rows of logits that give log-probabilities of prompt tokens, and no new token.
    pub prompt_logprob_rows: usize,
    slot_ids: Vec<AdapterId>,
    vocab_size: usize,
}

/// What one sequence runs in a step, and which rows of the logits are its own.
pub(crate) struct PlannedSequence {
    pub sequence: Arrival,
    /// Rows of its own tokens.
    pub rows: usize,
    /// The rows of the logits for its prompt's log-probabilities: (first row, count).
    pub prompt_logprobs: (usize, usize),
    /// The row of the logits of its last token, if this step reaches it. Those of its draft tokens follow.
    pub sample_row: Option<usize>,
    /// Draft tokens, run as if they had been sampled.
    pub drafts: Vec<u32>,
}

impl<A> Plan<A> {
    pub fn new(vocab_size: usize) -> Self {
        Plan {
            batch: Batch::empty(),
            sequences: Vec::new(),
            prompt_logprob_rows: 0,
            slot_ids: Vec::new(),
            vocab_size,
        }
    }

    /// Adds the next `rows` uncomputed tokens of `sequence`. Its block table must already cover them.
    pub fn add(&mut self, arrival: Arrival, sequence: &Sequence<A>, rows: usize) {
        self.add_with_drafts(arrival, sequence, rows, Vec::new());
    }

    /// [`Plan::add`], with draft tokens after the last token of a sequence that reaches it in this step.
    pub fn add_with_drafts(
        &mut self,
        arrival: Arrival,
        sequence: &Sequence<A>,
        rows: usize,
        drafts: Vec<u32>,
    ) {
        let past = sequence.computed;
        let end = past + rows;
        debug_assert!(drafts.is_empty() || end == sequence.tokens.len());
        let adapters = sequence
            .adapters
            .iter()
            .map(|(lease, scale)| (self.slot_of(lease), *scale))
            .collect();
        let first_row = self.batch.rows();
        self.batch
            .tokens
            .extend_from_slice(&sequence.tokens[past..end]);
        self.batch.tokens.extend_from_slice(&drafts);
        let all_rows = rows + drafts.len();
        self.batch
            .positions
            .extend((past..past + all_rows).map(|position| position as u32));
        self.batch.sequences.push(SequenceRows {
            first_row,
            rows: all_rows,
            past,
            blocks: sequence.blocks.ids().to_vec(),
            adapters,
        });
        let prompt_positions = sequence.prompt_logprob_positions(rows);
        let prompt_logprobs = (self.batch.logit_rows.len(), prompt_positions.len());
        let prompt_rows = prompt_positions.map(|position| (first_row + position - past) as u32);
        self.batch.logit_rows.extend(prompt_rows);
        // The log-probability of a given token needs the whole row.
        self.batch.candidates.resize(self.batch.logit_rows.len(), 0);
        self.prompt_logprob_rows += prompt_logprobs.1;
        let sample_row = (end == sequence.tokens.len()).then(|| {
            let first = self.batch.logit_rows.len();
            let sampled = first_row + rows - 1..first_row + all_rows;
            self.batch.logit_rows.extend(sampled.map(|row| row as u32));
            let candidates = sequence.candidates(self.vocab_size);
            let rows = self.batch.logit_rows.len();
            self.batch.candidates.resize(rows, candidates);
            first
        });
        self.sequences.push(PlannedSequence {
            sequence: arrival,
            rows,
            prompt_logprobs,
            sample_row,
            drafts,
        });
    }

    fn slot_of(&mut self, lease: &Lease<A>) -> u32 {
        let slot = self.slot_ids.iter().position(|id| *id == lease.id());
        slot.unwrap_or_else(|| {
            self.slot_ids.push(lease.id());
            self.batch.slots.push(Arc::clone(lease.adapter()));
            self.slot_ids.len() - 1
        }) as u32
    }
}
