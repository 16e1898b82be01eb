//! The service and the HTTP server, over a tiny random base with two personas. `setup` has the base and the personas.

mod access;
mod bad_input;
mod chat_completions;
mod company;
mod completions;
mod departure;
mod formats;
mod generate;
mod jobs;
mod life;
mod limits;
mod metrics;
mod openapi;
mod opening;
#[cfg(unix)]
mod pool;
mod publishing;
mod registry_home;
mod setup;
mod tls;
mod uploads;
mod variables;
mod votes;
