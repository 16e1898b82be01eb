//! Progress events of a run: plain data passed to an [`Observer`]. The loop has no user interface.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::params::LoraParams;
use crate::preference::PreferenceStats;

/// The steps of a run, planned before it starts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunPlan {
    /// Optimizer steps of the whole run: those of the adapter with the most.
    pub steps: u64,
    /// The adapters, in the order of the tasks.
    pub adapters: Vec<AdapterPlan>,
}

/// The planned steps of one adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterPlan {
    /// The adapter's name.
    pub name: String,
    /// Number of trained parameters.
    pub parameters: usize,
    /// Training rows.
    pub rows: usize,
    /// Validation rows.
    pub validation_rows: usize,
    /// Tokens of the training rows.
    pub tokens: usize,
    /// Number of those whose loss counts.
    pub trained_tokens: usize,
    /// Tokens of the longest training row.
    pub longest: usize,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps in all.
    pub steps: u64,
    /// Passes over the rows.
    pub epochs: u64,
    /// The peak learning rate.
    pub lr: f64,
}

/// Metrics of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// The step, from 1.
    pub step: u64,
    /// Steps of the run.
    pub steps: u64,
    /// The adapters that took part.
    pub adapters: Vec<AdapterStep>,
    /// Tokens of the step, trained or not, of all adapters.
    pub tokens: usize,
    /// Tokens a second since this process began to train, validation left out.
    pub tokens_per_s: f64,
    /// Time that the rest of the run will take at the speed so far.
    pub eta: Duration,
}

/// One adapter's part of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterStep {
    /// Index of its task.
    pub adapter: usize,
    /// Its epoch, from 1.
    pub epoch: u64,
    /// Mean loss of its trained tokens, in nats.
    pub loss: f64,
    /// Its trained tokens.
    pub trained_tokens: usize,
    /// Its learning rate.
    pub lr: f64,
    /// Global norm of its gradient before clipping.
    pub grad_norm: f64,
    /// Statistics of its pairs, in preference tuning.
    pub preference: Option<PreferenceStats>,
}

/// A pass over an adapter's validation rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Validation {
    /// The last optimizer step before it, from 1.
    pub step: u64,
    /// The epoch that ended, from 1.
    pub epoch: u64,
    /// Mean loss of the trained tokens, in nats.
    pub loss: f64,
    /// Whether it is the lowest so far.
    pub best: bool,
    /// Statistics of the pairs, in preference tuning; `loss` is then the mean objective of a pair.
    pub preference: Option<PreferenceStats>,
}

/// Where the reference log-probabilities of a preference run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceProgress<'a> {
    /// Read from this file, which an earlier run wrote.
    Read(&'a Path),
    /// This file is damaged, so they are computed again.
    Damaged(&'a Path),
    /// Being computed.
    Computing {
        /// Number of pairs done.
        done: usize,
    },
}

/// The adapters' parameters between two steps.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// Optimizer steps done.
    pub step: u64,
    /// Whether this is the state after the last step.
    pub done: bool,
    /// Their parameters as they are now, in the order of the tasks; not those of the lowest validation loss.
    pub adapters: &'a [LoraParams],
}

/// Receives the progress of a run. Every method does nothing by default.
pub trait Observer {
    /// The run starts. `resumed` is the step of the checkpoint it continues from, if there is one.
    fn started(&mut self, plan: &RunPlan, resumed: Option<u64>) {
        let _ = (plan, resumed);
    }

    /// The adapter of task `adapter` needs the reference log-probabilities of `pairs` pairs.
    fn reference(&mut self, adapter: usize, pairs: usize, from: ReferenceProgress<'_>) {
        let _ = (adapter, pairs, from);
    }

    /// A step was done.
    fn step(&mut self, metrics: &StepMetrics) {
        let _ = metrics;
    }

    /// Validation begins for the adapter of task `adapter`, over `rows` rows.
    fn validating(&mut self, adapter: usize, rows: usize) {
        let _ = (adapter, rows);
    }

    /// The adapter of task `adapter` was validated.
    fn validated(&mut self, adapter: usize, validation: &Validation) {
        let _ = (adapter, validation);
    }

    /// The patience of the adapter of task `adapter` ran out after `step`; it is not trained further.
    fn stopped_early(&mut self, adapter: usize, step: u64) {
        let _ = (adapter, step);
    }

    /// A checkpoint of `step` was written to `path`.
    fn checkpointed(&mut self, path: &Path, step: u64) {
        let _ = (path, step);
    }

    /// The parameters before the next step, or after the last one; called again when a run resumes. Validations of this state
    /// have been reported, and a due checkpoint has been written.
    fn snapshot(&mut self, snapshot: &Snapshot<'_>) {
        let _ = snapshot;
    }

    /// All steps are done.
    fn finished(&mut self, steps: u64) {
        let _ = steps;
    }
}

/// Ignores all progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}
