//! The worker threads of training jobs: one validates files, one trains. They record the outcome of each job.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::JobError;
use crate::fine_tuning::preview::PlanTime;
use crate::fine_tuning::run::{self, RunOutcome};
use crate::jobs_state::JobsState;
use crate::key_turns::Stage;
use crate::queue_state::Running;
use crate::record_file::now;
use crate::records::failure::Failure;
use crate::records::job::{JobRecord, JobStatus};

impl JobsState {
    /// Reads the files of new jobs until the queue closes.
    pub(crate) fn validate_jobs(&self) {
        let new = |job: &JobRecord| (job.status == JobStatus::ValidatingFiles).then_some(0);
        while let Some(record) = self.jobs.wait_for(Stage::Prepare, new) {
            let Some(validation) = self.start_validation(&record.id) else {
                continue;
            };
            let plan = || {
                let _planning = self.planning.take(&validation.stop)?;
                self.make_plan(&record, PlanTime::None, &validation.stop)
            };
            let planned = catch_unwind(AssertUnwindSafe(plan));
            self.jobs.lock().preparing = None;
            let planned = planned.unwrap_or_else(|_| {
                Err(JobError::Plan(
                    "reading the files panicked; see the server's log".to_owned(),
                ))
            });
            let events = self.event_log(&record.id);
            let changed = match planned {
                Ok(plan) => {
                    events.push("info", "Files validated, moving job to queued state", None);
                    self.update_job(&record.id, JobStatus::ValidatingFiles, |record| {
                        record.status = JobStatus::Queued;
                        record.progress.steps = plan.forecast.plan.steps;
                        record.plan = serde_json::to_value(&plan).ok();
                    })
                }
                // A cancelled job has its status; a shutdown leaves the job to the next process.
                Err(JobError::Stopped) => continue,
                Err(error) => {
                    tracing::warn!("job {}: {error}", record.id);
                    let failure = self.validation_failure(&record, &error);
                    events.push("error", failure.message.clone(), None);
                    self.fail(&record.id, JobStatus::ValidatingFiles, failure)
                }
            };
            if let Err(error) = changed {
                self.fail_in_memory(&record.id, &error);
            }
        }
    }

    fn validation_failure(&self, record: &JobRecord, error: &JobError) -> Failure {
        let (code, param) = validation_code(error);
        Failure {
            code: code.to_owned(),
            message: self.with_client_file_names(record, &error.client_message()),
            param: Some(param.to_owned()),
        }
    }

    /// Marks a job as being validated; `None` if its state has changed.
    fn start_validation(&self, id: &str) -> Option<Running> {
        let mut state = self.jobs.lock();
        let status = state.records.get(id)?.status;
        let is_new = status == JobStatus::ValidatingFiles && !state.is_closing();
        is_new.then(|| state.prepare(id))
    }

    fn fail(
        &self,
        id: &str,
        from: JobStatus,
        failure: Failure,
    ) -> Result<Option<JobRecord>, JobError> {
        self.update_job(id, from, |record| {
            record.status = JobStatus::Failed;
            record.finished_at = Some(now());
            record.error = Some(failure);
        })
    }

    /// Fails a job in memory because its state cannot be written to disk, so that the queue continues.
    fn fail_in_memory(&self, id: &str, error: &JobError) {
        tracing::error!("job {id}: {error}");
        self.jobs.change_in_memory(id, |record| {
            record.status = JobStatus::Failed;
            record.finished_at = Some(now());
            record.error = Some(Failure {
                code: "state_not_written".to_owned(),
                message: self.client_message(&error.client_message()),
                param: None,
            });
        });
    }

    /// Trains queued jobs until the queue closes.
    pub(crate) fn train_jobs(&self) {
        // A job that was running when the process ended goes first.
        let next = |job: &JobRecord| match job.status {
            JobStatus::Running => Some(0),
            JobStatus::Queued => Some(1),
            _ => None,
        };
        while let Some(record) = self.jobs.wait_for(Stage::Run, next) {
            let running = match self.start_run(&record.id) {
                Ok(Some(running)) => running,
                Ok(None) => continue,
                Err(error) => {
                    self.fail_in_memory(&record.id, &error);
                    continue;
                }
            };
            let ran = catch_unwind(AssertUnwindSafe(|| run::run(self, &record, &running.stop)));
            let outcome = ran.unwrap_or_else(|_| {
                RunOutcome::Failed(Failure {
                    code: "server_error".to_owned(),
                    message: "the run panicked; see the server's log".into(),
                    param: None,
                })
            });
            if let Err(error) = self.finish_run(&record.id, outcome) {
                let error = self.folder.check().err().unwrap_or(error);
                self.fail_in_memory(&record.id, &error);
            }
        }
    }

    /// Marks a job as running; `None` if its state has changed.
    fn start_run(&self, id: &str) -> Result<Option<Running>, JobError> {
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

    /// Records the outcome of a run.
    fn finish_run(&self, id: &str, outcome: RunOutcome) -> Result<(), JobError> {
        let events = self.event_log(id);
        let over = |record: &mut JobRecord, status: JobStatus| {
            record.status = status;
            record.finished_at = Some(now());
            record.progress.phase = None;
            record.progress.estimated_finish = None;
        };
        match outcome {
            // The request that stopped it has set its status.
            RunOutcome::Stopped => {}
            RunOutcome::Published { model, tokens } => {
                events.push(
                    "info",
                    self.client_message(&format!("New fine-tuned model created: {model}")),
                    None,
                );
                events.push("info", "The job has successfully completed", None);
                self.update_job(id, JobStatus::Running, |record| {
                    over(record, JobStatus::Succeeded);
                    record.trained_tokens = Some(tokens);
                    record.fine_tuned_model = Some(model);
                })?;
            }
            RunOutcome::AdapterKept { tokens } => {
                let message =
                    "The job has successfully completed; its adapter is kept until it is published";
                events.push("info", message, None);
                self.update_job(id, JobStatus::Running, |record| {
                    over(record, JobStatus::Succeeded);
                    record.trained_tokens = Some(tokens);
                })?;
            }
            RunOutcome::Failed(failure) => {
                events.push("error", failure.message.clone(), None);
                self.update_job(id, JobStatus::Running, |record| {
                    over(record, JobStatus::Failed);
                    record.error = Some(failure);
                })?;
            }
        }
        let mut state = self.jobs.lock();
        state.running = None;
        let record = state.records.get(id).cloned();
        drop(state);
        match record {
            // It was deleted while it stopped, and may have written files since.
            None => {
                formats::disk::remove_folder(&self.job_folder(id)).ok();
            }
            Some(record) if record.status.is_over() => self.remove_unneeded(&record),
            Some(_) => {}
        }
        Ok(())
    }
}

/// The code of a job that cannot be validated, and the field that it is about.
fn validation_code(error: &JobError) -> (&'static str, &str) {
    match error {
        JobError::TrainMemory(_) => ("out_of_memory", "hyperparameters"),
        JobError::Invalid { field, .. } => ("invalid_value", field.as_str()),
        _ => ("invalid_training_file", "training_file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_that_cannot_be_validated_names_the_field_that_it_is_about() {
        for (error, code, param) in [
            (
                JobError::invalid("model", "is gone"),
                "invalid_value",
                "model",
            ),
            (
                JobError::TrainMemory(String::new()),
                "out_of_memory",
                "hyperparameters",
            ),
            (
                JobError::Plan(String::new()),
                "invalid_training_file",
                "training_file",
            ),
        ] {
            assert_eq!(validation_code(&error), (code, param));
        }
    }
}
