//! The log, on stderr. What it says of requests is in docs/operations.md.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// What an event looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object for machines.
    Json,
}

/// For commands that speak for themselves: only what goes wrong.
pub(super) fn quiet() {
    start(LogFormat::Text, "warn");
}

/// For a server: a line for each request.
pub(super) fn serving(format: LogFormat) {
    start(format, "warn,lory=info");
}

/// `events` is what is shown where `RUST_LOG` says nothing.
fn start(format: LogFormat, events: &str) {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(chosen) if !chosen.is_empty() => EnvFilter::new(chosen),
        _ => EnvFilter::new(events),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A file or a journal keeps colours as rubbish between the words.
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
