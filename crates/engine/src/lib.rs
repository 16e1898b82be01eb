//! Continuous batching over token ids: many requests, each with its own blend of adapters, share every forward step.
//!
//! The engine knows no text, no JSON, no HTTP and no persona. It drives a [`Runner`] (the model) on its own thread,
//! and is reached through a [`Handle`]:
//!
//! ```text
//! Handle::submit -> channel -> step: drain, schedule, run, sample, emit -> the request's sink
//! ```
//!
//! - [`runner`] and [`plan`]: what the engine asks of a model, as plain data
//! - `step`: the loop; `scheduler`: who runs next; `sequence`: one request under way; `blocks`: the KV cache's blocks
//! - [`sampling`], `sampler` and `softmax`: the settings, the draw, and its passes over the vocabulary
//! - [`constraint`]: what may be drawn, where the caller decides it token by token
//! - [`adapters`]: the pool of resident adapters, by content hash, with leases; [`claim`]: how requests wait for others
//! - [`event`], [`handle`], [`stats`], [`error`]: what callers see

pub mod adapters;
mod blocks;
pub mod claim;
pub mod constraint;
pub mod error;
pub mod event;
pub mod handle;
mod lookup;
mod pace;
pub mod plan;
mod prefix;
pub mod runner;
mod sampler;
pub mod sampling;
mod scheduler;
mod sequence;
mod shares;
mod softmax;
pub mod stats;
mod step;

pub use adapters::{AdapterId, AdapterInfo, Lease};
pub use claim::{Claim, Patience};
pub use constraint::{Constraint, Grammar, Progress};
pub use error::{ClaimError, ParseAdapterIdError, PoolError, StartError, SubmitError};
pub use event::{Event, FinishReason, Finished, Flow, Sink, Timings, Token};
pub use handle::{Engine, EngineConfig, Handle, Request, Seat, Stream, Ticket};
pub use plan::{Batch, SequenceRows};
pub use runner::{Limits, Runner};
pub use sampling::{MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, Sampling};
pub use shares::Client;
pub use stats::{AdapterStats, LoadTimes, Stats};
