//! Evaluation: measures personas on held-out rows and checks the thresholds of their `[eval]` tables. `lory eval`, the eval gate of
//! training jobs and `/v1/evaluations` use it. Must not know terminals or HTTP.
//!
//! Answers come from the engine, with base and personas mixed in its batches, and are greedy. The base gets the persona's system
//! prompt, so that only the adapter differs. Losses and drift run in the arithmetic that serves, each adapter at its persona's scale.
//!
//! - `candidate`: a persona to evaluate, and its rows
//! - `answers`: asks all questions
//! - `measures`: measures of answers, rows and adapters, as plain data
//! - `gate`: checks the thresholds of `[eval]`
//! - `summary`: the result as it is stored
//! - `requests`: the queue of requested evaluations; `run`: runs one of them
//! - `offline_engine`: an engine for personas that are not published; `error`: why an evaluation has no result

pub mod answers;
pub mod candidate;
mod error;
pub mod gate;
pub mod measures;
pub(crate) mod offline_engine;
pub mod requests;
mod run;
pub mod summary;

pub use candidate::{Candidate, rows};
pub use error::EvaluationError;
pub use measures::examples;
