//! An evaluation as it is stored: one JSON file, replaced whole.

use serde::{Deserialize, Serialize};

use crate::records::failure::Failure;

/// Where an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationStatus {
    /// It waits for its turn.
    Queued,
    /// It is being measured.
    Running,
    /// Its result is there.
    Succeeded,
    /// It came to nothing; its error says why.
    Failed,
    /// It was given up.
    Cancelled,
}

impl EvaluationStatus {
    /// Whether nothing more will come of it.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, EvaluationStatus::Queued | EvaluationStatus::Running)
    }
}

/// How far an evaluation is, in answers and other parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Done)]
pub struct EvaluationProgress {
    /// Parts that are done.
    pub done: u64,
    /// All parts; 0 until its rows were read.
    pub of: u64,
}

/// An evaluation as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival, which is the order of the queue.
    pub number: u64,
    /// The key that asked for it; none on a server without keys.
    pub owner: Option<String>,
    /// When, in seconds since 1970.
    pub created_at: u64,
    /// When it was over.
    pub finished_at: Option<u64>,
    /// Where it is.
    pub status: EvaluationStatus,
    /// Who is measured, each as `name@version`.
    pub personas: Vec<String>,
    /// Whose rows they are asked; none for each one's own.
    pub file: Option<String>,
    /// The most rows of each.
    pub max_rows: usize,
    /// How far it is.
    pub progress: EvaluationProgress,
    /// Why it failed.
    pub error: Option<Failure>,
    /// Its result among those that are kept.
    pub result: Option<String>,
}
