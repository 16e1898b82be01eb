//! What is wrong with a file of keys, and why someone was turned away. No message holds a secret, or the hash of one.

use std::path::PathBuf;
use std::time::Duration;

/// Keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What it says is not understood.
    #[error("{place}: {message}")]
    Invalid {
        /// The file and the line, or the variable.
        place: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The system has no random numbers to make a secret of.
    #[error("cannot make a secret: {0}")]
    Random(getrandom::Error),
}

/// Why someone was turned away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No key was sent.
    #[error("this server wants a key; send the header Authorization: Bearer KEY")]
    NoKey,
    /// What was sent is no key of this server.
    #[error(
        "the key is not known here; check that it was copied whole, and that it was not revoked"
    )]
    UnknownKey,
    /// The route is for keys with admin rights.
    #[error("key {key} has no admin rights, which this route needs")]
    NotAdmin {
        /// The key's name.
        key: String,
    },
    /// The route is for keys that may train.
    #[error("key {key} may not train; give it `train = true`, or make it anew with --train")]
    NoTraining {
        /// The key's name.
        key: String,
    },
    /// The persona is not among those that the key may use.
    #[error("key {key} may not use {asked:?}; it may use {may}")]
    Persona {
        /// The key's name.
        key: String,
        /// The persona.
        asked: String,
        /// What it may use, in words.
        may: String,
    },
    /// Only keys with admin rights go before others.
    #[error("key {key} may not go before others; a priority below 0 needs admin rights")]
    Priority {
        /// The key's name.
        key: String,
    },
    /// Too many requests.
    #[error("key {key} may make {limit} requests a minute; try again in {}", seconds(*retry_after))]
    Requests {
        /// The key's name.
        key: String,
        /// How many a minute.
        limit: u32,
        /// In how long there is room for one.
        retry_after: Duration,
    },
    /// Too many tokens.
    #[error(
        "key {key} may use {limit} tokens a minute, and this request may take {wanted} with its prompt; try again in {}, or \
         ask for fewer new tokens",
        seconds(*retry_after)
    )]
    Tokens {
        /// The key's name.
        key: String,
        /// How many a minute.
        limit: u32,
        /// Tokens of the prompt and the most of the answer.
        wanted: u64,
        /// In how long there is room.
        retry_after: Duration,
    },
}

impl Denied {
    /// In how long it is worth another try, if it is.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Denied::Requests { retry_after, .. } | Denied::Tokens { retry_after, .. } => {
                Some(*retry_after)
            }
            _ => None,
        }
    }
}

/// Whole seconds, at least one: what `Retry-After` takes.
fn seconds(time: Duration) -> String {
    format!("{} s", (time.as_secs_f64().ceil() as u64).max(1))
}
