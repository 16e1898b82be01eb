//! [`Queue`]: jobs and evaluations, with the threads that work on them ([`Jobs`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use service::{Caller, Service, sharing};

use crate::asking::{Page, Who};
use crate::disk::{get, put};
use crate::error::JobError;
use crate::evaluation::results::{EvaluationResults, ResultError};
use crate::evaluations::Evaluations;
use crate::events::Events;
use crate::files::{Files, StoredFile, Upload};
use crate::record::{self, Event, Metrics, Record, Status};
use crate::request::NewJob;
use crate::run;
use crate::samples::{Said, Samples};
use crate::{MAX_KEPT, MAX_OPEN};

/// A state of a run that was validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Validated {
    /// The event that told of it.
    pub id: String,
    /// When, in seconds since 1970.
    pub created_at: u64,
    /// Its numbers, with the loss of the step before it.
    pub metrics: Metrics,
    /// Whether it is the best so far.
    pub kept: bool,
}

/// Where a queue lies, and what it is told of the base.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// Its folder.
    pub dir: PathBuf,
    /// The name of a base that Lory knows; none for a file.
    pub known: Option<String>,
    /// Where results of evaluations are stored; by default evaluations are refused.
    pub results: Option<EvaluationResults>,
}

/// The queue with the threads that work on it. Dropped, it is shut down.
pub struct Jobs {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The queue.
pub struct Queue {
    pub(crate) service: Arc<Service>,
    pub(crate) files: Files,
    pub(crate) dir: PathBuf,
    pub(crate) known: Option<String>,
    pub(crate) results: Option<EvaluationResults>,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    /// Tokens trained on by this process.
    pub(crate) trained: AtomicU64,
    /// Tokens a second of the latest step that was taken.
    pub(crate) pace: Mutex<Option<f64>>,
    /// Held by who measures a step.
    pub(crate) measuring: Mutex<()>,
    /// Held by who publishes what a job kept.
    pub(crate) publishing: Mutex<()>,
    pub(crate) evaluations_dir: PathBuf,
    pub(crate) evaluations: Mutex<Evaluations>,
    pub(crate) evaluations_changed: Condvar,
    /// Held for as long as the queue is: one process runs it.
    _lock: File,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) jobs: BTreeMap<String, Record>,
    /// The job that the trainer works on, and what makes it stop.
    pub(crate) current: Option<(String, Arc<AtomicBool>)>,
    pub(crate) closing: bool,
}

impl Deref for Jobs {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl Jobs {
    /// Opens the queue in the folder of `settings` and goes on with what is in it.
    ///
    /// # Errors
    /// The folder cannot be used, or another process runs the queue in it.
    pub fn start(service: Arc<Service>, settings: &JobSettings) -> Result<Jobs, JobError> {
        let queue = Arc::new(Queue::open(service, settings)?);
        let mut threads = Vec::new();
        let mut spawn = |name: &str, work: fn(&Queue)| -> Result<(), JobError> {
            let queue = Arc::clone(&queue);
            let spawned = thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || work(&queue));
            threads.push(spawned.map_err(JobError::io(Path::new(name)))?);
            Ok(())
        };
        spawn("lory-jobs", |queue| {
            // Answers go first, where cores are short. The trainer takes turns with them instead: a step that waits for a layer
            // should not wait for one of low priority.
            sharing::give_way();
            queue.validate();
        })?;
        spawn("lory-trainer", Queue::train)?;
        spawn("lory-evaluator", Queue::measure_all)?;
        Ok(Jobs {
            queue,
            threads: Mutex::new(threads),
        })
    }

    /// Ends the threads. The job under way writes its checkpoint; the next process goes on with it.
    pub fn shutdown(&self) {
        {
            let mut state = self.queue.lock();
            state.closing = true;
            if let Some((_, stop)) = &state.current {
                stop.store(true, Ordering::SeqCst);
            }
        }
        self.queue.evaluations().close();
        self.queue.changed.notify_all();
        self.queue.evaluations_changed.notify_all();
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

impl Queue {
    fn open(service: Arc<Service>, settings: &JobSettings) -> Result<Queue, JobError> {
        let dir = settings.dir.join("jobs");
        std::fs::create_dir_all(&dir).map_err(JobError::io(&dir))?;
        let lock = settings.dir.join("lock");
        let file = File::create(&lock).map_err(JobError::io(&lock))?;
        if let Err(error) = file.try_lock() {
            return Err(match error {
                std::fs::TryLockError::WouldBlock => JobError::NoJobs {
                    why: format!(
                        "another process runs the jobs in {}; name another folder with --jobs-dir",
                        settings.dir.display()
                    ),
                },
                std::fs::TryLockError::Error(source) => JobError::io(&lock)(source),
            });
        }
        let mut jobs = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).map_err(JobError::io(&dir))? {
            let folder = entry.map_err(JobError::io(&dir))?.path();
            let path = folder.join("job.json");
            if path.exists() {
                let record: Record = get(&path)?;
                jobs.insert(record.id.clone(), record);
            } else {
                // Its creation did not come to its end: nobody was told its id.
                std::fs::remove_dir_all(&folder).map_err(JobError::io(&folder))?;
            }
        }
        let evaluations_dir = settings.dir.join("evaluations");
        Ok(Queue {
            files: Files::open(&settings.dir.join("files"))?,
            service,
            dir,
            known: settings.known.clone(),
            results: settings.results.clone(),
            state: Mutex::new(State {
                jobs,
                ..State::default()
            }),
            changed: Condvar::new(),
            trained: AtomicU64::new(0),
            pace: Mutex::new(None),
            measuring: Mutex::new(()),
            publishing: Mutex::new(()),
            evaluations: Mutex::new(Evaluations::open(&evaluations_dir)?),
            evaluations_dir,
            evaluations_changed: Condvar::new(),
            _lock: file,
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service that jobs run beside.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// The stored results of evaluations.
    ///
    /// # Errors
    /// [`ResultError::Off`].
    pub(crate) fn results(&self) -> Result<&EvaluationResults, ResultError> {
        self.results.as_ref().ok_or(ResultError::Off)
    }

    /// Most tokens of a row on this base.
    pub fn context_length(&self) -> usize {
        self.service.base().model.config().context_length
    }

    pub(crate) fn folder(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    pub(crate) fn events_of(&self, id: &str) -> Events {
        Events::of(&self.folder(id))
    }

    /// Begins to take a file; its bytes follow, then [`Queue::keep`].
    ///
    /// # Errors
    /// There are too many, or the disk's.
    pub fn upload(&self) -> Result<Upload, JobError> {
        self.files.upload()
    }

    /// Takes a file whose bytes are all there, if each of its lines is a row.
    ///
    /// # Errors
    /// [`JobError::Rows`] with the lines that are broken.
    pub fn keep(
        &self,
        upload: Upload,
        filename: &str,
        caller: &Caller,
    ) -> Result<StoredFile, JobError> {
        let owner = Who::of(caller).name().map(str::to_owned);
        self.files.finish(upload, filename, owner)
    }

    /// A file.
    ///
    /// # Errors
    /// [`JobError::NoFile`].
    pub fn file(&self, who: &Who, id: &str) -> Result<StoredFile, JobError> {
        self.files.find(who, id, "file_id")
    }

    /// Where a file's bytes lie.
    pub fn path_of(&self, file: &StoredFile) -> PathBuf {
        self.files.path(file)
    }

    /// Files, and whether there are more.
    ///
    /// # Errors
    /// [`JobError::NoPage`].
    pub fn list_files(&self, who: &Who, page: &Page) -> Result<(Vec<StoredFile>, bool), JobError> {
        self.files.list(who, page)
    }

    /// Deletes a file that no job needs any more.
    ///
    /// # Errors
    /// [`JobError::NoFile`], [`JobError::FileInUse`], or the disk's.
    pub fn delete_file(&self, who: &Who, id: &str) -> Result<(), JobError> {
        let file = self.file(who, id)?;
        // Held until it is gone, so that no job is created on it meanwhile.
        let state = self.lock();
        let needs = |job: &&Record| {
            !job.status.is_over()
                && (job.training_file == id || job.validation_file.as_deref() == Some(id))
        };
        if let Some(job) = state.jobs.values().find(needs) {
            return Err(JobError::FileInUse {
                id: id.to_owned(),
                by: job.id.clone(),
            });
        }
        let evaluations = self.evaluations();
        if let Some(evaluation) = evaluations.needs(id) {
            return Err(JobError::FileInUse {
                id: id.to_owned(),
                by: evaluation.to_owned(),
            });
        }
        self.files.delete(&file)
    }

    /// Creates a job. Its files are read in the background next.
    ///
    /// # Errors
    /// What is wrong with the request, [`JobError::QueueFull`], or the disk's.
    pub fn create(&self, caller: &Caller, new: &NewJob) -> Result<Record, JobError> {
        let who = Who::of(caller);
        if let Err(error) = self.service.registry() {
            let why = error.to_string();
            return Err(JobError::NoJobs { why });
        }
        let mut record = new.record(self, caller, &who)?;
        let mut state = self.lock();
        let open = state.jobs.values().filter(|job| !job.status.is_over());
        if open.count() >= MAX_OPEN {
            return Err(JobError::QueueFull { limit: MAX_OPEN });
        }
        // Looked at again under the lock that a deletion takes.
        for (id, field) in [
            (Some(&record.training_file), "training_file"),
            (record.validation_file.as_ref(), "validation_file"),
        ] {
            if let Some(id) = id {
                self.files.find(&who, id, field)?;
            }
        }
        let numbers = state.jobs.values().map(|job| job.number);
        record.number = numbers.max().unwrap_or(0) + 1;
        self.make_room(&mut state);
        let folder = self.folder(&record.id);
        std::fs::create_dir_all(&folder).map_err(JobError::io(&folder))?;
        self.events_of(&record.id).push(
            "info",
            format!("Created fine-tuning job: {}", record.id),
            None,
        );
        put(&folder.join("job.json"), &record)?;
        state.jobs.insert(record.id.clone(), record.clone());
        drop(state);
        self.changed.notify_all();
        Ok(record)
    }

    /// Forgets the oldest jobs that are over, where there are too many.
    pub(crate) fn make_room(&self, state: &mut State) {
        while state.jobs.len() >= MAX_KEPT {
            let over = state.jobs.values().filter(|job| job.status.is_over());
            let Some(oldest) = over.min_by_key(|job| job.number).map(|job| job.id.clone()) else {
                return;
            };
            if let Err(error) = std::fs::remove_dir_all(self.folder(&oldest)) {
                tracing::warn!("job {oldest} cannot be removed: {error}");
            }
            state.jobs.remove(&oldest);
        }
    }

    /// A job.
    ///
    /// # Errors
    /// [`JobError::NoJob`].
    pub fn job(&self, who: &Who, id: &str) -> Result<Record, JobError> {
        seen(&self.lock(), who, id)
    }

    /// Jobs with all of the metadata `with`, and whether there are more.
    ///
    /// # Errors
    /// [`JobError::NoPage`].
    pub fn list(
        &self,
        who: &Who,
        page: &Page,
        with: &[(String, String)],
    ) -> Result<(Vec<Record>, bool), JobError> {
        let has = |job: &Record| {
            let mut each = with.iter();
            each.all(|(key, value)| job.metadata.get(key) == Some(value))
        };
        let state = self.lock();
        let mut jobs: Vec<Record> = state
            .jobs
            .values()
            .filter(|job| who.sees(job.owner.as_deref()) && has(job))
            .cloned()
            .collect();
        drop(state);
        jobs.sort_by_key(|job| job.number);
        page.of(jobs, |job| &job.id)
    }

    /// What happened to a job, and whether there is more.
    ///
    /// # Errors
    /// [`JobError::NoJob`], [`JobError::NoPage`], or the disk's.
    pub fn events(&self, who: &Who, id: &str, page: &Page) -> Result<(Vec<Event>, bool), JobError> {
        let record = self.job(who, id)?;
        page.of(self.events_of(&record.id).all()?, |event| &event.id)
    }

    /// The validations of a job, each of a state of its run, and whether there are more.
    ///
    /// # Errors
    /// As [`Queue::events`].
    pub fn checkpoints(
        &self,
        who: &Who,
        id: &str,
        page: &Page,
    ) -> Result<(Vec<Validated>, bool), JobError> {
        let record = self.job(who, id)?;
        let mut validations: Vec<Validated> = Vec::new();
        let mut train_loss = None;
        for event in self.events_of(&record.id).all()? {
            let Some(data) = event.data else {
                continue;
            };
            train_loss = data.train_loss.or(train_loss);
            if data.full_valid_loss.is_some() {
                validations.push(Validated {
                    id: event.id,
                    created_at: event.created_at,
                    metrics: Metrics { train_loss, ..data },
                    kept: false,
                });
            }
        }
        // The last that was the best so far is the best of all.
        let best = |validated: &&mut Validated| validated.metrics.best == Some(true);
        if let Some(kept) = validations.iter_mut().rev().find(best) {
            kept.kept = true;
        }
        page.of(validations, |validated| &validated.id)
    }

    /// What the adapter of a job said while it was trained, by step and then as it was asked.
    ///
    /// # Errors
    /// [`JobError::NoJob`], or the disk's.
    pub fn samples(&self, who: &Who, id: &str) -> Result<Vec<Said>, JobError> {
        let record = self.job(who, id)?;
        Samples::of(&self.folder(&record.id)).all()
    }

    /// Writes a record, and only then lets it be seen.
    pub(crate) fn save(&self, state: &mut State, record: &Record) -> Result<(), JobError> {
        put(&self.folder(&record.id).join("job.json"), record)?;
        state.jobs.insert(record.id.clone(), record.clone());
        Ok(())
    }

    /// Changes the record of a job that still has the status `from`; none where it has another one by now.
    pub(crate) fn change(
        &self,
        id: &str,
        from: Status,
        change: impl FnOnce(&mut Record),
    ) -> Result<Option<Record>, JobError> {
        let mut state = self.lock();
        let Some(mut record) = state.jobs.get(id).filter(|job| job.status == from).cloned() else {
            return Ok(None);
        };
        change(&mut record);
        self.save(&mut state, &record)?;
        drop(state);
        self.changed.notify_all();
        Ok(Some(record))
    }

    /// Notes how far a job is, in memory alone: the next save takes it along.
    pub(crate) fn note(&self, id: &str, write: impl FnOnce(&mut record::Progress)) {
        if let Some(record) = self.lock().jobs.get_mut(id) {
            write(&mut record.progress);
        }
    }

    /// Removes what a run would go on from.
    pub(crate) fn clear_state(&self, id: &str) {
        std::fs::remove_dir_all(self.folder(id).join(run::STATE)).ok();
    }
}

pub(crate) fn seen(state: &State, who: &Who, id: &str) -> Result<Record, JobError> {
    let found = state
        .jobs
        .get(id)
        .filter(|job| who.sees(job.owner.as_deref()));
    found.cloned().ok_or_else(|| JobError::NoJob {
        id: id.chars().take(80).collect(),
    })
}
