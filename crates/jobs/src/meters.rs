//! What is counted of jobs, for `/metrics`.

use std::sync::atomic::Ordering;

use crate::background_work::BackgroundWork;
use crate::records::job::JobStatus;

/// The queue's numbers at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobNumbers {
    /// How many jobs there are of each status.
    pub jobs: Vec<(&'static str, u64)>,
    /// Tokens that this process has trained on.
    pub trained_tokens: u64,
}

impl BackgroundWork {
    /// What is counted.
    pub fn numbers(&self) -> JobNumbers {
        let state = self.jobs.lock();
        let of = |status: JobStatus| {
            let with = state.records.values().filter(|job| job.status == status);
            (status.name(), with.count() as u64)
        };
        JobNumbers {
            jobs: JobStatus::ALL.map(of).to_vec(),
            trained_tokens: self.trained.load(Ordering::Relaxed),
        }
    }
}
