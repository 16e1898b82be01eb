//! Errors in a file of keys, and refusals. No message holds a secret or its hash.

use std::path::PathBuf;
use std::time::Duration;

use crate::key_entry::MIN_SCALES;

/// Keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// The folder of a file that is to be written does not exist.
    #[error("{}: no such folder; create it first", .0.display())]
    NoFolder(PathBuf),
    /// The text is not valid.
    #[error("{place}: {message}")]
    Invalid {
        /// The file and the line, or the variable.
        place: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// The system has no random numbers for a secret.
    #[error("cannot make a secret: {0}")]
    Random(getrandom::Error),
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No key was sent.
    #[error("this server needs a key; send the header Authorization: Bearer KEY")]
    MissingKey,
    /// The server has no such key.
    #[error("the key is not known here; check that it was copied completely and was not revoked")]
    InvalidKey,
    /// The route needs admin rights.
    #[error("key {key} has no admin rights, which this route needs; ask the operator")]
    AdminOnly {
        /// The key's name.
        key: String,
    },
    /// The route needs a key that may train.
    #[error(
        "key {key} may not train; ask the operator to give it `train = true`, or to make a new one with --train"
    )]
    TrainingNotAllowed {
        /// The key's name.
        key: String,
    },
    /// The persona is not among those that the key may use.
    #[error("key {key} may not use {requested:?}; it may use {may}")]
    PersonaNotAllowed {
        /// The key's name.
        key: String,
        /// The requested persona, or the base.
        requested: String,
        /// What the key may use, for people.
        may: String,
    },
    /// The scales of a blend come close to the base, which the key may not use.
    #[error(
        "key {key} may not use the base, and {requested:?} comes close to it; give every persona a scale above 0, and scales of \
         {MIN_SCALES} or more in sum"
    )]
    ScaleNotAllowed {
        /// The key's name.
        key: String,
        /// The requested blend.
        requested: String,
    },
    /// A priority below 0 needs admin rights.
    #[error(
        "key {key} may not use a priority below 0, which needs admin rights; send 0 or more, or ask the operator"
    )]
    PriorityNotAllowed {
        /// The key's name.
        key: String,
    },
    /// Too many requests.
    #[error("key {key} may make {limit} requests a minute; try again in {}", seconds(*retry_after))]
    RequestRateExceeded {
        /// The key's name.
        key: String,
        /// The limit a minute.
        limit: u32,
        /// When the next request is allowed.
        retry_after: Duration,
    },
    /// Too many answers.
    #[error(
        "key {key} may make {limit} requests a minute, and each of this request's {answers} answers counts as one; try again in \
         {}, or ask for fewer",
        seconds(*retry_after)
    )]
    AnswerRateExceeded {
        /// The key's name.
        key: String,
        /// The limit a minute.
        limit: u32,
        /// Prompts times answers to each.
        answers: usize,
        /// When this request is allowed.
        retry_after: Duration,
    },
    /// Too many tokens.
    #[error(
        "key {key} may use {limit} tokens a minute, and this request may take {wanted} with its prompt; try again in {}, or \
         ask for fewer new tokens",
        seconds(*retry_after)
    )]
    TokenRateExceeded {
        /// The key's name.
        key: String,
        /// The limit a minute.
        limit: u32,
        /// The tokens of the prompt and the longest answer.
        wanted: u64,
        /// When this request is allowed.
        retry_after: Duration,
    },
    /// Several answers that take more tokens together than the key has a minute. Waiting does not help.
    #[error(
        "key {key} may use {limit} tokens a minute, and this request's {answers} answers may take {wanted} together with their \
         prompts; ask for fewer answers, or for fewer new tokens in each"
    )]
    AnswersAboveTokenLimit {
        /// The key's name.
        key: String,
        /// The limit a minute.
        limit: u32,
        /// The tokens of the prompts and of all answers at their longest.
        wanted: u64,
        /// Prompts times answers to each.
        answers: usize,
    },
}

impl AuthError {
    /// When to try again; none if that would not help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            AuthError::RequestRateExceeded { retry_after, .. }
            | AuthError::AnswerRateExceeded { retry_after, .. }
            | AuthError::TokenRateExceeded { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

/// Whole seconds, at least one, as in the header `Retry-After`.
fn seconds(time: Duration) -> String {
    format!("{} s", (time.as_secs_f64().ceil() as u64).max(1))
}
