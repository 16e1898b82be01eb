//! Text in, text out: resolves personas, renders templates, compiles grammars, reads tool calls and drives the engine. The command line
//! and the HTTP server share it. Must not know training or HTTP.
//!
//! ```text
//! Ask -> voice (persona -> prompt, sampling, adapters) -> prompt (template, tokens) -> engine
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
pub mod ask;
pub mod caller;
mod calls;
pub mod catalog;
mod choices;
pub mod error;
pub mod grammar;
pub mod meters;
mod prompt;
pub mod publishing;
pub mod runner;
mod schema;
pub mod service;
pub mod shadow;
pub mod sharing;
mod stop;
pub mod tools;
pub mod uploads;
mod voice;
pub mod votes;

pub use adapters::AdapterError;
pub use answer::{
    Answer, CallDelta, Delta, End, FinishReason, Gathered, SpokenToken, TextEvent, TextSink,
};
pub use ask::{Ask, Conversation, FieldNames, MAX_CHOICES, Overrides};
pub use caller::{Account, Caller, Notes};
pub use catalog::Catalog;
pub use choices::Tickets;
pub use error::{OpenError, PublishError, RequestError, VoteError};
pub use grammar::Format;
pub use meters::Meters;
pub use publishing::NewVersion;
pub use service::{
    Accepted, DEFAULT_MAX_NEW_TOKENS, DEFAULT_TEMPERATURE, Service, Settings, TextStream,
};
pub use shadow::Shadows;
pub use tools::{Call, Tool, ToolChoice, Tools};
pub use voice::{AdapterUse, Speaker};
