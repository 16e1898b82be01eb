//! A job is given up, rests, or goes on.

use std::sync::atomic::Ordering;

use crate::asking::Who;
use crate::disk::now;
use crate::error::JobError;
use crate::queue::{Queue, seen};
use crate::record::{Record, Status};

impl Queue {
    /// Gives a job up.
    ///
    /// # Errors
    /// It is over, or publishes at this moment.
    pub fn cancel(&self, who: &Who, id: &str) -> Result<Record, JobError> {
        let wanted = "only a job that is not over can be cancelled";
        let cancelled = self.turn(who, id, Status::Cancelled, wanted, |status| {
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
    pub fn pause(&self, who: &Who, id: &str) -> Result<Record, JobError> {
        let wanted = "only one that is queued or running can be paused";
        let paused = self.turn(who, id, Status::Paused, wanted, |status| {
            matches!(status, Status::Queued | Status::Running)
        })?;
        self.events_of(id).push("info", "The job was paused", None);
        Ok(paused)
    }

    /// Puts a job that rests back into its place in the queue.
    ///
    /// # Errors
    /// It does not rest.
    pub fn resume(&self, who: &Who, id: &str) -> Result<Record, JobError> {
        let wanted = "only one that is paused can be resumed";
        let resumed = self.turn(who, id, Status::Queued, wanted, |status| {
            status == Status::Paused
        })?;
        self.events_of(id).push("info", "The job was resumed", None);
        Ok(resumed)
    }

    /// Turns a job's status into `to`, if `may` says so of what it is, and stops the trainer if it works on it.
    fn turn(
        &self,
        who: &Who,
        id: &str,
        to: Status,
        wanted: &'static str,
        may: impl Fn(Status) -> bool,
    ) -> Result<Record, JobError> {
        let mut state = self.lock();
        let mut record = seen(&state, who, id)?;
        if !may(record.status) {
            return Err(JobError::State {
                id: id.to_owned(),
                status: record.status,
                wanted,
            });
        }
        if record.publishing.is_some() && record.status == Status::Running {
            return Err(JobError::Publishing { id: id.to_owned() });
        }
        record.status = to;
        record.finished_at = to.is_over().then(now);
        self.save(&mut state, &record)?;
        let at_work = match &state.current {
            Some((current, stop)) if current == id => {
                stop.store(true, Ordering::SeqCst);
                true
            }
            _ => false,
        };
        if record.status == Status::Cancelled && !at_work {
            self.clear_state(id);
        }
        drop(state);
        self.changed.notify_all();
        Ok(record)
    }
}
