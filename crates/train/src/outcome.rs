//! What a run ends with: trained adapters, or the step at which it was interrupted.

use std::path::PathBuf;

use crate::params::LoraParams;
use crate::progress::Validation;
use crate::settings::TrainSettings;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are done. The checkpoint stays: remove it once the adapters are written.
    Finished(Vec<TrainedAdapter>),
    /// The run was interrupted, after a whole step.
    Interrupted {
        /// Optimizer steps done.
        step: u64,
        /// Optimizer steps of the run.
        steps: u64,
        /// The checkpoint from which the same run continues.
        checkpoint: Option<PathBuf>,
    },
}

/// A trained adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedAdapter {
    /// Its name.
    pub name: String,
    /// How it was trained.
    pub settings: TrainSettings,
    /// Its parameters with the lowest validation loss, or the last ones if there were no validations.
    pub params: LoraParams,
    /// The validation pass that chose them.
    pub best: Option<Validation>,
    /// Optimizer steps done.
    pub steps: u64,
    /// Whether early stopping ended its training.
    pub stopped_early: bool,
    /// Hash of the adapter that it started from; `None` for freshly drawn parameters.
    pub initial_adapter: Option<String>,
    /// The text of its metrics (see [`crate::metrics::parse_metrics`]).
    pub metrics: String,
}
