//! Publishes a job's adapter as a version: at the end of its run, or on request if it was kept.

use registry::AdapterContent;

use crate::error::JobError;
use crate::fine_tuning::prepare;
use crate::jobs_state::JobsState;
use crate::listing::Viewer;
use crate::records::job::{JobRecord, JobStatus};
use service::{Caller, NewVersion, PublishError};

impl JobsState {
    /// Publishes a kept adapter as a new version, which becomes the current one if `current`.
    ///
    /// # Errors
    /// [`JobError::State`] if the job kept no adapter; [`JobError::Publishing`] if another call publishes it; [`JobError::Denied`] if the caller may not use the persona, or has no admin rights
    /// and the gate refused the adapter; [`JobError::Publish`].
    pub fn publish(&self, caller: &Caller, id: &str, current: bool) -> Result<JobRecord, JobError> {
        let viewer = Viewer::of(caller);
        let record = self.job(&viewer, id)?;
        // The job is not published twice at the same time, nor deleted meanwhile. Other jobs do not wait.
        let Some(_held) = self.jobs.hold(id) else {
            return Err(JobError::Publishing { id: record.id });
        };
        let record = self.job(&viewer, id)?;
        if !record.adapter_kept
            || !matches!(record.status, JobStatus::Succeeded | JobStatus::Failed)
        {
            return Err(JobError::State {
                id: record.id,
                status: record.status,
                wanted: "only a finished job that kept its adapter can be published",
            });
        }
        caller.check_persona(&record.persona)?;
        if let (JobStatus::Failed, Some(key)) = (record.status, caller.key()) {
            key.check_admin()?;
        }
        if let Some(model) = self.publish_version(id, record.status, current)? {
            self.update_job(id, record.status, |record| {
                record.adapter_kept = false;
                record.fine_tuned_model = Some(model.clone());
            })?;
            self.remove_weights(id);
            let message = format!("New fine-tuned model created: {model}");
            self.event_log(id)
                .push("info", self.client_message(&message), None);
        }
        self.job(&viewer, id)
    }

    /// Publishes the adapter of a job with the status `from` and returns `name@version`; `None` if the job has another status by now.
    /// Publishing twice, also across a restart, makes one version.
    pub(crate) fn publish_version(
        &self,
        id: &str,
        from: JobStatus,
        current: bool,
    ) -> Result<Option<String>, JobError> {
        let record = self.job(&Viewer::everybody(), id)?;
        let path = self.adapter_folder(id);
        let service = &self.service;
        let sha256 = AdapterContent::read(&path)
            .map_err(PublishError::from)?
            .sha256;
        if record.publishing.as_deref() == Some(&sha256) {
            // An earlier process started to publish this adapter. The registry has it if that process finished.
            service.catalog().refresh().map_err(PublishError::from)?;
            let personas = service.personas();
            let published = personas.versions(&record.persona).filter(|version| {
                let adapter = version.adapter.as_ref();
                adapter.is_some_and(|adapter| adapter.sha256_hex() == sha256)
            });
            if let Some(version) = published.map(|version| version.version).max() {
                return Ok(Some(format!("{}@{version}", record.persona)));
            }
        }
        let started = self.update_job(id, from, |record| {
            record.publishing = Some(sha256);
            if from == JobStatus::Running {
                record.progress.phase = Some("publishing".to_owned());
            }
        })?;
        if started.is_none() {
            return Ok(None);
        }
        let personas = service.personas();
        let settings = prepare::persona_settings(&record, personas.get(&record.persona));
        let published = service.publish(&NewVersion {
            name: record.persona,
            adapter: Some(path),
            settings: Some(settings),
            current,
            only_new: false,
        })?;
        Ok(Some(format!("{}@{}", published.name, published.version)))
    }

    /// Removes a job's weights, which the registry has now. The records of the run stay.
    pub(crate) fn remove_weights(&self, id: &str) {
        formats::disk::remove_file(&self.adapter_folder(id).join(formats::peft::WEIGHTS_FILE)).ok();
    }
}
