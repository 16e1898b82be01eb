//! What is counted of jobs, for `/metrics`.

use std::sync::atomic::Ordering;

use crate::queue::Queue;
use crate::record::Status;

/// The queue's numbers at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobNumbers {
    /// How many jobs there are of each status.
    pub jobs: Vec<(&'static str, u64)>,
    /// Tokens that this process has trained on.
    pub trained_tokens: u64,
}

impl Queue {
    /// What is counted.
    pub fn numbers(&self) -> JobNumbers {
        let state = self.lock();
        let of = |status: Status| {
            let with = state.jobs.values().filter(|job| job.status == status);
            (status.name(), with.count() as u64)
        };
        JobNumbers {
            jobs: Status::ALL.map(of).to_vec(),
            trained_tokens: self.trained.load(Ordering::Relaxed),
        }
    }
}
