//! The HTTP server: JSON and server-sent events in front of [`service`] and [`jobs`]. Must not know kernels or the trainer's internals.
//!
//! Start with `routes`: it lists every route and the layers around them. Handlers are in its modules, named for what a client does.
//!
//! - [`serve`] runs the server: `server` accepts connections, `connections` bounds them, `tls` has the certificate, `write_timeout`
//!   disconnects clients that do not read, `settings` has the limits ([`ServerSettings`])
//! - `middleware`: the request log, API keys and cross-origin requests; `rejected_keys` counts invalid keys, and
//!   `refusal_pace` slows down clients whose requests are refused all the time
//! - [`AppState`]: what handlers share; `server_state`: requests in flight and counters of responses
//! - `work`: where blocking work runs and which key pays, in the `work_pools`, each a `work_pool`; `body_budget` bounds the memory of bodies,
//!   and `arriving_bodies` how many of one key arrive at once; a `guarded_body` keeps what ends with it
//! - Requests: `json`, `path` and `query` parse them, `with_sampling` adds the sampling parameters to a body, `stream_options` and
//!   `token_limit` are fields, and `neutral_fields` are those of other servers
//! - Responses: `answer_stream` sends events; `completion_object`, `logprobs`, `usage`, `unix_time` and `milliseconds` are shapes of
//!   the wire formats; `error` gives every error its status
//! - `openapi`: the description of all routes, generated from the handlers; `origin` and `host`: which web pages may send requests, and to
//!   which names
//! - `studio`: the web page that uses this API

mod answer_stream;
mod app_state;
mod arriving_bodies;
mod body_budget;
mod completion_object;
mod connections;
mod error;
mod guarded_body;
mod host;
mod json;
mod logprobs;
mod middleware;
mod milliseconds;
mod neutral_fields;
mod openapi;
mod origin;
mod path;
mod query;
mod refusal_pace;
mod rejected_keys;
mod routes;
mod server;
mod server_state;
mod settings;
mod stream_options;
mod studio;
mod tls;
mod token_limit;
mod unix_time;
mod usage;
mod with_sampling;
mod work;
mod work_pool;
mod work_pools;
mod write_timeout;

pub use app_state::AppState;
pub use host::{AllowedHost, InvalidHost};
pub use origin::{InvalidOrigin, Origin};
pub use routes::personas::responses as persona_responses;
pub use server::{serve, shutdown_signal};
pub use settings::{MAX_BODY, MAX_HEADERS, MAX_URI, ServerSettings};
pub use tls::{Tls, TlsError};
