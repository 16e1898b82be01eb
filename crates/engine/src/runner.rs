//! What the engine asks of a model. The engine knows no model but this trait.

use crate::plan::Batch;

/// The sizes that a model fixes for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are `0..vocab_size`; a row of logits has this many numbers.
    pub vocab_size: usize,
    /// The most tokens one sequence may have, prompt and completion together.
    pub context_length: usize,
    /// Tokens whose keys and values fit in one KV block.
    pub block_tokens: usize,
    /// KV blocks in all; block ids are `0..blocks`.
    pub blocks: usize,
}

/// A model that executes plans. It owns the weights and the KV cache; the engine owns every decision.
///
/// The promise that makes results independent of company (the engine's tests rest on it): the logits of a row depend only
/// on its sequence's adapters (values, scales and their order) and on that sequence's tokens up to this row. The rest of
/// the batch, the order of `slots`, the ids of the blocks and the way that a prompt was cut into chunks change no bit.
pub trait Runner: Send + 'static {
    /// One adapter in the form that the model runs; shared, never changed.
    type Adapter: Send + Sync + 'static;

    /// The sizes; asked once, when the engine starts.
    fn limits(&self) -> Limits;

    /// Executes one step: writes keys and values for every row of `batch`, and fills `logits` with
    /// `batch.logit_rows.len()` rows of `vocab_size` numbers, row-major, in the order of `logit_rows`.
    /// `logits` comes in with the last step's content, to be overwritten or resized.
    ///
    /// # Errors
    /// A message for people. The engine ends every request of this batch with it (a panic counts the same) and goes on:
    /// the runner must be usable again, and what the failed rows wrote in their blocks is never read.
    fn run(&mut self, batch: &Batch<Self::Adapter>, logits: &mut Vec<f32>) -> Result<(), String>;
}
