//! One step as plain data: which rows, which adapters, which blocks. The scheduler writes it, the model executes it.

use std::sync::Arc;

use crate::adapters::{AdapterId, Lease};
use crate::sequence::{Arrival, Sequence};

/// The rows that the model runs in one step.
///
/// ```text
/// tokens     [ 7 | 9 | 4 4 2 8 ]      one decode, another decode, a prefill chunk of four
/// positions  [ 51| 12| 0 1 2 3 ]
/// sequences  [ A | B | C       ]      each a contiguous run of rows with its own blocks and adapters
/// logit_rows [ 0 , 1 ]                C's prompt goes on in the next step, so no logits yet
/// ```
#[derive(Debug)]
pub struct Batch<A> {
    /// One token id for each row.
    pub tokens: Vec<u32>,
    /// The position of each row in its sequence, from 0.
    pub positions: Vec<u32>,
    /// The sequences of this step; together they cover all rows, in order, each sequence once.
    pub sequences: Vec<SequenceRows>,
    /// The distinct adapters of this step; `SequenceRows::adapters` points in here.
    pub slots: Vec<Arc<A>>,
    /// The rows whose logits are wanted, rising. A sequence may want those of several of its rows.
    pub logit_rows: Vec<u32>,
}

/// One sequence's part of a [`Batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceRows {
    /// Its first row; the rows of a sequence are contiguous.
    pub first_row: usize,
    /// How many rows, at positions `past..past + rows`.
    pub rows: usize,
    /// Tokens of this sequence whose keys and values earlier steps have written.
    pub past: usize,
    /// The block table: position `p` lives in `blocks[p / block_tokens]` at offset `p % block_tokens`.
    /// It covers `past + rows` positions at least.
    pub blocks: Vec<u32>,
    /// Adapters as (index into `slots`, scale), to be added in this order. Empty: the base alone.
    pub adapters: Vec<(u32, f32)>,
}

impl<A> Batch<A> {
    /// A batch without rows.
    pub fn empty() -> Self {
        Batch {
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
            slots: Vec::new(),
            logit_rows: Vec::new(),
        }
    }

    /// How many rows the step has.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}

/// A batch, and whose rows they are.
pub(crate) struct Plan<A> {
    pub batch: Batch<A>,
    /// One for each of `batch.sequences`, in the same order.
    pub parts: Vec<Part>,
    /// Rows of logits that tell of prompts, and give no token.
    pub telling_rows: usize,
    slot_ids: Vec<AdapterId>,
}

/// One sequence's share of a plan.
pub(crate) struct Part {
    pub sequence: Arrival,
    /// Rows of its own tokens.
    pub rows: usize,
    /// Which row of the logits is the first that tells of its prompt, and how many do.
    pub telling: (usize, usize),
    /// Which row of the logits is that of its last token, if it reaches that in this step. Those of its drafts follow.
    pub logits: Option<usize>,
    /// Guesses of the tokens that come next, run as if they had been drawn.
    pub drafts: Vec<u32>,
}

impl<A> Plan<A> {
    pub fn new() -> Self {
        Plan {
            batch: Batch::empty(),
            parts: Vec::new(),
            telling_rows: 0,
            slot_ids: Vec::new(),
        }
    }

    /// Adds the next `rows` uncomputed tokens of `sequence`. Its block table must already cover them.
    pub fn add(&mut self, arrival: Arrival, sequence: &Sequence<A>, rows: usize) {
        self.add_drafted(arrival, sequence, rows, Vec::new());
    }

    /// [`Plan::add`] with rows of its drafts behind its last token, for a sequence that reaches that.
    pub fn add_drafted(
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
        let run = rows + drafts.len();
        self.batch
            .positions
            .extend((past..past + run).map(|position| position as u32));
        self.batch.sequences.push(SequenceRows {
            first_row,
            rows: run,
            past,
            blocks: sequence.blocks.ids().to_vec(),
            adapters,
        });
        let telling = sequence.telling(rows);
        let told = (self.batch.logit_rows.len(), telling.len());
        let rows_of = telling.map(|position| (first_row + position - past) as u32);
        self.batch.logit_rows.extend(rows_of);
        self.telling_rows += told.1;
        let logits = (end == sequence.tokens.len()).then(|| {
            let first = self.batch.logit_rows.len();
            let wanted = first_row + rows - 1..first_row + run;
            self.batch.logit_rows.extend(wanted.map(|row| row as u32));
            first
        });
        self.parts.push(Part {
            sequence: arrival,
            rows,
            telling: told,
            logits,
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
