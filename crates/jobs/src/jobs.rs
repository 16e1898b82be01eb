//! [`Jobs`]: the threads that validate files, train and evaluate.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use service::{Service, compute_arbiter};

use crate::background_work::{BackgroundWork, JobSettings};
use crate::error::JobError;

/// The queue with the threads that work on it. Dropped, it is shut down.
pub struct Jobs {
    work: Arc<BackgroundWork>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Deref for Jobs {
    type Target = BackgroundWork;

    fn deref(&self) -> &BackgroundWork {
        &self.work
    }
}

impl Jobs {
    /// Opens the queue in the folder of `settings` and goes on with what is in it.
    ///
    /// # Errors
    /// The folder cannot be used, or another process runs the queue in it.
    pub fn start(service: Arc<Service>, settings: &JobSettings) -> Result<Jobs, JobError> {
        let work = Arc::new(BackgroundWork::open(service, settings)?);
        let mut threads = Vec::new();
        let mut spawn = |name: &str, run: fn(&BackgroundWork)| -> Result<(), JobError> {
            let work = Arc::clone(&work);
            let spawned = thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || run(&work));
            threads.push(spawned.map_err(JobError::io(Path::new(name)))?);
            Ok(())
        };
        spawn("lory-jobs", |work| {
            // Answers go first, where cores are short. The trainer takes turns with them instead: a step that waits for a layer
            // should not wait for one of low priority.
            compute_arbiter::lower_thread_priority();
            work.validate();
        })?;
        spawn("lory-trainer", BackgroundWork::train)?;
        spawn("lory-evaluator", BackgroundWork::evaluate_all)?;
        Ok(Jobs {
            work,
            threads: Mutex::new(threads),
        })
    }

    /// Ends the threads. The job under way writes its checkpoint; the next process goes on with it.
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
