//! The service and the HTTP server, over a tiny random base with two personas. `setup` has the base and the personas.

mod access;
mod bad_input;
mod batch_invariance;
mod chat_completions;
mod chat_templates;
mod completions;
mod disconnects;
mod formats;
mod generate;
mod graphics_card;
mod isolation;
mod jobs;
mod limits;
mod metrics;
mod model_names;
mod openapi;
#[cfg(unix)]
mod pool;
mod publishing;
mod registry_home;
mod server_lifecycle;
mod setup;
mod start_errors;
mod tenants;
mod tls;
mod uploads;
mod variables;
mod votes;
