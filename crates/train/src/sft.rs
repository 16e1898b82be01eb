//! Fine-tuning of several adapters in one run, supervised or by preferences: the loop, as a table of contents.
//!
//! Knows no model (see [`Learner`]), no text (see [`crate::job`]) and no screen (see [`Observer`]). What each verb does is
//! in `run.rs`, and in `run/saved.rs` where it is about files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::config::ModelConfig;

use crate::error::TrainError;
use crate::forecast::{MeasuredStep, RunEstimate};
use crate::job::Job;
use crate::learner::Learner;
use crate::params::LoraParams;
use crate::progress::{Observer, Validation};
use crate::run::Run;
use crate::settings::TrainSettings;

/// What holds for a whole run, whatever its adapters are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// The base, by fingerprint: a checkpoint is taken up only on the base it was made with.
    pub base: String,
    /// Where the run's state is kept; without, it cannot be resumed.
    pub checkpoint: Option<PathBuf>,
    /// Most tokens of one call of the learner (0: no limit). Bounds memory; a step's gradient is the same sum.
    pub batch_tokens: usize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            base: String::new(),
            checkpoint: None,
            batch_tokens: 2048,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are done. The checkpoint stays: remove it once the adapters are written.
    Finished(Vec<TrainedAdapter>),
    /// It was asked to stop, and did after a whole step.
    Interrupted {
        /// Optimizer steps done.
        step: u64,
        /// Optimizer steps of the run.
        steps: u64,
        /// Where the same run goes on from.
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
    /// Its parameters of the lowest validation loss; the last ones where nothing was validated.
    pub params: LoraParams,
    /// The validation pass that chose them.
    pub best: Option<Validation>,
    /// Optimizer steps done.
    pub steps: u64,
    /// Whether its patience was over before its last step.
    pub stopped_early: bool,
    /// Hash of the adapter that it started from; none for fresh numbers.
    pub start: Option<String>,
    /// The text of its metrics (see [`crate::metrics::parse_metrics`]).
    pub metrics: String,
}

/// A run that is ready to start: its jobs are checked and its steps are counted, and nothing is computed or written yet.
pub struct PreparedRun<'o>(Run<'o>);

/// Checks the jobs and counts what is to be done.
///
/// # Errors
/// Jobs that cannot be trained.
pub fn prepare(jobs: Vec<Job>, options: &RunOptions) -> Result<PreparedRun<'_>, TrainError> {
    Ok(PreparedRun(Run::plan(jobs, options)?))
}

impl PreparedRun<'_> {
    /// What the run will do and need on a base of `config`.
    #[must_use]
    pub fn forecast(&self, config: &ModelConfig) -> RunEstimate {
        self.0.forecast(config)
    }

    /// Takes the first step to see how long a step takes, and throws it away with the run; none when it was asked to stop.
    ///
    /// # Errors
    /// As [`PreparedRun::train`].
    pub fn measure(
        mut self,
        learner: &mut dyn Learner,
        interrupt: &AtomicBool,
    ) -> Result<Option<MeasuredStep>, TrainError> {
        let stop = || interrupt.load(Ordering::Relaxed);
        self.0.without_reference();
        let began = Instant::now();
        if or_stopped(self.0.forward_backward(learner, &stop), None)?.is_none() {
            return Ok(None);
        }
        self.0.clip()?;
        self.0.optimizer_step();
        Ok(Some(MeasuredStep {
            tokens: self.0.tokens_of_last_step(),
            seconds: began.elapsed().as_secs_f64(),
        }))
    }

    /// Trains every job's adapter, all of them over shared batches; goes on from the checkpoint where there is one.
    ///
    /// An adapter gets the same steps as if it were trained alone: its own rows, order, schedule, clipping and optimizer.
    /// One with fewer steps than the others rests once it is done. `interrupt` may be set from anywhere, at any time.
    ///
    /// # Errors
    /// A checkpoint of another run, a diverged loss, a file that cannot be written, a learner that fails. The last
    /// checkpoint stands in every case.
    pub fn train(
        self,
        learner: &mut dyn Learner,
        observer: &mut dyn Observer,
        interrupt: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        let stop = || interrupt.load(Ordering::Relaxed);
        let mut run = self.0;
        let resumed = run.resume()?;
        run.open_metrics()?;
        observer.started(&run.plan, resumed);
        if !or_stopped(run.reference(learner, observer, &stop), false)? {
            return run.interrupted(observer);
        }
        loop {
            if !or_stopped(run.validate(learner, observer, &stop), false)? {
                return run.interrupted(observer);
            }
            if run.checkpoint_is_due() {
                run.checkpoint(observer)?;
            }
            observer.standing(&run.standing());
            if run.is_done() {
                break;
            }
            let Some(losses) = or_stopped(run.forward_backward(learner, &stop), None)? else {
                return run.interrupted(observer);
            };
            let norms = run.clip()?;
            let rates = run.optimizer_step();
            run.log(&losses, &norms, &rates, observer)?;
        }
        observer.finished(run.step);
        Ok(Outcome::Finished(run.finish()))
    }
}

/// What a verb says; `stopped` where the learner's yield point stopped it.
fn or_stopped<T>(said: Result<T, TrainError>, stopped: T) -> Result<T, TrainError> {
    match said {
        Err(TrainError::Stopped) => Ok(stopped),
        said => said,
    }
}

/// [`prepare`] and [`PreparedRun::train`] in one.
///
/// # Errors
/// Those of both.
pub fn train(
    jobs: Vec<Job>,
    options: &RunOptions,
    learner: &mut dyn Learner,
    observer: &mut dyn Observer,
    interrupt: &AtomicBool,
) -> Result<Outcome, TrainError> {
    prepare(jobs, options)?.train(learner, observer, interrupt)
}
