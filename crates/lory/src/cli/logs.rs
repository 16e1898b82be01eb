//! The log on stderr. docs/operations.md lists the fields of a request's event.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// The crates whose events `lory` selects in a filter.
const CRATES: [&str; 6] = ["lory", "server", "jobs", "service", "auth", "base"];

/// The format of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// A line of text.
    Text,
    /// A JSON object.
    Json,
}

/// The log of commands that print their own results.
pub(crate) fn warnings_only() {
    start(LogFormat::Text, "warn");
}

/// The log of a server: an event for each request.
pub(crate) fn for_server(format: LogFormat) {
    start(format, "warn,lory=info");
}

/// `events` is the filter if `RUST_LOG` is not set.
fn start(format: LogFormat, events: &str) {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(chosen) if !chosen.is_empty() => EnvFilter::new(for_every_crate(&chosen)),
        _ => EnvFilter::new(for_every_crate(events)),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colour codes would end up in files and journals.
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
