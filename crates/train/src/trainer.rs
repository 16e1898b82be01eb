//! Fine-tuning of several adapters in one run, supervised or by preference: the training loop, as a table of contents.
//!
//! Does not know the model (see [`Learner`]), text (see [`crate::task`]) or the terminal (see [`Observer`]). The methods that it
//! calls are in `run.rs` and `run/`; those about files are in `run/checkpointing.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::config::ModelConfig;

use crate::error::TrainError;
use crate::estimate::{MeasuredStep, RunEstimate};
use crate::learner::Learner;
use crate::progress::Observer;
use crate::run::PlannedRun;
use crate::task::TrainTask;

pub use crate::outcome::{Outcome, TrainedAdapter};
pub use crate::settings::RunOptions;

/// A run that is ready to start: its tasks are checked and its steps are counted. Nothing is computed or written yet, and the
/// parameters are not in memory.
pub struct PreparedRun<'o>(PlannedRun<'o>);

/// Checks the tasks and plans their steps.
///
/// # Errors
/// Jobs that cannot be trained.
pub fn prepare(tasks: Vec<TrainTask>, options: &RunOptions) -> Result<PreparedRun<'_>, TrainError> {
    Ok(PreparedRun(PlannedRun::new(tasks, options)?))
}

impl PreparedRun<'_> {
    /// Estimates the steps, memory and tokens of the run on a base of `config`.
    #[must_use]
    pub fn estimate(&self, config: &ModelConfig) -> RunEstimate {
        self.0.estimate(config)
    }

    /// Times the first step and discards the run. Returns `None` if interrupted.
    ///
    /// # Errors
    /// As [`PreparedRun::train`].
    pub fn measure(
        self,
        learner: &mut dyn Learner,
        interrupt: &AtomicBool,
    ) -> Result<Option<MeasuredStep>, TrainError> {
        let stop = || interrupt.load(Ordering::Relaxed);
        let mut run = self.0.start()?;
        run.without_reference_logps();
        let began = Instant::now();
        if or_stopped(run.forward_backward(learner, &stop), None)?.is_none() {
            return Ok(None);
        }
        run.clip()?;
        run.optimizer_step();
        Ok(Some(MeasuredStep {
            tokens: run.tokens_of_last_step(),
            seconds: began.elapsed().as_secs_f64(),
        }))
    }

    /// Trains every task's adapter, all of them over shared batches; continues from the checkpoint if there is one.
    ///
    /// An adapter gets the same steps as if it were trained alone: its own rows, order, schedule, clipping and optimizer.
    /// An adapter with fewer steps than the others is left unchanged after its last step. `interrupt` may be set from any thread, at any
    /// time.
    ///
    /// # Errors
    /// A checkpoint of another run, a diverged loss, a file that cannot be written, a learner that fails. The last
    /// checkpoint remains in every case.
    pub fn train(
        self,
        learner: &mut dyn Learner,
        observer: &mut dyn Observer,
        interrupt: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        let stop = || interrupt.load(Ordering::Relaxed);
        let (mut run, resumed) = self.0.resume()?;
        run.open_metrics()?;
        observer.started(&run.plan, resumed);
        if !or_stopped(run.reference_logps(learner, observer, &stop), false)? {
            return run.interrupted(observer);
        }
        loop {
            if !or_stopped(run.validate(learner, observer, &stop), false)? {
                return run.interrupted(observer);
            }
            if run.checkpoint_is_due() {
                run.checkpoint(observer)?;
            }
            observer.snapshot(&run.snapshot());
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

/// The result of a method, or `stopped` if the learner's yield point stopped it.
fn or_stopped<T>(result: Result<T, TrainError>, stopped: T) -> Result<T, TrainError> {
    match result {
        Err(TrainError::Stopped) => Ok(stopped),
        result => result,
    }
}

/// [`prepare`] and [`PreparedRun::train`] in one.
///
/// # Errors
/// Those of both.
pub fn train(
    tasks: Vec<TrainTask>,
    options: &RunOptions,
    learner: &mut dyn Learner,
    observer: &mut dyn Observer,
    interrupt: &AtomicBool,
) -> Result<Outcome, TrainError> {
    prepare(tasks, options)?.train(learner, observer, interrupt)
}
