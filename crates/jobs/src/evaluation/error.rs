//! The error of an evaluation: one variant for each cause.

use dataset::{DatasetError, RowLocation};
use registry::spec::SpecError;
use registry::{LookupError, PersonaError, ReadError, VariableError};
use service::{RequestError, ServiceStartError};
use train::TrainError;

use crate::error::{EvaluationMemoryError, JobError, SERVER_FILES, train_message};
use crate::evaluation_results::ResultError;

/// Why an evaluation has no result.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// Rows are broken, a tone pattern is not a regular expression, or losses or drift cannot be computed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The rows of an uploaded file are broken; the message has the client's file name.
    #[error("{0}")]
    Rows(String),
    /// A persona's `[train]` table is invalid.
    #[error(transparent)]
    Persona(#[from] PersonaError),
    /// A variable of a system prompt has no default.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// A persona's name is invalid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A persona does not exist any more.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// An adapter cannot be read.
    #[error(transparent)]
    Adapter(#[from] ReadError),
    /// A persona has no rows to evaluate.
    #[error("{persona} has no evaluation rows")]
    NoRows {
        /// The persona.
        persona: String,
    },
    /// A persona's rows have no questions.
    #[error("{persona} has no questions: its rows are plain texts; give rows with questions")]
    NoQuestions {
        /// The persona.
        persona: String,
    },
    /// The adapters need more memory than there is.
    #[error(transparent)]
    Memory(#[from] EvaluationMemoryError),
    /// The offline engine cannot start.
    #[error(transparent)]
    Start(#[from] ServiceStartError),
    /// A question is refused.
    #[error("{row}: {source}")]
    Question {
        /// The row of the question.
        row: RowLocation,
        /// Why.
        source: Box<RequestError>,
    },
    /// An answer failed.
    #[error(transparent)]
    Answer(#[from] RequestError),
    /// The file of the rows does not exist any more, or cannot be read.
    #[error(transparent)]
    File(#[from] JobError),
    /// The result cannot be stored.
    #[error(transparent)]
    Results(#[from] ResultError),
}

impl EvaluationError {
    /// The message for clients, without files of the server.
    #[must_use]
    pub fn client_message(&self) -> String {
        match self {
            EvaluationError::Train(error) => train_message(error),
            EvaluationError::Adapter(error) => error.client_message(),
            EvaluationError::Question { row, source } => {
                format!("{row}: {}", source.client_message())
            }
            EvaluationError::Answer(error) => error.client_message(),
            EvaluationError::File(error) => error.client_message(),
            EvaluationError::Start(_) => {
                "the server cannot run the evaluation; its log has the reason".to_owned()
            }
            EvaluationError::Results(ResultError::Io { .. } | ResultError::Broken { .. }) => {
                SERVER_FILES.to_owned()
            }
            error => error.to_string(),
        }
    }
}

impl From<DatasetError> for EvaluationError {
    fn from(error: DatasetError) -> EvaluationError {
        TrainError::from(error).into()
    }
}
