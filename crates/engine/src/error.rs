//! The engine's errors, one variant for each failure that a caller can handle differently.

use std::time::Duration;

use thiserror::Error;

use sampling::SamplingError;

use crate::adapter_id::AdapterId;

/// Why a request was not accepted.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SubmitError {
    /// The prompt has no tokens.
    #[error("the prompt has no tokens; give at least one")]
    EmptyPrompt,
    /// The prompt alone leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, and the context holds {limit} with the answer; shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// The context length.
        limit: usize,
    },
    /// Prompt and answer together go past the context.
    #[error(
        "the prompt's {prompt} tokens and max_new_tokens {max_new_tokens} go past the context of {limit} tokens; \
         ask for at most {} new tokens or shorten the prompt",
        limit.saturating_sub(*prompt)
    )]
    PastContext {
        /// Tokens in the prompt.
        prompt: usize,
        /// The requested length of the answer.
        max_new_tokens: usize,
        /// The context length.
        limit: usize,
    },
    /// A token id is not in the vocabulary.
    #[error(
        "token {token} at position {position} of the prompt is not in the vocabulary (0 to {})",
        vocab_size.saturating_sub(1)
    )]
    TokenOutOfRange {
        /// Where in the prompt, from 0.
        position: usize,
        /// The id.
        token: u32,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// An adapter of the request is not resident (never inserted, removed, or evicted).
    #[error("adapter {0} is not loaded; insert it and submit again")]
    UnknownAdapter(AdapterId),
    /// The engine runs and queues as many requests as its settings allow.
    #[error("the queue is full: {limit} requests are waiting; try again later")]
    QueueFull {
        /// How many may wait (`max_queue`).
        limit: usize,
        /// The estimated time until there is room.
        retry_after: Duration,
    },
    /// The client's requests hold as much of the queue as its part allows.
    #[error(
        "this client has {held} requests that run or wait, which is its part of {limit}, and {asked} more are above it; wait \
         for answers and try again"
    )]
    AboveShare {
        /// How many run or wait.
        held: usize,
        /// How many may run or wait, of all clients together.
        limit: usize,
        /// How many this request needs.
        asked: usize,
        /// The estimated time until there is room.
        retry_after: Duration,
    },
    /// More requests at once than an idle engine takes from one client. Waiting does not help.
    #[error(
        "{asked} requests at once are more than the {most} that one client may have at once; send fewer"
    )]
    TooManyAtOnce {
        /// How many there are.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// The KV cache could not hold this request even alone.
    #[error(
        "the request needs up to {needed} KV blocks and there are {blocks}; \
         shorten it or give the KV cache more memory"
    )]
    TooLargeForMemory {
        /// Blocks that prompt and answer may take.
        needed: usize,
        /// All blocks.
        blocks: usize,
    },
    /// A setting is out of range.
    #[error("{field} {message}")]
    InvalidSampling {
        /// The field's name, as in [`Request`](crate::Request) and [`Sampling`](crate::Sampling).
        field: &'static str,
        /// What it must be, and what it was.
        message: String,
    },
    /// The engine has shut down.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why the adapter pool refused an adapter.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// This adapter alone is larger than the pool.
    #[error(
        "adapter {id} takes {bytes} bytes and the adapter memory is {limit}; give it more memory"
    )]
    TooLarge {
        /// The adapter.
        id: AdapterId,
        /// Its bytes.
        bytes: u64,
        /// The pool's bytes.
        limit: u64,
    },
    /// The adapters of one request are larger together than the pool.
    #[error(
        "the {adapters} adapters of this blend take {bytes} bytes and the adapter memory is {limit}; blend fewer or give \
         it more memory"
    )]
    TogetherTooLarge {
        /// How many.
        adapters: usize,
        /// Their bytes.
        bytes: u64,
        /// The pool's bytes.
        limit: u64,
    },
    /// Requests hold so many adapters that eviction cannot make room.
    #[error(
        "adapter {id} takes {bytes} bytes; of the adapter memory of {limit}, requests under way hold {leased}; \
         try again later or give it more memory"
    )]
    Full {
        /// The adapter.
        id: AdapterId,
        /// Its bytes.
        bytes: u64,
        /// Bytes under lease.
        leased: u64,
        /// The pool's bytes.
        limit: u64,
    },
    /// No such adapter.
    #[error("adapter {0} is not loaded")]
    Unknown(AdapterId),
}

/// Why a request's adapters could not be reserved.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReservationError {
    /// They can never be in memory all at once.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The deadline passed.
    #[error("the deadline passed while the request waited for its adapters")]
    TimedOut,
    /// The caller gave the request up.
    #[error("the request was cancelled while it waited for its adapters")]
    Cancelled,
    /// An adapter takes more memory than was reserved for it, and there is no room for the difference. The pool knows its size from
    /// here on: drop the reservation and reserve again.
    #[error("an adapter takes more memory than was reserved for it")]
    MoreThanReserved,
    /// The engine has shut down.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why the engine did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A field of [`EngineConfig`](crate::EngineConfig) or [`Limits`](crate::Limits) is out of range.
    #[error("{field} {message}")]
    InvalidConfig {
        /// The field's name.
        field: &'static str,
        /// What it must be, and what it was.
        message: String,
    },
    /// The system could not start a thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl SubmitError {
    pub(crate) fn invalid(field: &'static str, message: String) -> SubmitError {
        SubmitError::InvalidSampling { field, message }
    }
}

impl From<SamplingError> for SubmitError {
    fn from(error: SamplingError) -> SubmitError {
        SubmitError::invalid(error.parameter, error.message)
    }
}
