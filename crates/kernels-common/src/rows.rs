//! The metadata of a step's rows, as plain data: tokens, sequences, adapters and dropout.

/// Tokens in a block of keys and values.
pub const BLOCK_TOKENS: usize = 16;

/// The rows of one sequence in a batch: consecutive rows at positions `past..past + rows`.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// First row in the batch.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Tokens of the sequence that already have keys and values.
    pub past: usize,
    /// Block numbers, the block of position 0 first; enough for `past + rows` tokens.
    pub blocks: &'a [u32],
}

/// Consecutive rows with the same adapters: `(slot, scale)` each, several for a blend.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Slots with their scales, in the order in which they are added.
    pub slots: Vec<(u32, f32)>,
}

/// The share of a row's inputs that its adapters do not see, in training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowDropout {
    /// Share of the inputs that become zero, from 0 (none) to below 1; the others are multiplied by 1 / (1 - share).
    pub share: f32,
    /// The key of the row's masks: a mask is a function of this key, the linear layer and the column.
    pub key: u32,
}

/// The metadata that a device receives once a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepRows<'a> {
    /// One token a row.
    pub tokens: &'a [u32],
    /// The sequences. Together they cover all rows, in order.
    pub spans: &'a [Span<'a>],
    /// The adapters of the rows: non-overlapping and ascending. Rows in no run have no adapter.
    pub runs: &'a [Run],
    /// Dropout on the adapters' inputs, one entry a row; empty: no dropout.
    pub dropout: &'a [RowDropout],
}
