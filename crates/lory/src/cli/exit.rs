//! Exit codes, and how errors are printed.

use std::io::ErrorKind;
use std::process::ExitCode;

use dataset::DatasetError;
use jobs::evaluation::EvaluationError;
use registry::LookupError;
use train::TrainError;

use crate::cli::output::shell::quoted;

/// A known name at least this similar to an unknown one (Jaro-Winkler, 0 to 1) is suggested.
const SIMILAR: f64 = 0.9;

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
            if let Some(hint) = hint(&error) {
                eprintln!("hint: {hint}");
            }
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

/// What to do about an error whose message cannot say it, because programs that are not a command line report it too.
fn hint(error: &anyhow::Error) -> Option<String> {
    broken_rows_hint(error).or_else(|| unknown_persona_hint(error))
}

/// The command that lists all problems of a file whose rows are broken.
fn broken_rows_hint(error: &anyhow::Error) -> Option<String> {
    let of_training = |cause: &TrainError| match cause {
        TrainError::Dataset(DatasetError::Row { file, .. } | DatasetError::Rows { file, .. }) => {
            Some(file.clone())
        }
        _ => None,
    };
    let file = error.chain().find_map(|cause| {
        let evaluation = cause.downcast_ref::<EvaluationError>();
        match (cause.downcast_ref(), evaluation) {
            (Some(cause), _) | (None, Some(EvaluationError::Train(cause))) => of_training(cause),
            _ => None,
        }
    })?;
    Some(format!(
        "lory data lint {} lists what is wrong with its rows",
        quoted(&file)
    ))
}

/// How an unknown persona is made, or which one was meant.
fn unknown_persona_hint(error: &anyhow::Error) -> Option<String> {
    let unknown = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(LookupError::Unknown { name, available }) => Some((name, available)),
        _ => None,
    });
    let (name, available) = unknown?;
    let similarity = |known: &String| strsim::jaro_winkler(known, name);
    let nearest = available
        .iter()
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    Some(match nearest {
        Some(known) if similarity(known) >= SIMILAR => format!("did you mean {known}?"),
        _ => format!(
            "lory train --data FILE.jsonl --out personas/{name} makes it; lory train --help has more ways"
        ),
    })
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
    fn an_unknown_persona_is_made_or_was_misspelled() {
        let unknown = |name: &str| {
            let error = LookupError::Unknown {
                name: name.to_owned(),
                available: vec!["customer".to_owned(), "partner".to_owned()],
            };
            hint(&anyhow::Error::new(error).context("--persona")).unwrap()
        };
        assert_eq!(unknown("custommer"), "did you mean customer?");
        let made = unknown("pirate");
        assert!(made.starts_with("lory train --data FILE.jsonl --out personas/pirate makes it"));
        assert_eq!(hint(&anyhow::anyhow!("no disk")), None);
    }

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
