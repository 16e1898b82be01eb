//! The record of an evaluation: one JSON file, replaced whole.

use serde::{Deserialize, Serialize};

use crate::records::failure::Failure;

/// The prefix of an evaluation's id.
pub const ID_PREFIX: &str = "eval-";

/// The status of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationStatus {
    /// It is in the queue.
    Queued,
    /// It is being measured.
    Running,
    /// Its result is stored.
    Succeeded,
    /// It failed; its error has the reason.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl EvaluationStatus {
    /// Whether the status is final.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, EvaluationStatus::Queued | EvaluationStatus::Running)
    }
}

/// The progress of an evaluation, in answers and other parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Done)]
pub struct EvaluationProgress {
    /// Finished parts.
    pub done: u64,
    /// All parts; 0 until the rows are read.
    pub of: u64,
}

/// The record of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival, which is the order of the queue.
    pub number: u64,
    /// The API key that requested it; `None` on a server without keys.
    pub owner: Option<String>,
    /// When it was requested, as a Unix time in seconds.
    pub created_at: u64,
    /// When it finished.
    pub finished_at: Option<u64>,
    /// Its status.
    pub status: EvaluationStatus,
    /// The personas to measure, each as `name@version`.
    pub personas: Vec<String>,
    /// The id of the file whose questions they answer; `None` for each persona's own rows.
    pub file: Option<String>,
    /// The most rows of each persona.
    pub max_rows: usize,
    /// Its progress.
    pub progress: EvaluationProgress,
    /// Why it failed.
    pub error: Option<Failure>,
    /// The id of its stored result.
    pub result: Option<String>,
}
