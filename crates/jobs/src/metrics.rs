//! Counts of jobs for `/metrics`.

use std::sync::atomic::Ordering;

use crate::jobs_state::JobsState;
use crate::records::job::JobStatus;

/// Counts of jobs at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCounts {
    /// The number of jobs by status.
    pub jobs: Vec<(&'static str, u64)>,
    /// Tokens that this process has trained on.
    pub trained_tokens: u64,
    /// Records that could not be read when the server started, by kind.
    pub damaged: Vec<(&'static str, u64)>,
}

impl JobsState {
    /// The current counts.
    pub fn counts(&self) -> JobCounts {
        let state = self.jobs.lock();
        let of = |status: JobStatus| {
            let with = state.records.values().filter(|job| job.status == status);
            (status.name(), with.count() as u64)
        };
        JobCounts {
            jobs: JobStatus::ALL.map(of).to_vec(),
            trained_tokens: self.trained_tokens.load(Ordering::Relaxed),
            damaged: self.damaged.counts(),
        }
    }
}
