//! Learning rate range test: a short sweep from the start state, over training batches, each step at a higher rate.
//!
//! Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3. What a step's rate has done is seen on
//! the next step's rows, as the change of their loss since the start state: the rows' own difficulty, which differs more from
//! batch to batch than a step changes, is taken out. Writes nothing and leaves the job as it was.

use serde::Serialize;

use crate::batch::{Ordering, pieces};
use crate::error::TrainError;
use crate::example::Example;
use crate::job::Job;
use crate::learner::{BatchItem, Learner, LossSum};
use crate::optimizer::{self, AdamW, AdamWConfig};
use crate::params::LoraGrads;

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
    /// Mean loss of the next step's rows after it, in nats.
    pub loss: f64,
    /// Mean loss of the same rows in the start state.
    pub start_loss: f64,
    /// Smoothed mean of `loss` less `start_loss`.
    pub change: f64,
}

/// The result of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LrSweepResult {
    /// The adapter.
    pub name: String,
    /// The steps, up to where the loss rose to half as much again as in the start state.
    pub points: Vec<LrSweepPoint>,
    /// The rate at which the loss was lowest.
    pub lowest: Option<f64>,
    /// A tenth of it: what to train with. None where no rate lowered the loss by a hundredth.
    pub suggestion: Option<f64>,
}

/// How much of the smoothed change is the past.
const KEEP: f64 = 0.7;
/// A change of so much of the start's loss ends the sweep.
const WORSE: f64 = 0.5;
/// A rate must lower the start's loss by so much to be worth a suggestion.
const BETTER: f64 = 0.01;
/// From the rate of the lowest loss, which is about to be too high, to one that trains.
const SAFE: f64 = 0.1;

/// Sweeps over `job`; its learning rate, schedule and epochs play no part. None when `stop` asked to stop on the way.
///
/// `seen` receives every step. A call of the learner has at most `batch_tokens` tokens (0: no limit).
///
/// # Errors
/// A job without rows or of preferences, a sweep of less than two steps or without a range, a learner that fails.
pub fn lr_find(
    job: &Job,
    sweep: LrSweep,
    batch_tokens: usize,
    learner: &mut dyn Learner,
    seen: &mut dyn FnMut(&LrSweepPoint),
    stop: &dyn Fn() -> bool,
) -> Result<Option<LrSweepResult>, TrainError> {
    job.settings.check()?;
    if job.train.is_empty() || sweep.steps < 2 || !(0.0 < sweep.from && sweep.from < sweep.to) {
        return Err(TrainError::Job(format!(
            "adapter `{}`: a sweep needs training rows, two steps and a range of rates",
            job.name
        )));
    }
    if job.preference.is_some() {
        return Err(TrainError::Job(format!(
            "adapter `{}`: a sweep is over the loss of answers, not over preferences; find a rate without them",
            job.name
        )));
    }
    let settings = &job.settings;
    let ordering = Ordering {
        seed: settings.seed,
        rows_per_step: settings.rows_per_step(),
        shuffle: settings.shuffle,
        group_by_length: settings.group_by_length,
    };
    let lengths: Vec<usize> = job.train.iter().map(|row| row.tokens.len()).collect();
    let per_epoch = ordering.steps(lengths.len());
    let start = vec![job.init.clone()];
    let mut params = start.clone();
    let mut grads = vec![LoraGrads::zeros_like(&job.init)];
    let mut optimizer = AdamW::new(&job.init, AdamWConfig::of(settings));
    let (mut smoothed, mut weight, mut points) = (0.0, 0.0, Vec::new());
    let mut steps: Vec<Vec<usize>> = Vec::new();
    for step in 0..=sweep.steps {
        if step % per_epoch == 0 {
            steps = ordering.epoch(&lengths, (step / per_epoch) as u64);
        }
        let rows: Vec<&Example> = steps[step % per_epoch]
            .iter()
            .map(|&row| &job.train[row])
            .collect();
        let trained: usize = rows.iter().map(|row| row.trained_tokens()).sum();
        let scale = [(1.0 / trained.max(1) as f64) as f32];
        grads[0].clear();
        let (mut now, mut before) = (LossSum::default(), LossSum::default());
        for micro_batch in rows.chunks(settings.batch_rows) {
            let row_lengths: Vec<usize> = micro_batch.iter().map(|row| row.tokens.len()).collect();
            for piece in pieces(&row_lengths, batch_tokens) {
                if stop() {
                    return Ok(None);
                }
                let items: Vec<BatchItem<'_>> = micro_batch[piece]
                    .iter()
                    .map(|&example| BatchItem::new(0, example))
                    .collect();
                // The first step's rows are seen in the start state, and change by nothing.
                if step > 0 {
                    before.add(learner.losses(&start, &items)?[0]);
                }
                now.add(learner.forward_backward(&params, &items, &scale, &mut grads)?[0]);
            }
        }
        if step > 0 {
            let change = now.mean() - before.mean();
            smoothed = KEEP * smoothed + (1.0 - KEEP) * change;
            weight = KEEP * weight + (1.0 - KEEP);
            let point = LrSweepPoint {
                lr: sweep.rate(step - 1),
                loss: now.mean(),
                start_loss: before.mean(),
                change: smoothed / weight,
            };
            if !change.is_finite() {
                break;
            }
            seen(&point);
            points.push(point);
            if point.change > WORSE * point.start_loss {
                break;
            }
        }
        if step < sweep.steps {
            optimizer::clip_grad_norm(&mut grads[0], settings.clip);
            let gradient = grads[0].tensors().flatten().all(|g| g.is_finite());
            if !gradient {
                break;
            }
            optimizer.step(&mut params[0], &grads[0], sweep.rate(step));
        }
    }
    Ok(Some(judge(job.name.clone(), points)))
}

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
