//! Exit codes, and how errors are printed.

use std::io::ErrorKind;
use std::process::ExitCode;

/// How a command ended that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    Success,
    /// The command found a problem: lint findings, missed thresholds, an interruption.
    Failure,
}

/// A command line that clap accepts and the command does not. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub String);

/// The exit code of a command's result. Prints the error, if it is one.
pub(crate) fn code(result: anyhow::Result<ExitStatus>) -> ExitCode {
    match result {
        Ok(ExitStatus::Success) => ExitCode::SUCCESS,
        Ok(ExitStatus::Failure) => ExitCode::from(1),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// The error and its causes, without causes that the message already contains.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Whether the reader of stdout has closed it (`lory ... | head`), which is not a failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_printed_once() {
        let io = || std::io::Error::other("no disk");
        let error = anyhow::Error::new(io())
            .context("cannot write a")
            .context("b");
        assert_eq!(message(&error), "b: cannot write a: no disk");
        let error = anyhow::Error::new(io()).context("a: no disk");
        assert_eq!(message(&error), "a: no disk");
    }
}
