//! Continuous batching over token ids: many requests, each with its own blend of adapters, share every forward step.
//!
//! The engine runs on one thread of its own. It schedules requests into steps, has a [`Runner`] (the model) execute each
//! step, samples from the logits and passes the tokens to each request's sink:
//!
//! ```text
//! Handle::submit -> channel -> step: drain commands, schedule, run, sample, emit -> the request's sink
//! ```
//!
//! It must not know text, JSON, HTTP or personas: requests are token ids, and adapters are content hashes.
//!
//! Read `step` first: it is the main loop. Then, in the order of a request:
//!
//! - [`config`], [`request`], [`handle`]: the settings, what a request is, and how the rest of the program submits one;
//!   `permit`: the bound on requests in the engine
//! - [`adapter_pool`]: the adapters in memory, with leases; [`reservation`]: how a request gets all of its adapters, and
//!   waits for them (`wait_queue`); `adapter_shares`: how clients share the pool; [`adapter_id`]: the content hash they are known by
//! - `sequence`: one request under way; `scheduler`: which sequences run in the next step, with `fair_share` (whose turn it
//!   is), `client_id`, `client_shares` and `preemption` (who gives way), `prompt_rows` (whose prompts run), `grammar_budget`
//!   (how long grammars may take), `step_cost` (how many rows fit in a step's time), `blocks`, `prefix_cache` and `cache_scope` (the KV cache), and `prompt_lookup`
//!   (draft tokens)
//! - [`batch`] and [`runner`]: one step as plain data, and the model that executes it; `plan`: a batch with its sequences
//! - `output`: from [`logits`] to tokens, with [`Sampling`] (the parameters), `sampler`, `logits_processor` and `softmax` (the
//!   draw), and [`constraint`] (grammars)
//! - [`event`] and `response_sink`: what a request's caller receives; [`stats`] and [`error`]: numbers and failures

pub mod adapter_id;
pub mod adapter_pool;
mod adapter_shares;
pub mod batch;
mod blocks;
mod cache_scope;
mod client_id;
mod client_shares;
pub mod config;
pub mod constraint;
pub mod error;
pub mod event;
mod fair_share;
mod grammar_budget;
pub mod handle;
pub mod logits;
mod logits_processor;
mod output;
mod permit;
mod plan;
mod preemption;
mod prefix_cache;
mod prompt_lookup;
mod prompt_rows;
pub mod request;
pub mod reservation;
mod response_sink;
pub mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod softmax;
pub mod stats;
mod step;
mod step_cost;
mod wait_queue;

pub use adapter_id::{AdapterId, ParseAdapterIdError};
pub use adapter_pool::{AdapterInfo, Lease};
pub use batch::{Batch, SequenceRows};
pub use cache_scope::CacheSalt;
pub use config::EngineConfig;
pub use constraint::{Constraint, Grammar, Progress};
pub use error::{PoolError, ReservationError, StartError, SubmitError};
pub use event::{Event, FinishReason, Finished, Flow, Sink, Timings, Token};
pub use handle::{Engine, Handle, Stream, Ticket};
pub use logits::{Candidates, Logits, MOST_CANDIDATES};
pub use permit::Permit;
pub use request::{Client, MAX_TOP_LOGPROBS, Request};
pub use reservation::{Reservation, WaitOptions};
pub use runner::{Limits, Runner};
pub use sampling::{MAX_LOGIT_BIAS, Sampling};
pub use stats::{AdapterStats, LoadTimes, Stats};
