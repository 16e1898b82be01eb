//! Text in, text out: resolves personas, renders templates, compiles grammars, reads tool calls and drives the engine. The command line
//! and the HTTP server share it. Must not know training or HTTP.
//!
//! ```text
//! GenerateRequest -> voice (persona -> prompt, sampling, adapters) -> prompt (template, tokens) -> engine
//!     -> answer (detokenizer, stop strings, on the engine's thread) -> the caller's sink
//! ```
//!
//! Start with [`service::Service`]. Every call is synchronous. [`Service::submit`] returns once the request is queued and passes text to
//! a sink; [`Service::stream`] and [`Service::generate`] wait for it.
//!
//! - [`ask`]: a request, as plain data; [`caller`]: its API key and its usage
//! - `voice`: resolves the persona; [`catalog`]: the personas that can be requested now; `adapters`: loads adapters into the engine's
//!   memory
//! - [`tools`]: functions that a model may call; [`grammar`]: constrains an answer token by token; `schema`: JSON schemas that are refused
//! - `choices`: several answers to one prompt
//! - [`publishing`]: publishes versions while others are served; [`uploads`]: adapters that clients send; [`shadow`]: versions that answer
//!   only to be compared; [`votes`]: which of two answers people preferred
//! - `prompt`: the conversation as token ids
//! - [`answer`]: tokens back into text; `stop`: stop strings; `calls`: tool calls
//! - [`runner`]: runs the engine's plan on the model; [`sharing`]: divides compute between serving and training
//! - [`meters`]: counts requests; [`error`]: what can go wrong, by field

mod adapters;
pub mod answer;
pub mod caller;
pub mod catalog;
pub mod compute_arbiter;
pub mod error;
pub mod grammar;
mod parallel_sampling;
mod persona_resolution;
mod prompt;
pub mod publishing;
pub mod request;
pub mod request_metrics;
pub mod runner;
mod schema_limits;
pub mod service;
pub mod shadow;
mod stop;
mod tool_call_parser;
pub mod tools;
pub mod uploads;
pub mod votes;

pub use adapters::AdapterError;
pub use answer::{
    Answer, AnswerBuilder, Delta, End, FinishReason, TextEvent, TextSink, TokenLogprob,
    ToolCallDelta,
};
pub use caller::{Caller, RequestLog, RequestLogEntry};
pub use catalog::Catalog;
pub use error::{PublishError, RequestError, ServiceStartError, VoteError};
pub use grammar::OutputFormat;
pub use parallel_sampling::Tickets;
pub use persona_resolution::{AdapterUse, ModelIdentity};
pub use publishing::NewVersion;
pub use request::{Conversation, FieldNames, GenerateRequest, MAX_CHOICES, Overrides};
pub use request_metrics::RequestMetrics;
pub use service::{
    DEFAULT_MAX_NEW_TOKENS, DEFAULT_TEMPERATURE, QueuedRequest, Service, Settings, TextStream,
};
pub use shadow::Shadows;
pub use tools::{Tool, ToolCall, ToolChoice, Tools};
