//! The state of a run and its operations: plan, validate, forward and backward, clip, step, log.
//!
//! Owns everything that changes while training. [`crate::trainer`] calls the operations in order; `checkpointing` has those about
//! files.

mod adapter_run;
mod checkpointing;
mod reference_logps;
mod rows;

use std::time::{Duration, Instant};

use formats::config::ModelConfig;

use crate::batch;
use crate::checkpoint::{BestParams, RunIdentity};
use crate::error::TrainError;
use crate::estimate::{AdapterSizes, RunEstimate};
use crate::learner::{BatchItem, Learner, LossSum};
use crate::metrics::MetricsRecord;
use crate::optimizer::{self, AdamW, AdamWConfig};
use crate::params::{LoraGrads, LoraParams};
use crate::progress::{
    AdapterPlan, AdapterStep, Observer, RunPlan, Snapshot, StepMetrics, Validation,
};
use crate::settings::RunOptions;
use crate::task::TrainTask;
use adapter_run::AdapterRun;
use rows::{BatchRow, LossTally};

/// A run that has not started: its tasks are checked and its steps are planned, and its parameters are not in memory yet.
pub(crate) struct PlannedRun<'o> {
    options: &'o RunOptions,
    identity: RunIdentity,
    plan: RunPlan,
    adapters: Vec<AdapterRun>,
}

/// A run, between two optimizer steps.
pub(crate) struct Run<'o> {
    options: &'o RunOptions,
    identity: RunIdentity,
    pub(crate) plan: RunPlan,
    /// Optimizer steps done.
    pub(crate) step: u64,
    adapters: Vec<AdapterRun>,
    // By adapter, in separate lists, as the learner takes them.
    params: Vec<LoraParams>,
    grads: Vec<LoraGrads>,
    optimizers: Vec<AdamW>,
    /// The step and the number of validations that the file on the disk holds.
    saved: Option<(u64, u64)>,
    clock: Clock,
}

/// Time and tokens spent by this process; never part of the metrics file.
struct Clock {
    /// The start of its first step. One-time work before it is not counted.
    started: Instant,
    first_step: u64,
    training: Duration,
    tokens: usize,
    step_began: Instant,
}

impl<'o> PlannedRun<'o> {
    /// Checks the tasks and plans their steps. Computes nothing yet.
    pub(crate) fn new(tasks: Vec<TrainTask>, options: &'o RunOptions) -> Result<Self, TrainError> {
        if tasks.is_empty() {
            return Err(TrainError::Task("there is no adapter to train".to_owned()));
        }
        for (i, task) in tasks.iter().enumerate() {
            if tasks[..i].iter().any(|other| other.name == task.name) {
                return Err(TrainError::Task(format!(
                    "two adapters are named `{}`",
                    task.name
                )));
            }
        }
        let adapters = tasks
            .into_iter()
            .map(AdapterRun::plan)
            .collect::<Result<Vec<_>, _>>()?;
        let identity = RunIdentity {
            base: options.base.clone(),
            batch_tokens: options.batch_tokens,
            adapters: adapters.iter().map(AdapterRun::identity).collect(),
        };
        let plan = RunPlan {
            steps: adapters.iter().map(AdapterRun::steps).max().unwrap_or(0),
            adapters: adapters.iter().map(AdapterRun::summary).collect(),
        };
        Ok(Self {
            options,
            identity,
            plan,
            adapters,
        })
    }

    /// Estimates the steps, tokens and memory of the run on a base of `config`.
    pub(crate) fn estimate(&self, config: &ModelConfig) -> RunEstimate {
        let (mut tokens, mut validation_tokens, mut parts) = (0, 0, Vec::new());
        for (adapter, plan) in self.adapters.iter().zip(&self.plan.adapters) {
            let validation = adapter.validation_lengths();
            let share = plan.steps as f64 / plan.steps_per_epoch as f64;
            tokens += (plan.tokens as f64 * share).round() as u64;
            validation_tokens +=
                adapter.validations_due(plan.steps) * validation.iter().sum::<usize>() as u64;
            if adapter.task.preference.is_some() {
                // The reference costs a forward pass over all rows, as a validation does.
                validation_tokens += (plan.tokens + validation.iter().sum::<usize>()) as u64;
            }
            parts.push(AdapterSizes::new(
                &adapter.task.settings,
                plan.parameters,
                adapter.task.initial_adapter.is_some(),
                &adapter.lengths,
                validation,
            ));
        }
        let batch_tokens = self.options.batch_tokens;
        RunEstimate::new(
            self.plan.clone(),
            tokens,
            validation_tokens,
            parts,
            batch_tokens,
            config,
        )
    }

    /// The run before its first step, with the initial parameters.
    ///
    /// # Errors
    /// The adapter that a task starts from cannot be read.
    pub(crate) fn start(self) -> Result<Run<'o>, TrainError> {
        let init = |adapter: &AdapterRun| adapter.task.init.values();
        let params = self
            .adapters
            .iter()
            .map(init)
            .collect::<Result<Vec<_>, _>>()?;
        let optimizers = params
            .iter()
            .zip(&self.adapters)
            .map(|(params, adapter)| AdamW::new(params, AdamWConfig::of(&adapter.task.settings)));
        let optimizers = optimizers.collect();
        Ok(self.with(params, optimizers))
    }

    /// The run with these parameters, at step 0.
    fn with(self, params: Vec<LoraParams>, optimizers: Vec<AdamW>) -> Run<'o> {
        let now = Instant::now();
        Run {
            options: self.options,
            identity: self.identity,
            plan: self.plan,
            step: 0,
            adapters: self.adapters,
            grads: params.iter().map(LoraGrads::zeros_like).collect(),
            params,
            optimizers,
            saved: None,
            clock: Clock {
                started: now,
                first_step: 0,
                training: Duration::ZERO,
                tokens: 0,
                step_began: now,
            },
        }
    }
}

impl Run<'_> {
    /// Tokens of the last step, over all adapters.
    pub(crate) fn tokens_of_last_step(&mut self) -> usize {
        let step = self.step.saturating_sub(1);
        let adapters = self.adapters.iter_mut();
        adapters.map(|adapter| adapter.tokens_of(step)).sum()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.step >= self.steps()
    }

    /// The adapters' current parameters.
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            step: self.step,
            done: self.is_done(),
            adapters: &self.params,
        }
    }

    /// Steps of the run: those of the adapter with the most, early stops included.
    fn steps(&self) -> u64 {
        self.adapters
            .iter()
            .map(AdapterRun::steps)
            .max()
            .unwrap_or(0)
    }

    /// Validates the adapters whose epoch has ended and keeps the best parameters. Returns false if interrupted.
    pub(crate) fn validate(
        &mut self,
        learner: &mut dyn Learner,
        observer: &mut dyn Observer,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool, TrainError> {
        for index in 0..self.adapters.len() {
            let adapter = &self.adapters[index];
            if adapter.validations >= adapter.validations_due(self.step) {
                continue;
            }
            let Some(tally) = self.validation_loss(index, learner, observer, stop)? else {
                return Ok(false);
            };
            let (step, loss) = (self.step.min(self.adapters[index].steps()), tally.loss());
            self.finite(index, "validation loss", loss)?;
            let adapter = &mut self.adapters[index];
            let best = adapter.best.as_ref().is_none_or(|best| loss < best.loss);
            let epoch = adapter.epoch_of(step.saturating_sub(1));
            if best {
                adapter.best = Some(BestParams {
                    params: self.params[index].clone(),
                    loss,
                    step,
                    epoch,
                });
            }
            adapter.validations += 1;
            adapter.metrics.push(&MetricsRecord::Validation {
                step,
                epoch,
                loss,
                tokens: tally.tokens(),
                best,
                preference: tally.preference(),
            })?;
            observer.validated(
                index,
                &Validation {
                    step,
                    epoch,
                    loss,
                    best,
                    preference: tally.preference(),
                },
            );
            if self.adapters[index].patience_is_over(best, step) {
                observer.stopped_early(index, step);
            }
        }
        Ok(true)
    }

    /// The loss of adapter `index` over its validation rows; `None` if interrupted.
    fn validation_loss(
        &self,
        index: usize,
        learner: &mut dyn Learner,
        observer: &mut dyn Observer,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<LossTally>, TrainError> {
        let rows = self.adapters[index].validation(index).rows();
        observer.validating(index, rows.len());
        let mut tallies = vec![LossTally::default(); self.params.len()];
        let lengths: Vec<usize> = rows.iter().map(BatchRow::tokens).collect();
        for piece in batch::pieces(&lengths, self.options.batch_tokens) {
            if stop() {
                return Ok(None);
            }
            let rows = &rows[piece];
            let items: Vec<BatchItem<'_>> = rows.iter().flat_map(BatchRow::items).collect();
            if rows.iter().any(BatchRow::is_pair) {
                let losses = learner.item_losses(&self.params, &items)?;
                rows::add_losses(rows, check_item_losses(&losses, &items)?, &mut tallies);
            } else {
                let losses = learner.losses(&self.params, &items)?;
                tallies[index].add(check_losses(&losses, &items, self.params.len())?[index]);
            }
        }
        Ok(Some(tallies[index]))
    }

    /// Sums the next step's gradients over its micro-batches; `None` if interrupted.
    pub(crate) fn forward_backward(
        &mut self,
        learner: &mut dyn Learner,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<LossTally>>, TrainError> {
        let now = Instant::now();
        if self.clock.tokens == 0 {
            self.clock.started = now;
        }
        self.clock.step_began = now;
        let step = self.step;
        self.grads.iter_mut().for_each(LoraGrads::clear);
        let rows: Vec<Vec<usize>> = self
            .adapters
            .iter_mut()
            .map(|adapter| adapter.rows_of(step).to_vec())
            .collect();
        // By tokens (or pairs) of the whole step, not of a micro-batch: accumulation must equal the large batch.
        let scale = |(adapter, rows): (&AdapterRun, &Vec<usize>)| match adapter.counted(rows) {
            0 => 0.0,
            counted => (1.0 / counted as f64) as f32,
        };
        let loss_scale: Vec<f32> = self.adapters.iter().zip(&rows).map(scale).collect();
        let micro_batches = self
            .adapters
            .iter()
            .zip(&rows)
            .map(|(adapter, rows)| rows.len().div_ceil(adapter.task.settings.batch_rows))
            .max()
            .unwrap_or(0);
        let mut tallies = vec![LossTally::default(); self.params.len()];
        for micro_batch in 0..micro_batches {
            let batch_rows = micro_batch_rows(&self.adapters, &rows, step, micro_batch);
            let lengths: Vec<usize> = batch_rows.iter().map(BatchRow::tokens).collect();
            for piece in batch::pieces(&lengths, self.options.batch_tokens) {
                if stop() {
                    return Ok(None);
                }
                let batch_rows = &batch_rows[piece];
                let (params, grads) = (&self.params, &mut self.grads);
                add_gradients(
                    learner,
                    params,
                    batch_rows,
                    &loss_scale,
                    grads,
                    &mut tallies,
                )?;
                self.clock.tokens += batch_rows.iter().map(BatchRow::tokens).sum::<usize>();
            }
        }
        for (index, tally) in tallies.iter().enumerate() {
            self.finite(index, "loss", tally.loss())?;
        }
        Ok(Some(tallies))
    }

    /// Clips each adapter's gradient by its own norm. Returns the norms before clipping.
    pub(crate) fn clip(&mut self) -> Result<Vec<f64>, TrainError> {
        let limits = self
            .adapters
            .iter()
            .map(|adapter| adapter.task.settings.clip);
        let norms: Vec<f64> = self
            .grads
            .iter_mut()
            .zip(limits)
            .map(|(grads, limit)| optimizer::clip_grad_norm(grads, limit))
            .collect();
        for (index, norm) in norms.iter().enumerate() {
            self.finite(index, "gradient", *norm)?;
        }
        Ok(norms)
    }

    /// Updates the parameters of every adapter that is not done. Returns the learning rates.
    pub(crate) fn optimizer_step(&mut self) -> Vec<f64> {
        let step = self.step;
        let states = self.optimizers.iter_mut().zip(&mut self.params);
        let adapters = self.adapters.iter().zip(states).zip(&self.grads);
        let rates = adapters.map(|((adapter, (optimizer, params)), grads)| {
            let rate = adapter.schedule.rate(step);
            if step < adapter.steps() {
                optimizer.step(params, grads, rate);
            }
            rate
        });
        let rates = rates.collect();
        self.step += 1;
        self.clock.training += self.clock.step_began.elapsed();
        rates
    }

    /// Records the step's metrics and reports them to the observer.
    pub(crate) fn log(
        &mut self,
        tallies: &[LossTally],
        norms: &[f64],
        rates: &[f64],
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let done = self.step - 1;
        let mut steps = Vec::with_capacity(self.adapters.len());
        let mut tokens = 0;
        for (index, adapter) in self.adapters.iter_mut().enumerate() {
            if done >= adapter.steps() {
                continue;
            }
            tokens += adapter.tokens_of(done);
            let (epoch, loss) = (adapter.epoch_of(done), tallies[index].loss());
            let (trained_tokens, preference) =
                (tallies[index].tokens(), tallies[index].preference());
            let (lr, grad_norm) = (rates[index], norms[index]);
            let record = MetricsRecord::Step {
                step: self.step,
                epoch,
                loss,
                tokens: trained_tokens,
                lr,
                grad_norm,
                preference,
            };
            adapter.metrics.push(&record)?;
            steps.push(AdapterStep {
                adapter: index,
                epoch,
                loss,
                trained_tokens,
                lr,
                grad_norm,
                preference,
            });
        }
        observer.step(&StepMetrics {
            step: self.step,
            steps: self.steps(),
            adapters: steps,
            tokens,
            tokens_per_s: self.clock.tokens as f64 / self.clock.training.as_secs_f64().max(1e-9),
            eta: self.eta(),
        });
        Ok(())
    }

    /// Estimates the time for the rest of the run from what this process has spent on its steps, validation included.
    fn eta(&self) -> Duration {
        let between = |from: u64, to: u64| -> f64 {
            let tokens = |(adapter, plan): (&AdapterRun, &AdapterPlan)| {
                let steps = to.min(adapter.steps()) - from.min(adapter.steps());
                plan.tokens as f64 * steps as f64 / plan.steps_per_epoch as f64
            };
            let adapters = self.adapters.iter().zip(&self.plan.adapters);
            adapters.map(tokens).sum()
        };
        let done = between(self.clock.first_step, self.step);
        let rest = between(self.step, self.steps());
        let seconds = self.clock.started.elapsed().as_secs_f64() * rest / done.max(1.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn validations(&self) -> u64 {
        self.adapters
            .iter()
            .map(|adapter| adapter.validations)
            .sum()
    }

    fn finite(&self, index: usize, what: &'static str, number: f64) -> Result<(), TrainError> {
        if number.is_finite() {
            return Ok(());
        }
        let adapter = self.adapters[index].task.name.clone();
        Err(TrainError::NotFinite {
            adapter,
            step: self.step + 1,
            what,
        })
    }
}

/// The rows of all adapters in micro-batch `micro_batch` of `step`; `rows` has each adapter's rows of the step.
fn micro_batch_rows<'a>(
    adapters: &'a [AdapterRun],
    rows: &[Vec<usize>],
    step: u64,
    micro_batch: usize,
) -> Vec<BatchRow<'a>> {
    let mut batch_rows = Vec::new();
    for (index, (adapter, rows)) in adapters.iter().zip(rows).enumerate() {
        let of_micro_batch = rows
            .chunks(adapter.task.settings.batch_rows)
            .nth(micro_batch)
            .unwrap_or(&[]);
        let training = adapter.training(index, step);
        batch_rows.extend(of_micro_batch.iter().map(|&row| training.row(row)));
    }
    batch_rows
}

/// Adds the gradients of `rows` to `grads` and their losses to `tallies`.
fn add_gradients(
    learner: &mut dyn Learner,
    params: &[LoraParams],
    rows: &[BatchRow<'_>],
    loss_scale: &[f32],
    grads: &mut [LoraGrads],
    tallies: &mut [LossTally],
) -> Result<(), TrainError> {
    let items: Vec<BatchItem<'_>> = rows.iter().flat_map(BatchRow::items).collect();
    if rows.iter().any(BatchRow::is_pair) {
        let weigh = |losses: &[LossSum]| rows::gradient_weights(rows, losses);
        let losses =
            learner.forward_backward_weighted(params, &items, loss_scale, &weigh, grads)?;
        rows::add_losses(rows, check_item_losses(&losses, &items)?, tallies);
    } else {
        let losses = learner.forward_backward(params, &items, loss_scale, grads)?;
        let losses = check_losses(&losses, &items, params.len())?;
        for (tally, loss) in tallies.iter_mut().zip(losses) {
            tally.add(*loss);
        }
    }
    Ok(())
}

/// Returns `losses` if they are one sum for each adapter, over the trained tokens of `items`.
fn check_losses<'l>(
    losses: &'l [LossSum],
    items: &[BatchItem<'_>],
    adapters: usize,
) -> Result<&'l [LossSum], TrainError> {
    let given: usize = items.iter().map(|item| item.example.trained_tokens()).sum();
    let returned: usize = losses.iter().map(|sum| sum.tokens).sum();
    if losses.len() != adapters || given != returned {
        let message = format!(
            "it returned {} losses over {returned} tokens for {adapters} adapters and {given} trained tokens",
            losses.len()
        );
        return Err(TrainError::Learner(message));
    }
    Ok(losses)
}

/// Returns `losses` if they are one for each of `items`, over its trained tokens.
fn check_item_losses<'l>(
    losses: &'l [LossSum],
    items: &[BatchItem<'_>],
) -> Result<&'l [LossSum], TrainError> {
    let fits =
        |(loss, item): (&LossSum, &BatchItem<'_>)| loss.tokens == item.example.trained_tokens();
    if losses.len() == items.len() && losses.iter().zip(items).all(fits) {
        return Ok(losses);
    }
    let message = format!(
        "it returned {} losses, not of the trained tokens of the {} rows that it was given",
        losses.len(),
        items.len()
    );
    Err(TrainError::Learner(message))
}
