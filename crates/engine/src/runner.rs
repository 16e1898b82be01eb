//! The interface to the model. The engine knows the model only through this trait.

use crate::batch::Batch;
use crate::logits::Logits;

/// The sizes that a model fixes for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are `0..vocab_size`; a row of logits has this many numbers.
    pub vocab_size: usize,
    /// The most tokens of one sequence, prompt and completion together.
    pub context_length: usize,
    /// Tokens whose keys and values fit in one KV block.
    pub block_tokens: usize,
    /// The number of KV blocks; block ids are `0..blocks`.
    pub blocks: usize,
}

/// A model that executes batches. It owns the weights and the KV cache; the engine makes every decision.
///
/// A result must not depend on the rest of the batch, and the engine's tests rely on it: the logits of a row depend only on
/// its sequence's adapters (values, scales and their order) and on that sequence's tokens up to this row. The other rows,
/// the order of `slots`, the ids of the blocks and the chunks of a prompt change no bit.
pub trait Runner: Send + 'static {
    /// An adapter in the form that the model runs; shared and immutable.
    type Adapter: Send + Sync + 'static;

    /// The model's sizes; called once, when the engine starts.
    fn limits(&self) -> Limits;

    /// Executes one step: writes keys and values for every row of `batch`, and fills `logits` with a row for each of
    /// `logit_rows`, in their order: all of its `vocab_size` numbers, or at least as many of its most probable tokens as
    /// `candidates` says. `logits` still holds the previous step's content and must be overwritten or resized.
    ///
    /// Whether a row is whole must depend on its number of candidates only.
    ///
    /// # Errors
    /// A message for people. The engine ends every request of this batch with it (a panic counts the same) and continues:
    /// the runner must stay usable. What the failed rows wrote into their blocks is never read.
    fn run(&mut self, batch: &Batch<Self::Adapter>, logits: &mut Logits) -> Result<(), String>;
}
