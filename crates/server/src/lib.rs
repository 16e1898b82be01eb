//! The HTTP server: JSON and server-sent events in front of [`service`] and [`jobs`]. Must not know kernels or the trainer's internals.
//!
//! Start with `routes`: it lists every route and the layers around them. Handlers are in its modules, named for what a client does.
//!
//! - [`serve`] runs the server: `server` accepts connections, `tls` has the certificate, `write_timeout` disconnects clients that do
//!   not read, `settings` has the limits ([`ServerSettings`])
//! - `middleware`: the request log, API keys and cross-origin requests
//! - [`AppState`]: what handlers share; `server_state`: requests in flight and counters of responses; `blocking`: work that waits for
//!   a disk, off the async threads
//! - Requests: `json` and `query` parse them, `with_sampling` adds the sampling parameters to a body, `stream_options` is a field
//! - Responses: `answer_stream` sends events; `completion_object`, `logprobs`, `usage`, `unix_time` and `milliseconds` are shapes of
//!   the wire formats; `error` gives every error its status
//! - `openapi`: the description of all routes, generated from the handlers; `origin`: origins of web pages, for CORS
//! - `studio`: the web page that uses this API

mod answer_stream;
mod app_state;
mod blocking;
mod completion_object;
mod error;
mod json;
mod logprobs;
mod middleware;
mod milliseconds;
mod openapi;
mod origin;
mod query;
mod routes;
mod server;
mod server_state;
mod settings;
mod stream_options;
mod studio;
mod tls;
mod unix_time;
mod usage;
mod with_sampling;
mod write_timeout;

pub use app_state::AppState;
pub use origin::{InvalidOrigin, Origin};
pub use routes::personas::responses as persona_responses;
pub use server::{serve, shutdown_signal};
pub use settings::{MAX_BODY, MAX_HEADERS, ServerSettings};
pub use tls::{Tls, TlsError};
