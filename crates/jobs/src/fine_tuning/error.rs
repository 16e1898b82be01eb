//! The error of a job's run: one variant for each cause. A record has it as a code and a message.

use std::path::PathBuf;

use formats::peft::PeftError;
use registry::{ReadError, VariableError};
use train::TrainError;

use crate::error::JobError;
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
    #[error("cannot write the adapter into {}: {source}", path.display())]
    WriteAdapter {
        /// Its folder.
        path: PathBuf,
        /// Why.
        source: WriteFolderError,
    },
    /// The trained adapter cannot be written or read for samples or the gate.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// The state or the version cannot be written.
    #[error(transparent)]
    Job(#[from] JobError),
}

impl RunError {
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
        TrainError::Row { .. } | TrainError::Rows { .. } => "invalid_training_file",
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
}
