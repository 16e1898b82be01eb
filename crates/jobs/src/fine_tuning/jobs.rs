//! Jobs as clients see them: create, find and list them, and read their events, checkpoints and sampled answers.

use std::path::PathBuf;

use formats::disk;
use service::Caller;

use super::events::EventLog;
use super::prepare;
use super::request::NewJob;
use super::samples::{SampledAnswer, Samples};
use crate::error::JobError;
use crate::jobs_state::JobsState;
use crate::listing::{Page, PagePart, Viewer};
use crate::records::job::{Event, JobRecord, JobStatus, Metrics, Progress};

/// A validated state of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct JobCheckpoint {
    /// The id of the validation's event.
    pub id: String,
    /// When, as a Unix time in seconds.
    pub created_at: u64,
    /// Its metrics, with the training loss of the last step before it.
    pub metrics: Metrics,
    /// Whether it is the best so far.
    pub is_best: bool,
}

impl JobsState {
    /// The folder of a job.
    pub(crate) fn job_folder(&self, id: &str) -> PathBuf {
        self.jobs.dir().join(id)
    }

    /// The events of a job.
    pub(crate) fn event_log(&self, id: &str) -> EventLog {
        EventLog::of(&self.job_folder(id))
    }

    /// Adds a job to the queue. Its files are validated in the background.
    ///
    /// # Errors
    /// A field is invalid, [`JobError::Quota`], or a disk error.
    pub fn create_job(&self, caller: &Caller, new: &NewJob) -> Result<JobRecord, JobError> {
        let viewer = Viewer::of(caller);
        self.folder.check()?;
        if let Err(error) = self.service.registry() {
            let why = error.to_string();
            return Err(JobError::NoJobs { why });
        }
        let device = self.service.base().model.device();
        if !device.trains() {
            let why = format!(
                "the base runs on {}, and training needs --device cpu",
                device.describe()
            );
            return Err(JobError::NoJobs { why });
        }
        let record = new.record(self, caller, &viewer)?;
        // Checked under the lock that a deletion takes.
        let files_exist = || {
            let training = (Some(&record.training_file), "training_file");
            let validation = (record.validation_file.as_ref(), "validation_file");
            for (id, field) in [training, validation] {
                if let Some(id) = id {
                    self.files.find(&viewer, id, field)?;
                }
            }
            Ok(())
        };
        let make_folder = |record: &JobRecord| {
            let folder = self.job_folder(&record.id);
            disk::create_missing_folder(&folder).map_err(JobError::io(&folder))?;
            let message = format!("Created fine-tuning job: {}", record.id);
            let message = self.client_message(&message);
            self.event_log(&record.id).push("info", message, None);
            Ok(())
        };
        let added = self
            .jobs
            .add(&caller.owner(), record.clone(), files_exist, make_folder);
        added.map(|(record, _)| record)
    }

    /// A job.
    ///
    /// # Errors
    /// [`JobError::NoJob`].
    pub fn job(&self, viewer: &Viewer, id: &str) -> Result<JobRecord, JobError> {
        self.jobs.find(viewer, id)
    }

    /// A page of the jobs that have all of the given metadata, and whether there are more.
    ///
    /// # Errors
    /// [`JobError::NoPage`].
    pub fn list_jobs(
        &self,
        viewer: &Viewer,
        page: &Page,
        metadata: &[(String, String)],
    ) -> Result<(Vec<JobRecord>, bool), JobError> {
        let has = |job: &JobRecord| {
            let mut each = metadata.iter();
            each.all(|(key, value)| job.metadata.get(key) == Some(value))
        };
        let jobs = self.jobs.list(viewer, has);
        page.of(jobs, |job| &job.id)
    }

    /// A page of a job's events, and whether there are more.
    ///
    /// # Errors
    /// [`JobError::NoJob`], [`JobError::NoPage`], or a disk error.
    pub fn events(
        &self,
        viewer: &Viewer,
        id: &str,
        page: &Page,
    ) -> Result<(Vec<Event>, bool), JobError> {
        let record = self.job(viewer, id)?;
        let mut part = PagePart::new(page);
        let mut is_complete = false;
        self.event_log(&record.id).for_each(|event| {
            if !is_complete {
                let is_named = page.after.as_ref() == Some(&event.id);
                is_complete = part.add(event, is_named).is_break();
            }
        })?;
        part.finish()
    }

    /// A page of a job's validated states, and whether there are more.
    ///
    /// # Errors
    /// As [`JobsState::events`].
    pub fn checkpoints(
        &self,
        viewer: &Viewer,
        id: &str,
        page: &Page,
    ) -> Result<(Vec<JobCheckpoint>, bool), JobError> {
        let record = self.job(viewer, id)?;
        let mut part = PagePart::new(page);
        let mut is_complete = false;
        let mut train_loss = None;
        // The last one that was the best so far is the best of all.
        let mut best = None;
        self.event_log(&record.id).for_each(|event| {
            let Some(data) = event.data else {
                return;
            };
            train_loss = data.train_loss.or(train_loss);
            if data.full_valid_loss.is_none() {
                return;
            }
            if data.best == Some(true) {
                best = Some(event.id.clone());
            }
            if !is_complete {
                let is_named = page.after.as_ref() == Some(&event.id);
                let validated = JobCheckpoint {
                    id: event.id,
                    created_at: event.created_at,
                    metrics: Metrics { train_loss, ..data },
                    is_best: false,
                };
                is_complete = part.add(validated, is_named).is_break();
            }
        })?;
        let (mut validations, more) = part.finish()?;
        for validated in &mut validations {
            validated.is_best = Some(&validated.id) == best.as_ref();
        }
        Ok((validations, more))
    }

    /// The answers that were sampled while a job trained, by step and then by question.
    ///
    /// # Errors
    /// [`JobError::NoJob`], or a disk error.
    pub fn samples(&self, viewer: &Viewer, id: &str) -> Result<Vec<SampledAnswer>, JobError> {
        let record = self.job(viewer, id)?;
        Samples::of(&self.job_folder(&record.id)).all()
    }

    /// Changes the record of a job that still has the status `from`; `None` if it has another one by now.
    pub(crate) fn update_job(
        &self,
        id: &str,
        from: JobStatus,
        change: impl FnOnce(&mut JobRecord),
    ) -> Result<Option<JobRecord>, JobError> {
        self.jobs.change(id, |job| job.status == from, change)
    }

    /// Changes a job's progress, in memory only.
    pub(crate) fn update_progress(&self, id: &str, write: impl FnOnce(&mut Progress)) {
        self.jobs
            .change_in_memory(id, |job| write(&mut job.progress));
    }

    /// Removes what a finished job does not need any more: the checkpoint that a run would continue from, and the weights of an adapter
    /// that nobody can publish.
    pub(crate) fn remove_unneeded(&self, record: &JobRecord) {
        disk::remove_folder(&self.job_folder(&record.id).join(prepare::STATE)).ok();
        if !record.adapter_kept {
            self.remove_weights(&record.id);
        }
    }

    /// Deletes a finished job with its events, its samples and, if it was not published, its adapter.
    ///
    /// # Errors
    /// [`JobError::NoJob`], [`JobError::State`] if it is not finished, [`JobError::Publishing`], or a disk error.
    pub fn delete_job(&self, viewer: &Viewer, id: &str) -> Result<(), JobError> {
        let record = self.job(viewer, id)?;
        match self.jobs.delete(id, |job| job.status.is_over())? {
            Some(_) => Ok(()),
            None if self.jobs.is_held(id) => Err(JobError::Publishing { id: record.id }),
            None => Err(JobError::State {
                id: record.id,
                status: record.status,
                wanted: "only a finished job can be deleted; cancel it first",
            }),
        }
    }
}
