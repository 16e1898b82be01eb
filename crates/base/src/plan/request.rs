//! The planner's input: what to run.

use model::Precision;

/// What is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanRequest {
    /// The requested precision; if it is `None`, the planner chooses.
    pub precision: Option<Precision>,
    /// Bytes for keys and values.
    pub kv_memory: u64,
    /// Bytes for resident adapters.
    pub adapter_memory: u64,
    /// Bytes for training next to serving. If it is `None`, the planner chooses; 0 where nothing is trained.
    pub train_memory: Option<u64>,
    /// Whether it must be able to train, which a GPU cannot yet.
    pub trains: bool,
    /// Most rows of a step.
    pub rows: usize,
    /// Most rows of a step that need logits.
    pub logit_rows: usize,
}

impl Default for PlanRequest {
    /// The defaults of `lory serve`.
    fn default() -> Self {
        PlanRequest {
            precision: None,
            kv_memory: 512 << 20,
            adapter_memory: 256 << 20,
            train_memory: None,
            trains: false,
            rows: 256,
            logit_rows: 32,
        }
    }
}
