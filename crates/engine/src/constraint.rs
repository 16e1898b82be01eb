//! The interface for constrained decoding: the caller's grammar decides token by token what may be sampled next. The engine
//! knows token ids and bits, not the grammar.

use std::fmt;

/// Makes the constraints of the sequences that share it; immutable.
pub trait Grammar: fmt::Debug + Send + Sync {
    /// The constraint of one sequence, before its first token.
    fn start(&self) -> Box<dyn Constraint>;
}

/// Two grammars are equal if they are the same object.
impl PartialEq for dyn Grammar {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// One sequence's state in a [`Grammar`]. It lives as long as its sequence, so a preemption does not lose it. Both methods are
/// called on the engine's thread, where every running sequence waits for them.
pub trait Constraint: Send {
    /// Sets the bit `id % 32` of the word `id / 32` for each token that may come next. `allowed` has one bit for each token of
    /// the vocabulary; all are zero at the call. A token that ends the answer is one of the request's stop tokens.
    ///
    /// # Errors
    /// A message for people; the request ends with it.
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String>;

    /// Advances by a token that was sampled. Stop tokens are not committed.
    ///
    /// # Errors
    /// A message for people; the request ends with it.
    fn commit(&mut self, token: u32) -> Result<Progress, String>;
}

/// Whether an answer can continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More tokens may come.
    Open,
    /// No token may come; the request ends as [`FinishReason::Stop`] without another step.
    ///
    /// [`FinishReason::Stop`]: crate::FinishReason::Stop
    Complete,
}

/// The number of words of a mask over a vocabulary.
pub(crate) fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}
