//! API keys: who may use which personas, and how much of the server a minute. Must not know HTTP.
//!
//! Start with [`Keys`]: it finds the key of a secret, and [`Key`] checks what the key permits. Each refusal is an [`AuthError`],
//! which the server turns into a status code.
//!
//! - [`keys`]: the keys in force, reloaded when their file changes
//! - [`key`]: one key in force, with its limits a minute
//! - [`key_entry`]: one key's settings
//! - [`key_file`]: reads the file of keys
//! - [`key_edits`]: adds keys to it and removes them
//! - [`key_variable`]: reads keys from `LORY_API_KEYS`
//! - [`secret`]: a client's secret and its hash
//! - [`quota`]: how much of what is stored and queued one key may have
//! - [`rate_limit`]: limits on requests and tokens a minute
//! - [`error`]: errors in a file of keys, and refusals

pub mod error;
pub mod key;
pub mod key_edits;
pub mod key_entry;
pub mod key_file;
pub mod key_variable;
pub mod keys;
pub mod quota;
pub mod rate_limit;
pub mod secret;

pub use error::{AuthError, KeysError};
pub use key::{CountedAnswers, Key, TokenReservation};
pub use key_entry::KeyEntry;
pub use keys::Keys;
pub use quota::{Owner, QuotaExceeded, Quotas, Resource, Usage};
