//! Text in, text out: the service answers requests to personas from one base. The HTTP server, the command line and jobs use it.
//! Must not know training or HTTP.
//!
//! A request passes through these modules, and its answer comes back through the last one:
//!
//! ```text
//! request            a GenerateRequest as plain data
//! persona_resolution the persona becomes a system prompt, sampling parameters and adapters
//! prompt             the chat template renders the conversation to token ids
//! grammar            a JSON schema or tools become a constraint on the tokens
//! adapters           the adapters are loaded and leased
//! engine             (another crate) generates tokens
//! answer             tokens become text and tool calls; stop strings end the answer
//! ```
//!
//! Read [`persona_service`] first: [`Service::submit`] is that path. Every call is synchronous. `submit` returns once the request is queued,
//! and its sink receives the text on the engine's thread; [`Service::stream`] and [`Service::generate`] wait for the text.
//!
//! - Requests: [`request`], with the names and limits of its [`fields`]; [`caller`], its API key; [`request_log`] and
//!   [`request_metrics`], what is recorded of it; `cache_salt`, who may share its cached prompt; [`error`]
//! - Memory: `logprob_budget`, the log-probabilities that a key's responses hold
//! - Answers: [`answer`]; [`tools`] and their calls, which `tool_call_parser` finds in the text; `stop`; `parallel_sampling`, several answers to one prompt;
//!   [`model_identity`], what answered
//! - Personas: [`catalog`], those that can be requested now; [`model_names`], what requests call them; `persona_service::publishing`; [`uploads`], adapters from clients, which
//!   `archive` unpacks; [`shadow`] versions; [`votes`] of people who compared answers
//! - Compute: [`runner`] runs the engine's plan on the model; [`compute_arbiter`] divides the machine between steps and background
//!   work

mod adapters;
pub mod answer;
mod archive;
mod cache_salt;
pub mod caller;
pub mod catalog;
pub mod compute_arbiter;
pub mod error;
pub mod fields;
pub mod grammar;
mod logprob_budget;
pub mod model_identity;
pub mod model_names;
mod parallel_sampling;
mod persona_resolution;
pub mod persona_service;
mod prompt;
pub mod request;
pub mod request_log;
pub mod request_metrics;
pub mod runner;
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
pub use caller::Caller;
pub use catalog::Catalog;
pub use error::{PublishError, RequestError, ServiceStartError};
pub use fields::{FieldNames, MAX_CHOICES, MAX_LOGPROBS};
pub use grammar::OutputFormat;
pub use model_identity::{AdapterUse, ModelIdentity};
pub use model_names::{ModelAlias, NamedModel, requested_name};
pub use parallel_sampling::Tickets;
pub use persona_service::NameError;
pub use persona_service::publishing::NewVersion;
pub use persona_service::{
    DEFAULT_MAX_NEW_TOKENS, DEFAULT_TEMPERATURE, QueuedRequest, Service, Settings, TextStream,
};
pub use request::{Conversation, GenerateRequest};
pub use request_log::{RequestLog, RequestLogEntry};
pub use request_metrics::RequestMetrics;
pub use sampling::SamplingParams;
pub use shadow::Shadows;
pub use tools::{Tool, ToolCall, ToolChoice, Tools};
pub use uploads::MAX_ARCHIVE;
pub use votes::VoteError;
