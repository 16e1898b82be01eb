//! A job's adapter becomes a version: by itself at the end of its run, or when somebody says so of one that was kept.

use std::sync::PoisonError;

use registry::AdapterContent;

use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::fine_tuning::prepare;
use crate::listing::Viewer;
use crate::records::job::{JobRecord, JobStatus};
use service::{Caller, NewVersion, PublishError};

impl BackgroundWork {
    /// Publishes the adapter that a job kept, as a version that the name means from now on, or as one that waits.
    ///
    /// # Errors
    /// [`JobError::State`] where it kept none; [`JobError::Denied`] for who may not use the persona, or wants what the gate refused
    /// without admin rights; [`JobError::Publish`].
    pub fn publish(&self, caller: &Caller, id: &str, current: bool) -> Result<JobRecord, JobError> {
        let who = Viewer::of(caller);
        // Of two who want the same at once, the second finds it done.
        let one = self.publishing.lock();
        let _one = one.unwrap_or_else(PoisonError::into_inner);
        let record = self.job(&who, id)?;
        if !record.kept || !matches!(record.status, JobStatus::Succeeded | JobStatus::Failed) {
            return Err(JobError::State {
                id: record.id,
                status: record.status,
                wanted: "only one that is over and has kept its adapter can be published",
            });
        }
        caller.check_persona(&record.persona)?;
        if let (JobStatus::Failed, Some(key)) = (record.status, caller.key()) {
            key.check_admin()?;
        }
        if let Some(model) = self.store(id, record.status, current)? {
            self.change(id, record.status, |record| {
                record.kept = false;
                record.fine_tuned_model = Some(model.clone());
            })?;
            self.let_go(id);
            let told = format!("New fine-tuned model created: {model}");
            self.events_of(id).push("info", told, None);
        }
        self.job(&who, id)
    }

    /// Stores the adapter of a job with the status `from` as a new version of its persona, and says which; none where the job has
    /// another status by now. Done twice it is stored once.
    pub(crate) fn store(
        &self,
        id: &str,
        from: JobStatus,
        current: bool,
    ) -> Result<Option<String>, JobError> {
        let record = self.job(&Viewer::everybody(), id)?;
        let path = self.adapter_of(id);
        let service = &self.service;
        let sha256 = AdapterContent::read(&path)
            .map_err(PublishError::from)?
            .sha256;
        if record.publishing.as_deref() == Some(&sha256) {
            // A process before this one was at it. Whether it came to its end the registry knows.
            service.catalog().refresh().map_err(PublishError::from)?;
            let personas = service.personas();
            let there = personas.versions(&record.persona).filter(|version| {
                let adapter = version.adapter.as_ref();
                adapter.is_some_and(|adapter| adapter.sha256_hex() == sha256)
            });
            if let Some(version) = there.map(|version| version.version).max() {
                return Ok(Some(format!("{}@{version}", record.persona)));
            }
        }
        let begun = self.change(id, from, |record| {
            record.publishing = Some(sha256);
            if from == JobStatus::Running {
                record.progress.phase = Some("publishing".to_owned());
            }
        })?;
        if begun.is_none() {
            return Ok(None);
        }
        let personas = service.personas();
        let settings = prepare::settings_of(&record, personas.get(&record.persona));
        let published = service.publish(&NewVersion {
            name: record.persona,
            adapter: Some(path),
            settings: Some(settings),
            current,
            only_new: false,
        })?;
        Ok(Some(format!("{}@{}", published.name, published.version)))
    }

    /// Removes a job's weights, which the registry has now; what tells how they came to be stays.
    pub(crate) fn let_go(&self, id: &str) {
        std::fs::remove_file(self.adapter_of(id).join(formats::peft::WEIGHTS_FILE)).ok();
    }
}
