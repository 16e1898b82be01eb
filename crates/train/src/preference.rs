//! Preference tuning: of two answers to the same question, the chosen one becomes more likely and the rejected one less.
//!
//! The objective is DPO, direct preference optimization (Rafailov et al. 2023). It runs on the loop, the backward pass and
//! the checkpoints of [`crate::trainer`]: a pair is two sequences whose losses have different weights. `loss` is the objective,
//! `pairs` matches rows to rejected answers, `reference_cache` stores the log-probabilities at the start of the run. Does not
//! know the model or personas.

mod loss;
mod pairs;
pub(crate) mod reference_cache;

use serde::{Deserialize, Serialize};

use crate::example::Example;

pub use loss::{DpoLoss, DpoTotals, dpo_loss};
pub(crate) use pairs::RejectedAnswers;
pub use pairs::{PairCounts, RejectedPersona};

/// The rejected answers to the rows of a task.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PreferenceData {
    /// The answers to `TrainTask::train`.
    pub train: RejectedExamples,
    /// The answers to `TrainTask::validation`.
    pub validation: RejectedExamples,
    /// How many rows found a rejected answer.
    pub counts: PairCounts,
}

/// The rejected answers to a list of questions, in the order of the chosen answers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RejectedExamples {
    /// The rejected answers, each after its question.
    pub examples: Vec<Example>,
    /// Log-probabilities of the chosen and the rejected answer at the start of the run, summed over their trained tokens,
    /// in nats. The run computes them.
    pub reference_logps: Vec<[f64; 2]>,
}

/// Statistics of a pass over pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PreferenceStats {
    /// Number of pairs.
    pub pairs: usize,
    /// Fraction of the pairs whose chosen answer has gained on the rejected one since the start.
    pub accuracy: f64,
    /// Mean of beta * (gain of the chosen answer's log-probability - gain of the rejected one's).
    pub margin: f64,
    /// Mean loss of a chosen answer's token, in nats: what supervised training reports as its loss.
    pub chosen_loss: f64,
    /// Mean loss of a rejected answer's token, in nats.
    pub rejected_loss: f64,
}
