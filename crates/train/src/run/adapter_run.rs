//! One adapter of a run: the rows of its steps, when it is validated, when it is done.
//!
//! Does not know the other adapters of the run, so it gets the same steps as if trained alone.

use formats::peft::PairShape;
use serde_json::Value;

use super::rows::RowSet;
use crate::batch::Ordering;
use crate::checkpoint::{AdapterIdentity, BestParams, EarlyStopping};
use crate::dropout::DropoutMask;
use crate::error::TrainError;
use crate::example::{Example, examples_hash};
use crate::metrics::MetricsLog;
use crate::preference::{PreferenceData, RejectedExamples};
use crate::progress::AdapterPlan;
use crate::schedule::LrSchedule;
use crate::task::TrainTask;

/// One adapter of the run, without its parameters.
pub(super) struct AdapterRun {
    pub(super) task: TrainTask,
    pub(super) schedule: LrSchedule,
    pub(super) ordering: Ordering,
    pub(super) steps_per_epoch: u64,
    /// Tokens of each training row.
    pub(super) lengths: Vec<usize>,
    /// The epoch (from 0) whose order is at hand, and its steps.
    pub(super) order: Option<(u64, Vec<Vec<usize>>)>,
    /// Validation passes done.
    pub(super) validations: u64,
    pub(super) best: Option<BestParams>,
    pub(super) stopping: EarlyStopping,
    /// Metrics from the checkpoint, until the log is opened.
    pub(super) metrics: MetricsLog,
}

impl AdapterRun {
    pub(super) fn plan(task: TrainTask) -> Result<Self, TrainError> {
        let settings = &task.settings;
        let name = &task.name;
        settings.check()?;
        let refuse =
            |message: String| Err(TrainError::Task(format!("adapter `{name}`: {message}")));
        let Some(lr) = settings.lr else {
            return refuse("the learning rate `lr` is not set".to_owned());
        };
        if task.train.is_empty() {
            return refuse("there are no training rows".to_owned());
        }
        if let Some(row) = task
            .train
            .iter()
            .chain(&task.validation)
            .position(|row| row.trained_tokens() == 0)
        {
            return refuse(format!("row {} has no token to train", row + 1));
        }
        if settings.patience > 0 && task.validation.is_empty() {
            return refuse(
                "`patience` counts validations, and there are no validation rows; name a file of them or set it to 0"
                    .to_owned(),
            );
        }
        if let Some(problem) = task.preference_problem() {
            return refuse(problem);
        }
        let ordering = Ordering {
            seed: settings.seed,
            rows_per_step: settings.rows_per_step(),
            shuffle: settings.shuffle,
            group_by_length: settings.group_by_length,
        };
        let steps_per_epoch = ordering.steps(task.train.len()) as u64;
        let steps = steps_per_epoch.saturating_mul(settings.epochs);
        let steps = settings.max_steps.map_or(steps, |limit| steps.min(limit));
        Ok(Self {
            schedule: LrSchedule::new(settings.schedule, lr, settings.warmup_ratio, steps),
            ordering,
            steps_per_epoch,
            lengths: lengths(&task.train, task.rejected().0),
            order: None,
            validations: 0,
            best: None,
            stopping: EarlyStopping::default(),
            metrics: MetricsLog::default(),
            task,
        })
    }

    /// Its number of steps: as planned, or up to early stopping.
    pub(super) fn steps(&self) -> u64 {
        self.stopping.stopped.unwrap_or(self.schedule.steps)
    }

    /// The epoch, from 1, that the step counted from 0 belongs to.
    pub(super) fn epoch_of(&self, step: u64) -> u64 {
        step / self.steps_per_epoch + 1
    }

    /// Validation passes that should be done after `step` steps: one an epoch, one every `validate_every` steps, and one at
    /// the end; if both are due, there is one.
    pub(super) fn validations_due(&self, step: u64) -> u64 {
        if self.task.validation.is_empty() {
            return 0;
        }
        let (steps, epoch, every) = (
            self.steps(),
            self.steps_per_epoch,
            self.task.settings.validate_every,
        );
        let step = step.min(steps);
        let falls =
            |step: u64| step.is_multiple_of(epoch) || (every > 0 && step.is_multiple_of(every));
        // Those that are not at the end of an epoch as well.
        let of_steps = step.checked_div(every).map_or(0, |count| {
            count - step / every.saturating_mul(epoch / gcd(every, epoch))
        });
        step / epoch + of_steps + u64::from(step == steps && !falls(step))
    }

    /// Counts a validation that was the `best` or was not; true once its patience is over.
    pub(super) fn patience_is_over(&mut self, best: bool, step: u64) -> bool {
        let patience = self.task.settings.patience;
        self.stopping.since_best = if best {
            0
        } else {
            self.stopping.since_best + 1
        };
        let over = patience > 0 && self.stopping.since_best >= patience && step < self.steps();
        if over {
            self.stopping.stopped = Some(step);
        }
        over
    }

    /// The rows of the step counted from 0; none once the adapter is done.
    pub(super) fn rows_of(&mut self, step: u64) -> &[usize] {
        if step >= self.steps() {
            return &[];
        }
        let epoch = step / self.steps_per_epoch;
        if self.order.as_ref().is_none_or(|order| order.0 != epoch) {
            self.order = Some((epoch, self.ordering.epoch(&self.lengths, epoch)));
        }
        let order = self.order.as_ref().map_or(&[][..], |order| &order.1);
        &order[(step % self.steps_per_epoch) as usize]
    }

    /// Its training rows in the step counted from 0; it is the run's adapter number `index`.
    pub(super) fn training(&self, index: usize, step: u64) -> RowSet<'_> {
        let settings = &self.task.settings;
        let mask = DropoutMask {
            share: settings.dropout,
            seed: settings.seed,
            step,
            row: 0,
        };
        RowSet {
            mask: (settings.dropout > 0.0).then_some(mask),
            ..self.rows(index, &self.task.train, |preference| &preference.train)
        }
    }

    /// Its validation rows; it is the run's adapter number `index`.
    pub(super) fn validation(&self, index: usize) -> RowSet<'_> {
        self.rows(index, &self.task.validation, |preference| {
            &preference.validation
        })
    }

    fn rows<'a>(
        &'a self,
        adapter: usize,
        examples: &'a [Example],
        side: impl Fn(&'a PreferenceData) -> &'a RejectedExamples,
    ) -> RowSet<'a> {
        let settings = self.task.settings.preference.as_ref();
        RowSet {
            adapter,
            examples,
            preference: settings.zip(self.task.preference.as_ref().map(side)),
            mask: None,
        }
    }

    /// Tokens of each validation row.
    pub(super) fn validation_lengths(&self) -> Vec<usize> {
        lengths(&self.task.validation, self.task.rejected().1)
    }

    /// What the mean loss of a step over `rows` is a mean of: their trained tokens, or their pairs.
    pub(super) fn counted(&self, rows: &[usize]) -> usize {
        let tokens = |&row: &usize| self.task.train[row].trained_tokens();
        match self.task.preference {
            None => rows.iter().map(tokens).sum(),
            Some(_) => rows.len(),
        }
    }

    /// Tokens of the step counted from 0.
    pub(super) fn tokens_of(&mut self, step: u64) -> usize {
        let rows = self.rows_of(step).to_vec();
        rows.into_iter().map(|row| self.lengths[row]).sum()
    }

    pub(super) fn summary(&self) -> AdapterPlan {
        let task = &self.task;
        AdapterPlan {
            name: task.name.clone(),
            parameters: task.init.count(),
            rows: task.train.len(),
            validation_rows: task.validation.len(),
            tokens: self.lengths.iter().sum(),
            trained_tokens: task
                .train
                .iter()
                .chain(task.rejected().0)
                .map(Example::trained_tokens)
                .sum(),
            longest: self.lengths.iter().copied().max().unwrap_or(0),
            steps_per_epoch: self.steps_per_epoch,
            steps: self.schedule.steps,
            epochs: task.settings.epochs,
            lr: self.schedule.peak,
        }
    }

    pub(super) fn identity(&self) -> AdapterIdentity {
        let mut settings = serde_json::to_value(&self.task.settings).unwrap_or(Value::Null);
        if let Value::Object(fields) = &mut settings {
            // How often it is saved does not affect the trained parameters.
            fields.remove("save_every");
        }
        // Numbers take the way through text that those of a file take, so that both compare equal.
        let settings = serde_json::from_str(&settings.to_string()).unwrap_or(Value::Null);
        let shape = |p: &PairShape| {
            format!(
                "{}.{} r{} {}x{}",
                p.layer,
                p.module.name(),
                p.rank,
                p.inputs,
                p.outputs
            )
        };
        let (rejected_train, rejected_validation) = self.task.rejected();
        AdapterIdentity {
            name: self.task.name.clone(),
            settings,
            train_hash: rows_hash(&self.task.train, rejected_train),
            validation_hash: rows_hash(&self.task.validation, rejected_validation),
            shapes: self.task.init.shapes().iter().map(shape).collect(),
            initial_adapter: self.task.initial_adapter.clone(),
        }
    }
}

/// The greatest common divisor of two nonzero numbers.
fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Tokens of each row, with those of its rejected answer if it has one.
fn lengths(rows: &[Example], rejected: &[Example]) -> Vec<usize> {
    let mut lengths: Vec<usize> = rows.iter().map(|row| row.tokens.len()).collect();
    for (length, rejected) in lengths.iter_mut().zip(rejected) {
        *length += rejected.tokens.len();
    }
    lengths
}

/// A hash of rows and of their rejected answers, if there are any.
fn rows_hash(rows: &[Example], rejected: &[Example]) -> String {
    if rejected.is_empty() {
        examples_hash(rows)
    } else {
        examples_hash(&[rows, rejected].concat())
    }
}
