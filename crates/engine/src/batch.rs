//! One step as plain data: which rows, which adapters, which KV blocks. The scheduler builds it, the model executes it.

use std::sync::Arc;

/// The rows that the model runs in one step.
///
/// ```text
/// tokens     [ 7 | 9 | 4 4 2 8 ]      one decode, another decode, a prefill chunk of four
/// positions  [ 51| 12| 0 1 2 3 ]
/// sequences  [ A | B | C       ]      each a contiguous run of rows with its own blocks and adapters
/// logit_rows [ 0 , 1 ]                C's prompt continues in the next step, so it needs no logits yet
/// ```
#[derive(Debug)]
pub struct Batch<A> {
    /// One token id for each row.
    pub tokens: Vec<u32>,
    /// The position of each row in its sequence, from 0.
    pub positions: Vec<u32>,
    /// The sequences of this step; together they cover all rows, in order, each sequence once.
    pub sequences: Vec<SequenceRows>,
    /// The distinct adapters of this step; `SequenceRows::adapters` indexes into them.
    pub slots: Vec<Arc<A>>,
    /// The rows whose logits are needed, in ascending order. A sequence may need those of several of its rows.
    pub logit_rows: Vec<u32>,
    /// For each of `logit_rows`: how many of its most probable tokens sampling needs, at most [`MOST_CANDIDATES`]; 0: the whole
    /// row.
    ///
    /// [`MOST_CANDIDATES`]: crate::MOST_CANDIDATES
    pub candidates: Vec<usize>,
}

/// The rows of one sequence in a [`Batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceRows {
    /// Its first row; the rows of a sequence are contiguous.
    pub first_row: usize,
    /// How many rows, at positions `past..past + rows`.
    pub rows: usize,
    /// Tokens of this sequence whose keys and values earlier steps have written.
    pub past: usize,
    /// The block table: position `p` is in `blocks[p / block_tokens]` at offset `p % block_tokens`.
    /// It covers at least `past + rows` positions.
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
            candidates: Vec::new(),
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}
