//! Learning rate range test: a short run over training batches from the initial parameters, each step at a higher rate.
//!
//! Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3. The effect of a step is measured on the
//! next step's rows, as the change of their loss from the initial parameters. This removes the difficulty of the rows, which
//! differs more between batches than a step changes. Writes nothing and leaves the task unchanged.

use std::slice::Chunks;

use serde::Serialize;

use crate::batch::{Ordering, pieces};
use crate::error::TrainError;
use crate::example::Example;
use crate::learner::{BatchItem, Learner, LossSum};
use crate::optimizer::{self, AdamW, AdamWConfig};
use crate::params::{LoraGrads, LoraParams};
use crate::task::TrainTask;

/// The rates of a sweep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSweep {
    /// The lowest rate.
    pub from: f64,
    /// The highest rate.
    pub to: f64,
    /// Steps, at rates of equal ratios.
    pub steps: usize,
}

impl Default for LrSweep {
    /// Five decades in 40 steps.
    fn default() -> Self {
        Self {
            from: 1e-5,
            to: 1.0,
            steps: 40,
        }
    }
}

impl LrSweep {
    /// The rate of step `step`, from 0.
    fn rate(&self, step: usize) -> f64 {
        let last = self.steps.saturating_sub(1).max(1);
        self.from * (self.to / self.from).powf(step as f64 / last as f64)
    }
}

/// One step of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LrSweepPoint {
    /// The rate of the step.
    pub lr: f64,
    /// Mean loss of the next step's rows after this step, in nats.
    pub loss: f64,
    /// Mean loss of the same rows with the initial parameters, in nats.
    pub start_loss: f64,
    /// Smoothed mean of `loss` less `start_loss`.
    pub change: f64,
}

/// The result of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LrSweepResult {
    /// The adapter.
    pub name: String,
    /// The steps, up to the one where the loss rose by half of the initial loss.
    pub points: Vec<LrSweepPoint>,
    /// The rate at which the loss was lowest.
    pub lowest: Option<f64>,
    /// A rate to train with: a tenth of `lowest`. `None` if no rate lowered the loss by a hundredth.
    pub suggestion: Option<f64>,
}

/// Decay of the smoothed change.
const KEEP: f64 = 0.7;
/// The sweep ends when the loss has risen by this fraction of the initial loss.
const WORSE: f64 = 0.5;
/// A rate is suggested only if the loss fell by this fraction of the initial loss.
const BETTER: f64 = 0.01;
/// The suggestion as a fraction of the rate with the lowest loss, which is close to too high.
const SAFE: f64 = 0.1;

/// Sweeps over `task`, whose learning rate, schedule and epochs are not used. Returns `None` if `stop` interrupts it.
///
/// `on_step` receives every step. A call of the learner has at most `batch_tokens` tokens (0: no limit).
///
/// # Errors
/// The task has no rows or has preferences, the sweep has fewer than two steps or no range, or the learner fails.
pub fn lr_find(
    task: &TrainTask,
    sweep: LrSweep,
    batch_tokens: usize,
    learner: &mut dyn Learner,
    on_step: &mut dyn FnMut(&LrSweepPoint),
    stop: &dyn Fn() -> bool,
) -> Result<Option<LrSweepResult>, TrainError> {
    check(task, sweep)?;
    let settings = &task.settings;
    let ordering = Ordering {
        seed: settings.seed,
        rows_per_step: settings.rows_per_step(),
        shuffle: settings.shuffle,
        group_by_length: settings.group_by_length,
    };
    let lengths: Vec<usize> = task.train.iter().map(|row| row.tokens.len()).collect();
    let per_epoch = ordering.steps(lengths.len());
    let init = task.init.values()?;
    let mut state = SweepState {
        start: vec![init.clone()],
        grads: vec![LoraGrads::zeros_like(&init)],
        params: vec![init],
    };
    let mut optimizer = AdamW::new(&state.params[0], AdamWConfig::of(settings));
    let (mut smoothed, mut weight, mut points) = (0.0, 0.0, Vec::new());
    let mut steps: Vec<Vec<usize>> = Vec::new();
    for step in 0..=sweep.steps {
        if step % per_epoch == 0 {
            steps = ordering.epoch(&lengths, (step / per_epoch) as u64);
        }
        let rows: Vec<&Example> = steps[step % per_epoch]
            .iter()
            .map(|&row| &task.train[row])
            .collect();
        let micro_batches = rows.chunks(settings.batch_rows);
        let Some(losses) =
            state.step_losses(micro_batches, step > 0, batch_tokens, learner, stop)?
        else {
            return Ok(None);
        };
        if step > 0 {
            let change = losses.now.mean() - losses.start.mean();
            smoothed = KEEP * smoothed + (1.0 - KEEP) * change;
            weight = KEEP * weight + (1.0 - KEEP);
            let point = LrSweepPoint {
                lr: sweep.rate(step - 1),
                loss: losses.now.mean(),
                start_loss: losses.start.mean(),
                change: smoothed / weight,
            };
            if !change.is_finite() {
                break;
            }
            on_step(&point);
            points.push(point);
            if point.change > WORSE * point.start_loss {
                break;
            }
        }
        if step < sweep.steps {
            let grads = &mut state.grads[0];
            optimizer::clip_grad_norm(grads, settings.clip);
            if !grads.tensors().flatten().all(|g| g.is_finite()) {
                break;
            }
            optimizer.step(&mut state.params[0], grads, sweep.rate(step));
        }
    }
    Ok(Some(judge(task.name.clone(), points)))
}

/// Checks that `sweep` can run over `task`.
fn check(task: &TrainTask, sweep: LrSweep) -> Result<(), TrainError> {
    task.settings.check()?;
    if task.train.is_empty() || sweep.steps < 2 || !(0.0 < sweep.from && sweep.from < sweep.to) {
        return Err(TrainError::Task(format!(
            "adapter `{}`: a sweep needs training rows, two steps and a range of rates",
            task.name
        )));
    }
    if task.preference.is_some() {
        return Err(TrainError::Task(format!(
            "adapter `{}`: a sweep is over the loss of answers, not over preferences; find a rate without them",
            task.name
        )));
    }
    Ok(())
}

/// The adapter of a sweep, as lists of one, as the learner takes them.
struct SweepState {
    start: Vec<LoraParams>,
    params: Vec<LoraParams>,
    grads: Vec<LoraGrads>,
}

/// The losses of a step's rows.
#[derive(Default)]
struct StepLosses {
    /// With the current parameters.
    now: LossSum,
    /// With the initial parameters.
    start: LossSum,
}

impl SweepState {
    /// Computes a step's losses and sets `grads` to its gradients; `None` if interrupted. The losses of the initial parameters
    /// are computed only if `compare`.
    fn step_losses(
        &mut self,
        micro_batches: Chunks<'_, &Example>,
        compare: bool,
        batch_tokens: usize,
        learner: &mut dyn Learner,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<StepLosses>, TrainError> {
        let rows = micro_batches.clone().flatten();
        let trained: usize = rows.map(|row| row.trained_tokens()).sum();
        let scale = [(1.0 / trained.max(1) as f64) as f32];
        self.grads[0].clear();
        let mut losses = StepLosses::default();
        for micro_batch in micro_batches {
            let lengths: Vec<usize> = micro_batch.iter().map(|row| row.tokens.len()).collect();
            for piece in pieces(&lengths, batch_tokens) {
                if stop() {
                    return Ok(None);
                }
                let items: Vec<BatchItem<'_>> = micro_batch[piece]
                    .iter()
                    .map(|&example| BatchItem::new(0, example))
                    .collect();
                if compare {
                    losses.start.add(learner.losses(&self.start, &items)?[0]);
                }
                let (params, grads) = (&self.params, &mut self.grads);
                let now = learner.forward_backward(params, &items, &scale, grads)?[0];
                losses.now.add(now);
            }
        }
        Ok(Some(losses))
    }
}

/// Picks the rate of the lowest loss and the suggestion.
fn judge(name: String, points: Vec<LrSweepPoint>) -> LrSweepResult {
    let lowest = points
        .iter()
        .min_by(|a, b| a.change.total_cmp(&b.change))
        .filter(|point| point.change < -BETTER * point.start_loss);
    let rounded = |lr: f64| format!("{lr:.1e}").parse().unwrap_or(lr);
    LrSweepResult {
        name,
        lowest: lowest.map(|point| point.lr),
        suggestion: lowest.map(|point| rounded(point.lr * SAFE)),
        points,
    }
}
