//! The log, on stderr. What it says of requests is in docs/operations.md.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// The crates whose events `lory` selects in a filter.
const CRATES: [&str; 6] = ["lory", "server", "jobs", "service", "auth", "base"];

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
        Ok(chosen) if !chosen.is_empty() => EnvFilter::new(for_every_crate(&chosen)),
        _ => EnvFilter::new(for_every_crate(events)),
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

/// Repeats the directives about `lory` for each of [`CRATES`].
fn for_every_crate(filter: &str) -> String {
    let directives = filter.split(',').map(|directive| {
        let level = directive.trim().strip_prefix("lory");
        match level.filter(|level| level.is_empty() || level.starts_with('=')) {
            Some(level) => CRATES.map(|name| format!("{name}{level}")).join(","),
            None => directive.to_owned(),
        }
    });
    directives.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lory_selects_the_events_of_every_crate() {
        let all = "lory=info,server=info,jobs=info,service=info,auth=info,base=info";
        assert_eq!(for_every_crate("warn,lory=info"), format!("warn,{all}"));
        assert_eq!(for_every_crate("lory::request=off"), "lory::request=off");
    }
}
