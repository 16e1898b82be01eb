//! [`Jobs`]: the threads that validate files, train and evaluate.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use service::{Service, compute_arbiter};

use crate::error::JobError;
use crate::jobs_state::{JobSettings, JobsState};

/// Background work with the threads that do it. Dropping it shuts it down.
pub struct Jobs {
    work: Arc<JobsState>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Deref for Jobs {
    type Target = JobsState;

    fn deref(&self) -> &JobsState {
        &self.work
    }
}

impl Jobs {
    /// Opens the queues in the folder of `settings` and continues with their records.
    ///
    /// # Errors
    /// The folder cannot be used, or another process works on it.
    pub fn start(service: Arc<Service>, settings: &JobSettings) -> Result<Jobs, JobError> {
        let work = Arc::new(JobsState::open(service, settings)?);
        let mut threads = Vec::new();
        let mut spawn = |name: &str, run: fn(&JobsState)| -> Result<(), JobError> {
            let work = Arc::clone(&work);
            let spawned = thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || run(&work));
            threads.push(spawned.map_err(JobError::io(Path::new(name)))?);
            Ok(())
        };
        spawn("lory-jobs", |work| {
            // Requests come first if cores are short. The trainer keeps its priority: it yields between parts of layers, and a serving step
            // must not wait for a layer of a thread with low priority.
            compute_arbiter::lower_thread_priority();
            work.validate_jobs();
        })?;
        spawn("lory-trainer", JobsState::train_jobs)?;
        spawn("lory-evaluator", JobsState::run_evaluations)?;
        Ok(Jobs {
            work,
            threads: Mutex::new(threads),
        })
    }

    /// Ends the threads. A running job writes its checkpoint, and the next process continues it.
    pub fn shutdown(&self) {
        self.work.jobs.close();
        self.work.evaluations.close();
        let threads = self.threads.lock();
        let mut threads = threads.unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.shutdown();
    }
}
