//! A job is given up, rests, or goes on.

use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::listing::Viewer;
use crate::record_file::now;
use crate::records::job::{JobRecord, JobStatus};

impl BackgroundWork {
    /// Gives a job up.
    ///
    /// # Errors
    /// It is over, or publishes at this moment.
    pub fn cancel(&self, who: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        let wanted = "only a job that is not over can be cancelled";
        let cancelled = self.turn(who, id, JobStatus::Cancelled, wanted, |status| {
            !status.is_over()
        })?;
        self.events_of(id)
            .push("info", "The job was cancelled", None);
        Ok(cancelled)
    }

    /// Lets a job rest; its run writes its checkpoint first.
    ///
    /// # Errors
    /// It neither waits nor runs, or publishes at this moment.
    pub fn pause(&self, who: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        let wanted = "only one that is queued or running can be paused";
        let paused = self.turn(who, id, JobStatus::Paused, wanted, |status| {
            matches!(status, JobStatus::Queued | JobStatus::Running)
        })?;
        self.events_of(id).push("info", "The job was paused", None);
        Ok(paused)
    }

    /// Puts a job that rests back into its place in the queue.
    ///
    /// # Errors
    /// It does not rest.
    pub fn resume(&self, who: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        let wanted = "only one that is paused can be resumed";
        let resumed = self.turn(who, id, JobStatus::Queued, wanted, |status| {
            status == JobStatus::Paused
        })?;
        self.events_of(id).push("info", "The job was resumed", None);
        Ok(resumed)
    }

    /// Turns a job's status into `to`, if `may` says so of what it is, and stops the trainer if it works on it.
    fn turn(
        &self,
        who: &Viewer,
        id: &str,
        to: JobStatus,
        wanted: &'static str,
        may: impl Fn(JobStatus) -> bool,
    ) -> Result<JobRecord, JobError> {
        let mut state = self.jobs.lock();
        let mut record = state.find(who, id)?;
        if !may(record.status) {
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
        self.jobs.save(&mut state, &record)?;
        let at_work = state.stop(id);
        if record.status == JobStatus::Cancelled && !at_work {
            self.clear_state(id);
        }
        drop(state);
        self.jobs.notify();
        Ok(record)
    }
}
