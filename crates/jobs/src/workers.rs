//! The two threads of the queue: one reads new jobs' files, one trains. What becomes of a job is written down here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

use crate::disk::now;
use crate::error::JobError;
use crate::queue::Queue;
use crate::record::Failure;
use crate::record::{Record, Status};
use crate::run::{self, Ended};

impl Queue {
    /// Waits for a job for which `wanted` holds, the one with the lowest of its numbers; none at the end.
    fn wait_for<K: Ord>(&self, wanted: impl Fn(&Record) -> Option<K>) -> Option<Record> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            let found = state
                .jobs
                .values()
                .filter_map(|job| Some((wanted(job)?, job)));
            if let Some((_, job)) = found.min_by(|(a, _), (b, _)| a.cmp(b)) {
                return Some(job.clone());
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread that reads new jobs' files.
    pub(super) fn validate(&self) {
        let new = |job: &Record| (job.status == Status::ValidatingFiles).then_some(job.number);
        while let Some(record) = self.wait_for(new) {
            let looked = catch_unwind(AssertUnwindSafe(|| self.plan_of(&record, None)));
            let looked = looked.unwrap_or_else(|_| {
                Err(JobError::Plan(
                    "reading the files broke off; the log says why".to_owned(),
                ))
            });
            let events = self.events_of(&record.id);
            let changed = match looked {
                Ok(plan) => {
                    events.push("info", "Files validated, moving job to queued state", None);
                    self.change(&record.id, Status::ValidatingFiles, |record| {
                        record.status = Status::Queued;
                        record.progress.steps = plan.forecast.plan.steps;
                        record.plan = serde_json::to_value(&plan).ok();
                    })
                }
                Err(error) => {
                    let failure = Failure {
                        code: "invalid_training_file".to_owned(),
                        message: error.to_string(),
                        param: Some("training_file".to_owned()),
                    };
                    events.push("error", failure.message.clone(), None);
                    self.fail(&record.id, Status::ValidatingFiles, failure)
                }
            };
            if let Err(error) = changed {
                self.give_up(&record.id, &error);
            }
        }
    }

    fn fail(&self, id: &str, from: Status, failure: Failure) -> Result<Option<Record>, JobError> {
        self.change(id, from, |record| {
            record.status = Status::Failed;
            record.finished_at = Some(now());
            record.error = Some(failure);
        })
    }

    /// The disk does not take a job's state any more: the job fails in memory, so that the queue goes on.
    fn give_up(&self, id: &str, error: &JobError) {
        tracing::error!("job {id}: {error}");
        if let Some(record) = self.lock().jobs.get_mut(id) {
            record.status = Status::Failed;
            record.finished_at = Some(now());
            record.error = Some(Failure {
                code: "state_not_written".to_owned(),
                message: error.to_string(),
                param: None,
            });
        }
    }

    /// The thread that trains.
    pub(super) fn train(&self) {
        // What was under way when the process before ended goes first.
        let next = |job: &Record| match job.status {
            Status::Running => Some((0, job.number)),
            Status::Queued => Some((1, job.number)),
            _ => None,
        };
        while let Some(record) = self.wait_for(next) {
            let stop = Arc::new(AtomicBool::new(false));
            let began = self.begin(&record, &stop);
            match began {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    self.give_up(&record.id, &error);
                    continue;
                }
            }
            let ran = catch_unwind(AssertUnwindSafe(|| run::run(self, &record, &stop)));
            let ended = ran.unwrap_or_else(|_| {
                Ended::Failed(Failure {
                    code: "server_error".to_owned(),
                    message: "the run broke off; the log says why".to_owned(),
                    param: None,
                })
            });
            if let Err(error) = self.ended(&record.id, ended) {
                self.give_up(&record.id, &error);
            }
        }
    }

    /// Takes a job up, unless something else became of it meanwhile.
    fn begin(&self, record: &Record, stop: &Arc<AtomicBool>) -> Result<bool, JobError> {
        let mut state = self.lock();
        let Some(mut record) = state.jobs.get(&record.id).cloned() else {
            return Ok(false);
        };
        if state.closing || !matches!(record.status, Status::Queued | Status::Running) {
            return Ok(false);
        }
        if record.status != Status::Running {
            record.status = Status::Running;
            self.save(&mut state, &record)?;
        }
        state.current = Some((record.id, Arc::clone(stop)));
        Ok(true)
    }

    /// Writes down what became of a run.
    fn ended(&self, id: &str, ended: Ended) -> Result<(), JobError> {
        let events = self.events_of(id);
        let over = |record: &mut Record, status: Status| {
            record.status = status;
            record.finished_at = Some(now());
            record.progress.phase = None;
            record.progress.estimated_finish = None;
        };
        match ended {
            // Whoever stopped it has said what it is now.
            Ended::Stopped => {}
            Ended::Published { model, tokens } => {
                events.push(
                    "info",
                    format!("New fine-tuned model created: {model}"),
                    None,
                );
                events.push("info", "The job has successfully completed", None);
                self.change(id, Status::Running, |record| {
                    over(record, Status::Succeeded);
                    record.trained_tokens = Some(tokens);
                    record.fine_tuned_model = Some(model);
                })?;
            }
            Ended::Kept { tokens } => {
                let told =
                    "The job has successfully completed; its adapter is kept until it is published";
                events.push("info", told, None);
                self.change(id, Status::Running, |record| {
                    over(record, Status::Succeeded);
                    record.trained_tokens = Some(tokens);
                })?;
            }
            Ended::Failed(failure) => {
                events.push("error", failure.message.clone(), None);
                self.change(id, Status::Running, |record| {
                    over(record, Status::Failed);
                    record.error = Some(failure);
                })?;
            }
        }
        let mut state = self.lock();
        state.current = None;
        let is_over = state.jobs.get(id).is_none_or(|job| job.status.is_over());
        drop(state);
        if is_over {
            self.clear_state(id);
        }
        Ok(())
    }
}
