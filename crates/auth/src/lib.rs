//! Who may ask for what: API keys, what each may use, and how much of it a minute. Knows no HTTP.
//!
//! - [`secret`]: what a client holds, and what is kept of it
//! - [`file`](mod@file): keys as they are written down
//! - [`keys`]: the keys in force, read again when their file changes
//! - [`rate`]: so many a minute
//! - [`error`]: what is wrong with a file of keys, and why someone was turned away

pub mod error;
pub mod file;
pub mod keys;
pub mod rate;
pub mod secret;

pub use error::{Denied, KeysError};
pub use keys::{Hold, Key, Keys};
