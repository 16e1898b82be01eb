//! Jobs as clients see them: created, listed, with their events, checkpoints and sampled answers.

use std::path::PathBuf;

use service::Caller;

use super::events::Events;
use super::prepare;
use super::request::NewJob;
use super::samples::{SampledAnswer, Samples};
use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::listing::{Page, Viewer};
use crate::records::job::{Event, JobRecord, JobStatus, Metrics, Progress};

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

impl BackgroundWork {
    /// The folder of a job.
    pub(crate) fn folder(&self, id: &str) -> PathBuf {
        self.jobs.dir().join(id)
    }

    /// The events of a job.
    pub(crate) fn events_of(&self, id: &str) -> Events {
        Events::of(&self.folder(id))
    }

    /// Creates a job. Its files are read in the background next.
    ///
    /// # Errors
    /// What is wrong with the request, [`JobError::QueueFull`], or the disk's.
    pub fn create(&self, caller: &Caller, new: &NewJob) -> Result<JobRecord, JobError> {
        let who = Viewer::of(caller);
        if let Err(error) = self.service.registry() {
            let why = error.to_string();
            return Err(JobError::NoJobs { why });
        }
        let record = new.record(self, caller, &who)?;
        // ThresholdResult under the lock that a deletion takes.
        let files_exist = || {
            let training = (Some(&record.training_file), "training_file");
            let validation = (record.validation_file.as_ref(), "validation_file");
            for (id, field) in [training, validation] {
                if let Some(id) = id {
                    self.files.find(&who, id, field)?;
                }
            }
            Ok(())
        };
        let make_folder = |record: &JobRecord| {
            let folder = self.folder(&record.id);
            std::fs::create_dir_all(&folder).map_err(JobError::io(&folder))?;
            let message = format!("Created fine-tuning job: {}", record.id);
            self.events_of(&record.id).push("info", message, None);
            Ok(())
        };
        self.jobs.add(record.clone(), files_exist, make_folder)
    }

    /// A job.
    ///
    /// # Errors
    /// [`JobError::NoJob`].
    pub fn job(&self, who: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        self.jobs.find(who, id)
    }

    /// Jobs with all of the metadata `with`, and whether there are more.
    ///
    /// # Errors
    /// [`JobError::NoPage`].
    pub fn list(
        &self,
        who: &Viewer,
        page: &Page,
        with: &[(String, String)],
    ) -> Result<(Vec<JobRecord>, bool), JobError> {
        let has = |job: &JobRecord| {
            let mut each = with.iter();
            each.all(|(key, value)| job.metadata.get(key) == Some(value))
        };
        let jobs = self.jobs.list(who, has);
        page.of(jobs, |job| &job.id)
    }

    /// What happened to a job, and whether there is more.
    ///
    /// # Errors
    /// [`JobError::NoJob`], [`JobError::NoPage`], or the disk's.
    pub fn events(
        &self,
        who: &Viewer,
        id: &str,
        page: &Page,
    ) -> Result<(Vec<Event>, bool), JobError> {
        let record = self.job(who, id)?;
        page.of(self.events_of(&record.id).all()?, |event| &event.id)
    }

    /// The validations of a job, each of a state of its run, and whether there are more.
    ///
    /// # Errors
    /// As [`BackgroundWork::events`].
    pub fn checkpoints(
        &self,
        who: &Viewer,
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
    pub fn samples(&self, who: &Viewer, id: &str) -> Result<Vec<SampledAnswer>, JobError> {
        let record = self.job(who, id)?;
        Samples::of(&self.folder(&record.id)).all()
    }

    /// Changes the record of a job that still has the status `from`; none where it has another one by now.
    pub(crate) fn change(
        &self,
        id: &str,
        from: JobStatus,
        change: impl FnOnce(&mut JobRecord),
    ) -> Result<Option<JobRecord>, JobError> {
        self.jobs.change(id, |job| job.status == from, change)
    }

    /// Notes how far a job is, in memory alone.
    pub(crate) fn note(&self, id: &str, write: impl FnOnce(&mut Progress)) {
        self.jobs
            .change_in_memory(id, |job| write(&mut job.progress));
    }

    /// Removes the state that a run would continue from.
    pub(crate) fn clear_state(&self, id: &str) {
        std::fs::remove_dir_all(self.folder(id).join(prepare::STATE)).ok();
    }
}
