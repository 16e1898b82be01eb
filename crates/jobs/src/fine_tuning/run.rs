//! One job: its rows, its training, its adapter's folder, its examination, its publication. Every part may be done again by the
//! next process, and comes to the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use train::job::DataReport;
use train::sft::{self, Outcome, RunOptions};

use crate::background_work::BackgroundWork;
use crate::fine_tuning::eval_gate;
use crate::fine_tuning::prepare::{BATCH_TOKENS, PreparedJob, STATE};
use crate::fine_tuning::run_observer::RunObserver;
use crate::fine_tuning::sample_generation::Sampling;
use crate::records::failure::Failure;
use crate::records::job::{JobRecord, JobStatus};
use crate::training::folder::{self, Origin};
use crate::training::plan::Plan;
use crate::training::{self, Target};
use crate::yield_point::JobYieldPoint;
use base::memory;

/// What became of a run.
pub(crate) enum RunOutcome {
    /// Its adapter is published.
    Published {
        /// `name@version`.
        model: String,
        /// Tokens that were trained on.
        tokens: u64,
    },
    /// Its adapter is kept for whoever publishes it.
    Kept {
        /// Tokens that were trained on.
        tokens: u64,
    },
    /// It came to nothing.
    Failed(Failure),
    /// It was told to stop, and can go on.
    Stopped,
}

/// Runs `record` until it is over, or `stop` is set.
pub(crate) fn run(
    queue: &BackgroundWork,
    record: &JobRecord,
    stop: &Arc<AtomicBool>,
) -> RunOutcome {
    match attempt(queue, record, stop) {
        Ok(ended) => ended,
        Err(_) if stop.load(Ordering::SeqCst) => RunOutcome::Stopped,
        Err(error) => {
            let message = queue.with_client_file_names(record, &format!("{error:#}"));
            let code = match error.downcast_ref() {
                Some(train::TrainError::Row { .. } | train::TrainError::Rows { .. }) => {
                    "invalid_training_file"
                }
                Some(train::TrainError::NotFinite { .. }) => "diverged",
                Some(train::TrainError::Memory { .. }) => "out_of_memory",
                _ => "training_failed",
            };
            RunOutcome::Failed(Failure {
                code: code.to_owned(),
                message,
                param: None,
            })
        }
    }
}

fn attempt(
    queue: &BackgroundWork,
    record: &JobRecord,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<RunOutcome> {
    let PreparedJob { job, target } = queue.prepare(record)?;
    let loaded = job.data.clone();
    let base = queue.service.base();
    let fingerprint = base.fingerprint.sha256().unwrap_or_default();
    let options = RunOptions {
        base: base.bound(fingerprint),
        checkpoint: Some(
            queue
                .folder(&record.id)
                .join(STATE)
                .join("checkpoint.safetensors"),
        ),
        batch_tokens: BATCH_TOKENS,
    };
    let yield_point = JobYieldPoint::new(&queue.service, stop);
    let mut learner = training::learner(base).yielding(yield_point.clone());
    let sampling = Sampling::new(queue, record, &target, &job, yield_point.clone(), stop);
    let sampling = sampling.unwrap_or_else(|error| {
        let said = format!("The adapter is not asked on the way: {error:#}");
        let said = queue.with_client_file_names(record, &said);
        queue.events_of(&record.id).push("warn", said, None);
        None
    });
    let mut watch = RunObserver::new(queue, &record.id, sampling);
    let prepared = sft::prepare(vec![job], &options)?;
    let forecast = prepared.estimate(base.model.config());
    learner.set_activation_cache(Plan::new(forecast, memory::in_use(), memory::available()).keep);
    let trained = match prepared.train(&mut learner, &mut watch, stop)? {
        Outcome::Interrupted { .. } => return Ok(RunOutcome::Stopped),
        Outcome::Finished(trained) => trained,
    };
    let trained = trained.first().context("no adapter was trained")?;
    write(trained, &target, &loaded, queue, fingerprint)?;

    queue.note(&record.id, |progress| {
        progress.phase = Some("examining".to_owned());
    });
    let (checked, samples) = eval_gate::check(queue, record, &target, &mut learner, yield_point)?;
    let missed: Vec<&str> = checked
        .iter()
        .filter(|check| !check.passed)
        .map(|check| check.said.as_str())
        .collect();
    let refused = (!missed.is_empty()).then(|| Failure {
        code: "gate_refused".to_owned(),
        message: format!(
            "not published: {}; the adapter is kept in {}",
            missed.join("; "),
            target.out.display()
        ),
        param: Some("gate".to_owned()),
    });
    let saved = queue.change(&record.id, JobStatus::Running, |record| {
        record.checked = checked.clone();
        record.samples = samples;
        record.kept = refused.is_some() || !record.publish;
    })?;
    if saved.is_none() {
        return Ok(RunOutcome::Stopped);
    }
    if let Some(failure) = refused {
        return Ok(RunOutcome::Failed(failure));
    }
    let tokens = queue.tokens_of(&record.id);
    if !record.publish {
        return Ok(RunOutcome::Kept { tokens });
    }
    Ok(match queue.store(&record.id, JobStatus::Running, true)? {
        Some(model) => {
            queue.let_go(&record.id);
            RunOutcome::Published { model, tokens }
        }
        None => RunOutcome::Stopped,
    })
}

/// The adapter's folder, with its curve and its card.
fn write(
    trained: &train::sft::TrainedAdapter,
    target: &Target,
    loaded: &DataReport,
    queue: &BackgroundWork,
    sha256: &str,
) -> anyhow::Result<()> {
    let origin = Origin {
        base: queue.service.base(),
        known: queue.known.as_deref(),
        sha256,
    };
    folder::write(trained, target, loaded, &origin)
        .with_context(|| format!("cannot write the adapter into {}", target.out.display()))
}

impl BackgroundWork {
    /// Tokens of all steps of a job.
    fn tokens_of(&self, id: &str) -> u64 {
        let all = self.events_of(id).all().unwrap_or_default();
        let tokens = |event: &crate::records::job::Event| event.data.as_ref()?.tokens;
        all.iter().filter_map(tokens).sum()
    }
}
