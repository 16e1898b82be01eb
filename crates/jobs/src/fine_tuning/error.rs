//! The error of a job's run: one variant for each cause. A record has it as a code and a message.

use dataset::DatasetError;
use formats::peft::PeftError;
use registry::{ReadError, VariableError};
use train::TrainError;

use crate::error::{JobError, SERVER_FILES, train_message};
use crate::evaluation::EvaluationError;
use crate::training::folder::WriteFolderError;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Rows are invalid, the run does not fit into memory, or training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The adapter cannot be evaluated.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// There are thresholds and no rows to check them with.
    #[error(
        "the gate has no questions: no rows are held out, or they are plain texts; give a validation_file with questions"
    )]
    NoGateQuestions,
    /// A variable of the persona's system prompt has no default.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// The adapter that training starts from cannot be read.
    #[error(transparent)]
    StartAdapter(#[from] ReadError),
    /// The trainer finished with no adapter.
    #[error("no adapter was trained")]
    NoAdapter,
    /// The trained adapter cannot be written.
    #[error("cannot write the adapter: {0}")]
    WriteAdapter(#[from] WriteFolderError),
    /// The trained adapter cannot be written or read for samples or the gate.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// The state or the version cannot be written.
    #[error(transparent)]
    Job(#[from] JobError),
}

impl From<DatasetError> for RunError {
    fn from(error: DatasetError) -> RunError {
        TrainError::from(error).into()
    }
}

impl RunError {
    /// The message for clients. Files of the server are the operator's business.
    pub fn client_message(&self) -> String {
        match self {
            RunError::Train(error) => train_message(error),
            RunError::Evaluation(error) => error.client_message(),
            RunError::StartAdapter(error) => error.client_message(),
            RunError::WriteAdapter(_) | RunError::Adapter(_) => SERVER_FILES.to_owned(),
            RunError::Job(error) => error.client_message(),
            error => error.to_string(),
        }
    }

    /// The code of a failed job.
    pub fn code(&self) -> &'static str {
        match self {
            RunError::Train(error) | RunError::Evaluation(EvaluationError::Train(error)) => {
                train_error_code(error)
            }
            RunError::Job(JobError::Invalid { .. }) => "invalid_value",
            _ => "training_failed",
        }
    }

    /// The request field that it is about.
    pub fn param(&self) -> Option<&str> {
        match self {
            RunError::Job(error) => error.field(),
            _ => None,
        }
    }
}

fn train_error_code(error: &TrainError) -> &'static str {
    match error {
        TrainError::Dataset(DatasetError::Row { .. } | DatasetError::Rows { .. }) => {
            "invalid_training_file"
        }
        TrainError::NotFinite { .. } => "diverged",
        TrainError::Memory { .. } => "out_of_memory",
        _ => "training_failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_run_names_the_field_that_it_is_about() {
        let error = RunError::from(JobError::invalid("model", "is gone"));
        assert_eq!(
            (error.code(), error.param()),
            ("invalid_value", Some("model"))
        );
        assert_eq!(RunError::NoAdapter.param(), None);
    }

    #[test]
    fn failed_run_shows_no_file_of_the_server() {
        for path in ["/srv/lory/jobs/ftjob-1", "home/jobs/ftjob-1"] {
            let io = || std::io::Error::other(format!("{path}: no space left"));
            let peft = || PeftError::Io {
                path: path.into(),
                source: io(),
            };
            for error in [
                RunError::from(WriteFolderError::Io(io())),
                RunError::from(WriteFolderError::Peft(peft())),
                RunError::from(peft()),
                RunError::from(TrainError::Write {
                    path: path.into(),
                    source: io(),
                }),
                RunError::from(EvaluationError::Train(TrainError::Write {
                    path: path.into(),
                    source: io(),
                })),
                RunError::from(JobError::io(std::path::Path::new(path))(io())),
            ] {
                let message = error.client_message();
                assert!(error.to_string().contains(path), "{error}");
                assert!(!message.contains("ftjob-1"), "{message}");
                assert!(message.contains("log has the reason"), "{message}");
            }
        }
    }
}
