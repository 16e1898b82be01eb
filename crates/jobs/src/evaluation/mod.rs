//! What personas are worth, on rows that training never saw: measured, and held to their thresholds. `lory eval` asks it for
//! people, a training job before it publishes, and whoever asks a server for it. Knows no terminal and no HTTP.
//!
//! Answers come from the engine, base and personas mixed in its batches, always the most probable token. The base is given
//! the persona's own system prompt, so that what differs is the adapter. Losses and drift run in the arithmetic that
//! serves, each adapter at its persona's scale.
//!
//! - `answers`: all questions, asked of everyone
//! - `measures`: what the answers, rows and adapters are worth, as plain data
//! - `gate`: the thresholds of `[eval]`
//! - `summary`: all of it as it is stored

pub mod answers;
pub mod candidate;
pub mod gate;
pub mod measures;
pub(crate) mod offline_engine;
pub mod requests;
mod run;
pub mod summary;

pub use candidate::{Candidate, rows};
pub use measures::examples;
