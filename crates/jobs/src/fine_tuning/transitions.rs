//! Cancels, pauses and resumes jobs.

use crate::error::JobError;
use crate::jobs_state::JobsState;
use crate::listing::Viewer;
use crate::record_file::now;
use crate::records::job::{JobRecord, JobStatus};

impl JobsState {
    /// Cancels a job.
    ///
    /// # Errors
    /// [`JobError::NoJob`], [`JobError::State`], [`JobError::Publishing`], or a disk error.
    pub fn cancel(&self, viewer: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        let wanted = "only an unfinished job can be cancelled";
        let cancelled = self.transition(viewer, id, JobStatus::Cancelled, wanted, |status| {
            !status.is_over()
        })?;
        self.event_log(id)
            .push("info", "The job was cancelled", None);
        Ok(cancelled)
    }

    /// Pauses a job. Its run writes a checkpoint first.
    ///
    /// # Errors
    /// As [`JobsState::cancel`].
    pub fn pause(&self, viewer: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        let wanted = "only a queued or running job can be paused";
        let paused = self.transition(viewer, id, JobStatus::Paused, wanted, |status| {
            matches!(status, JobStatus::Queued | JobStatus::Running)
        })?;
        self.event_log(id).push("info", "The job was paused", None);
        Ok(paused)
    }

    /// Puts a paused job back into its place in the queue.
    ///
    /// # Errors
    /// As [`JobsState::cancel`].
    pub fn resume(&self, viewer: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        let wanted = "only a paused job can be resumed";
        let resumed = self.transition(viewer, id, JobStatus::Queued, wanted, |status| {
            status == JobStatus::Paused
        })?;
        self.event_log(id).push("info", "The job was resumed", None);
        Ok(resumed)
    }

    /// Changes a job's status to `to` if `allowed` holds for its current one, and stops the trainer if it runs the job.
    fn transition(
        &self,
        viewer: &Viewer,
        id: &str,
        to: JobStatus,
        wanted: &'static str,
        allowed: impl Fn(JobStatus) -> bool,
    ) -> Result<JobRecord, JobError> {
        let mut state = self.jobs.lock();
        let mut record = state.find(viewer, id)?;
        if !allowed(record.status) {
            return Err(JobError::State {
                id: id.to_owned(),
                status: record.status,
                wanted,
            });
        }
        if record.publishing.is_some() && record.status == JobStatus::Running {
            return Err(JobError::Publishing { id: id.to_owned() });
        }
        record.status = to;
        record.finished_at = to.is_over().then(now);
        // An adapter whose gate was just checked goes with its job.
        record.adapter_kept = false;
        self.jobs.save(&mut state, &record)?;
        let is_running = state.stop(id);
        if record.status == JobStatus::Cancelled && !is_running {
            self.remove_unneeded(&record);
        }
        drop(state);
        self.jobs.notify();
        Ok(record)
    }
}
