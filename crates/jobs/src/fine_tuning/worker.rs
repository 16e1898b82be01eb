//! The two threads of the queue: one reads new jobs' files, one trains. What becomes of a job is written down here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::background_queue::Running;
use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::fine_tuning::run::{self, RunOutcome};
use crate::record_file::now;
use crate::records::failure::Failure;
use crate::records::job::{JobRecord, JobStatus};

impl BackgroundWork {
    /// The thread that reads new jobs' files.
    pub(crate) fn validate(&self) {
        let new =
            |job: &JobRecord| (job.status == JobStatus::ValidatingFiles).then_some(job.number);
        while let Some(record) = self.jobs.wait_for(new) {
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
                    self.change(&record.id, JobStatus::ValidatingFiles, |record| {
                        record.status = JobStatus::Queued;
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
                    self.fail(&record.id, JobStatus::ValidatingFiles, failure)
                }
            };
            if let Err(error) = changed {
                self.give_up(&record.id, &error);
            }
        }
    }

    fn fail(
        &self,
        id: &str,
        from: JobStatus,
        failure: Failure,
    ) -> Result<Option<JobRecord>, JobError> {
        self.change(id, from, |record| {
            record.status = JobStatus::Failed;
            record.finished_at = Some(now());
            record.error = Some(failure);
        })
    }

    /// The disk does not take a job's state any more: the job fails in memory, so that the queue goes on.
    fn give_up(&self, id: &str, error: &JobError) {
        tracing::error!("job {id}: {error}");
        self.jobs.change_in_memory(id, |record| {
            record.status = JobStatus::Failed;
            record.finished_at = Some(now());
            record.error = Some(Failure {
                code: "state_not_written".to_owned(),
                message: error.to_string(),
                param: None,
            });
        });
    }

    /// The thread that trains.
    pub(crate) fn train(&self) {
        // What was under way when the process before ended goes first.
        let next = |job: &JobRecord| match job.status {
            JobStatus::Running => Some((0, job.number)),
            JobStatus::Queued => Some((1, job.number)),
            _ => None,
        };
        while let Some(record) = self.jobs.wait_for(next) {
            let running = match self.begin(&record.id) {
                Ok(Some(running)) => running,
                Ok(None) => continue,
                Err(error) => {
                    self.give_up(&record.id, &error);
                    continue;
                }
            };
            let ran = catch_unwind(AssertUnwindSafe(|| run::run(self, &record, &running.stop)));
            let ended = ran.unwrap_or_else(|_| {
                RunOutcome::Failed(Failure {
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

    /// Takes up a job, unless its state has changed.
    fn begin(&self, id: &str) -> Result<Option<Running>, JobError> {
        let mut state = self.jobs.lock();
        let Some(mut record) = state.records.get(id).cloned() else {
            return Ok(None);
        };
        if state.is_closing() || !matches!(record.status, JobStatus::Queued | JobStatus::Running) {
            return Ok(None);
        }
        if record.status != JobStatus::Running {
            record.status = JobStatus::Running;
            self.jobs.save(&mut state, &record)?;
        }
        Ok(Some(state.start(id)))
    }

    /// Writes down what became of a run.
    fn ended(&self, id: &str, ended: RunOutcome) -> Result<(), JobError> {
        let events = self.events_of(id);
        let over = |record: &mut JobRecord, status: JobStatus| {
            record.status = status;
            record.finished_at = Some(now());
            record.progress.phase = None;
            record.progress.estimated_finish = None;
        };
        match ended {
            // Whoever stopped it has said what it is now.
            RunOutcome::Stopped => {}
            RunOutcome::Published { model, tokens } => {
                events.push(
                    "info",
                    format!("New fine-tuned model created: {model}"),
                    None,
                );
                events.push("info", "The job has successfully completed", None);
                self.change(id, JobStatus::Running, |record| {
                    over(record, JobStatus::Succeeded);
                    record.trained_tokens = Some(tokens);
                    record.fine_tuned_model = Some(model);
                })?;
            }
            RunOutcome::Kept { tokens } => {
                let told =
                    "The job has successfully completed; its adapter is kept until it is published";
                events.push("info", told, None);
                self.change(id, JobStatus::Running, |record| {
                    over(record, JobStatus::Succeeded);
                    record.trained_tokens = Some(tokens);
                })?;
            }
            RunOutcome::Failed(failure) => {
                events.push("error", failure.message.clone(), None);
                self.change(id, JobStatus::Running, |record| {
                    over(record, JobStatus::Failed);
                    record.error = Some(failure);
                })?;
            }
        }
        let mut state = self.jobs.lock();
        state.running = None;
        let is_over = state.records.get(id).is_none_or(|job| job.status.is_over());
        drop(state);
        if is_over {
            self.clear_state(id);
        }
        Ok(())
    }
}
