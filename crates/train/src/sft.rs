//! Supervised fine-tuning of several adapters in one run: the loop, as a table of contents.
//!
//! Knows no model (see [`Learner`]), no text (see [`crate::job`]) and no screen (see [`Observer`]). What each verb does is
//! in `run.rs`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::TrainError;
use crate::job::Job;
use crate::learner::Learner;
use crate::params::LoraParams;
use crate::progress::{Observer, Validation};
use crate::run::Run;
use crate::settings::Settings;

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
    Finished(Vec<Trained>),
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
pub struct Trained {
    /// Its name.
    pub name: String,
    /// How it was trained.
    pub settings: Settings,
    /// Its parameters of the lowest validation loss; the last ones where nothing was validated.
    pub params: LoraParams,
    /// The validation pass that chose them.
    pub best: Option<Validation>,
    /// Optimizer steps done.
    pub steps: u64,
    /// Whether its patience was over before its last step.
    pub stopped_early: bool,
    /// The text of its metrics (see [`crate::metrics::records`]).
    pub metrics: String,
}

/// Trains every job's adapter, all of them over shared batches; goes on from the checkpoint where there is one.
///
/// An adapter gets the same steps as if it were trained alone: its own rows, order, schedule, clipping and optimizer. One
/// with fewer steps than the others rests once it is done. `interrupt` may be set from anywhere, at any time.
///
/// # Errors
/// Jobs that cannot be trained, a checkpoint of another run, a diverged loss, a file that cannot be written, a learner
/// that fails. The last checkpoint stands in every case.
pub fn train(
    jobs: Vec<Job>,
    options: &RunOptions,
    learner: &mut dyn Learner,
    observer: &mut dyn Observer,
    interrupt: &AtomicBool,
) -> Result<Outcome, TrainError> {
    let stop = || interrupt.load(Ordering::Relaxed);
    let mut run = Run::plan(jobs, options)?;
    let resumed = run.resume()?;
    run.open_metrics()?;
    observer.started(&run.plan, resumed);
    loop {
        if !run.validate(learner, observer, &stop)? {
            return run.interrupted(observer);
        }
        if run.checkpoint_is_due() {
            run.checkpoint(observer)?;
        }
        if run.is_done() {
            break;
        }
        let Some(losses) = run.forward_backward(learner, &stop)? else {
            return run.interrupted(observer);
        };
        let norms = run.clip()?;
        let rates = run.optimizer_step();
        run.log(&losses, &norms, &rates, observer)?;
    }
    observer.finished(run.step);
    Ok(Outcome::Finished(run.finish()))
}
