//! Runs one job: trains, writes the adapter folder, checks the eval gate, publishes. The next process may repeat any part, with the same
//! result.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::YieldPoint;
use train::Learner;
use train::task::DataReport;
use train::trainer::{self, Outcome, RunOptions};

use crate::error::JobError;
use crate::fine_tuning::error::RunError;
use crate::fine_tuning::eval_gate;
use crate::fine_tuning::prepare::{BATCH_TOKENS, PreparedJob, STATE};
use crate::fine_tuning::run_observer::RunObserver;
use crate::fine_tuning::sample_generation::SampleGenerator;
use crate::jobs_state::JobsState;
use crate::records::failure::Failure;
use crate::records::job::{JobRecord, JobStatus, ThresholdResult};
use crate::training::folder::{self, Origin};
use crate::training::plan::Plan;
use crate::training::{self, Target};
use crate::yield_point::job_yield_point;
use base::memory;

/// The outcome of a run.
pub(crate) enum RunOutcome {
    /// Its adapter is published.
    Published {
        /// `name@version`.
        model: String,
        /// Tokens that were trained on.
        tokens: u64,
    },
    /// Its adapter is kept until someone publishes it.
    AdapterKept {
        /// Tokens that were trained on.
        tokens: u64,
    },
    /// It failed.
    Failed(Failure),
    /// It was stopped, and can continue.
    Stopped,
}

/// Runs `record` until it is over, or `stop` is set.
pub(crate) fn run(queue: &JobsState, record: &JobRecord, stop: &Arc<AtomicBool>) -> RunOutcome {
    let ended = match train_and_finish(queue, record, stop) {
        Ok(published @ RunOutcome::Published { .. }) => return published,
        // What the run would still write into it would be lost at the next start.
        ended => queue.folder.check().map_err(RunError::from).and(ended),
    };
    match ended {
        Ok(outcome) => outcome,
        Err(error @ RunError::Job(JobError::FolderRemoved)) => failed(queue, record, &error),
        Err(_) if stop.load(Ordering::SeqCst) => RunOutcome::Stopped,
        Err(error) => failed(queue, record, &error),
    }
}

fn failed(queue: &JobsState, record: &JobRecord, error: &RunError) -> RunOutcome {
    tracing::warn!("job {}: {error}", record.id);
    RunOutcome::Failed(Failure {
        code: error.code().to_owned(),
        message: queue.with_client_file_names(record, &error.client_message()),
        param: error.param().map(str::to_owned),
    })
}

/// Trains `record` and finishes its adapter.
fn train_and_finish(
    queue: &JobsState,
    record: &JobRecord,
    stop: &Arc<AtomicBool>,
) -> Result<RunOutcome, RunError> {
    let PreparedJob { task, target } = queue.prepare(record, stop)?;
    let _memory = queue.train_memory.turn.take(stop)?;
    let data = task.data.clone();
    let base = queue.service.base();
    let base_sha256 = base.fingerprint.sha256().unwrap_or_default();
    let state = queue.job_folder(&record.id).join(STATE);
    let options = RunOptions {
        base: base.run_identity(base_sha256),
        checkpoint: Some(state.join("checkpoint.safetensors")),
        batch_tokens: BATCH_TOKENS,
    };
    let yield_point = job_yield_point(&queue.service, stop);
    let mut learner = training::learner(base).yielding(yield_point.clone());
    let sampling = SampleGenerator::new(queue, record, &task, yield_point.clone(), stop);
    let sampling = sampling.unwrap_or_else(|error| {
        let message = format!("Samples are off for this run: {error}");
        let message = queue.with_client_file_names(record, &message);
        queue.event_log(&record.id).push("warn", message, None);
        None
    });
    let mut observer = RunObserver::new(queue, &record.id, sampling, stop);
    let prepared = trainer::prepare(vec![task], &options)?;
    let forecast = prepared.estimate(base.model.config());
    let available = queue.train_memory.available();
    let plan = Plan::new(forecast, memory::in_use(), Some(available));
    plan.check()?;
    learner.set_activation_cache(plan.keep);
    let trained = match prepared.train(&mut learner, &mut observer, stop)? {
        Outcome::Interrupted { .. } => return Ok(RunOutcome::Stopped),
        Outcome::Finished(trained) => trained,
    };
    let trained = trained.first().ok_or(RunError::NoAdapter)?;
    queue.folder.check()?;
    write_adapter(trained, &target, &data, queue, base_sha256)?;
    check_and_publish(queue, record, &target, &mut learner, yield_point)
}

/// Checks the eval gate, and publishes the adapter if it passed and `record` asks for it.
fn check_and_publish(
    queue: &JobsState,
    record: &JobRecord,
    target: &Target,
    learner: &mut dyn Learner,
    yield_point: Arc<dyn YieldPoint>,
) -> Result<RunOutcome, RunError> {
    queue.update_progress(&record.id, |progress| {
        progress.phase = Some("examining".to_owned());
    });
    let (results, samples) = eval_gate::check(queue, record, target, learner, yield_point)?;
    let refused = gate_failure(queue, &results);
    let saved = queue.update_job(&record.id, JobStatus::Running, |record| {
        record.threshold_results = results;
        record.samples = samples;
        record.adapter_kept = refused.is_some() || !record.publish;
    })?;
    if saved.is_none() {
        return Ok(RunOutcome::Stopped);
    }
    if let Some(failure) = refused {
        let message = failure.message.as_str();
        tracing::info!(job = record.id, folder = %target.out.display(), "{message}");
        return Ok(RunOutcome::Failed(failure));
    }
    let tokens = queue.count_trained_tokens(&record.id);
    if !record.publish {
        return Ok(RunOutcome::AdapterKept { tokens });
    }
    let published = queue.publish_version(&record.id, JobStatus::Running, true);
    if published.is_err() {
        // An administrator can publish it later.
        queue.update_job(&record.id, JobStatus::Running, |record| {
            record.adapter_kept = true;
        })?;
    }
    Ok(match published? {
        Some(model) => {
            queue.remove_weights(&record.id);
            RunOutcome::Published { model, tokens }
        }
        None => RunOutcome::Stopped,
    })
}

/// Why the gate refuses the adapter; `None` if no threshold is missed.
fn gate_failure(queue: &JobsState, results: &[ThresholdResult]) -> Option<Failure> {
    let missed = results.iter().filter(|result| !result.passed);
    let missed: Vec<&str> = missed.map(|result| result.message.as_str()).collect();
    let message = format!("not published: {}; the adapter is kept", missed.join("; "));
    (!missed.is_empty()).then(|| Failure {
        code: "gate_refused".to_owned(),
        message: queue.client_message(&message),
        param: Some("gate".to_owned()),
    })
}

/// Writes the adapter's folder, with its loss curve and its card.
fn write_adapter(
    trained: &train::trainer::TrainedAdapter,
    target: &Target,
    data: &DataReport,
    queue: &JobsState,
    sha256: &str,
) -> Result<(), RunError> {
    let origin = Origin {
        base: queue.service.base(),
        known_base: queue.known_base.as_deref(),
        sha256,
    };
    Ok(folder::write(trained, target, data, &origin)?)
}

impl JobsState {
    /// Trained tokens of all steps of a job, from its event log.
    fn count_trained_tokens(&self, id: &str) -> u64 {
        let mut tokens = 0_u64;
        let read = self.event_log(id).for_each(|event| {
            let of_step = event.data.and_then(|data| data.tokens);
            tokens = tokens.saturating_add(of_step.unwrap_or(0));
        });
        if let Err(error) = read {
            tracing::error!("job {id}: {error}");
        }
        tokens
    }
}
