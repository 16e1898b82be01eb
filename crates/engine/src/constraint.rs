//! What an answer may say next, decided token by token by whoever asked: the engine knows ids and bits, and what they mean
//! is the caller's.

use std::fmt;

/// Where constraints come from: shared by the sequences that follow it, and itself unchanged by them.
pub trait Grammar: fmt::Debug + Send + Sync {
    /// A new way through it, for one sequence, at its start.
    fn start(&self) -> Box<dyn Constraint>;
}

/// Two grammars are the same if they are one.
impl PartialEq for dyn Grammar {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// One sequence's way through a [`Grammar`]. It lives as long as its sequence, so a preemption loses nothing of it. Both calls
/// come from the engine's thread, where every running sequence waits for them.
pub trait Constraint: Send {
    /// Sets the bit `id % 32` of the word `id / 32` for each token that may come next. `allowed` comes with no bit set and has
    /// one for each token of the vocabulary. A token that ends the answer is one of the request's stop tokens.
    ///
    /// # Errors
    /// A text for people; the request ends with it.
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String>;

    /// Goes on by a token that was drawn. Stop tokens are not committed.
    ///
    /// # Errors
    /// A text for people; the request ends with it.
    fn commit(&mut self, token: u32) -> Result<Progress, String>;
}

/// What is left of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More may come.
    Open,
    /// Nothing may come; the request ends as [`FinishReason::Stop`] without another step.
    ///
    /// [`FinishReason::Stop`]: crate::FinishReason::Stop
    Complete,
}

/// Words of a mask over a vocabulary.
pub(crate) fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}
