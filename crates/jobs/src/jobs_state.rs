//! [`JobsState`]: what the API's calls and the worker threads share. The uploaded files and both queues are in one folder.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use auth::Resource;
use formats::{atomic_file, disk};
use service::{Caller, Service};

use crate::error::JobError;
use crate::evaluation_results::{EvaluationResults, ResultError};
use crate::files::{Files, Upload};
use crate::jobs_folder::{DamagedRecords, JobsFolder};
use crate::listing::{Page, Viewer};
use crate::queue_state::{QueueRecord, RecordHeader};
use crate::records::client_message::ClientMessage;
use crate::records::evaluation::Evaluation;
use crate::records::file::StoredFile;
use crate::records::job::JobRecord;
use crate::stored_records::{open_evaluations, open_jobs};
use crate::train_memory::{TrainMemory, Turn};
use crate::work_queue::WorkQueue;

/// The most unfinished jobs of all keys.
pub const MAX_OPEN_JOBS: usize = 64;
/// The most stored jobs of all keys; the oldest finished ones of a key make room for its next.
pub const MAX_STORED_JOBS: usize = 1000;
/// The most bytes of the checkpoints and unpublished adapters of all jobs.
pub const MAX_ADAPTER_BYTES: u64 = 64 << 30;
/// The most unfinished evaluations of all keys.
pub const MAX_OPEN_EVALUATIONS: usize = 16;
/// The most stored evaluations of all keys, with their results; the oldest finished ones of a key make room for its next.
const MAX_STORED_EVALUATIONS: usize = 200;

impl QueueRecord for JobRecord {
    const KIND: &'static str = "job";
    const OPEN: Resource = Resource::OpenJobs;
    const MAX_OPEN: usize = MAX_OPEN_JOBS;
    const STORED: Resource = Resource::StoredJobs;
    const MAX_STORED: usize = MAX_STORED_JOBS;
    const BYTES: Option<(Resource, u64)> = Some((Resource::AdapterBytes, MAX_ADAPTER_BYTES));

    fn header(&self) -> RecordHeader<'_> {
        RecordHeader {
            id: &self.id,
            number: self.number,
            owner: self.owner.as_deref(),
            is_over: self.status.is_over(),
            // Without publication the job's folder has the only copy of its adapter.
            has_only_copy: self.adapter_kept,
            bytes: self.adapter_bytes(),
        }
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn file(dir: &Path, id: &str) -> PathBuf {
        dir.join(id).join("job.json")
    }

    fn remove(dir: &Path, id: &str) -> std::io::Result<()> {
        atomic_file::remove_folder(&dir.join(id))
    }

    fn discard(dir: &Path, id: &str) {
        // The record first: without it the next start removes the rest.
        let _ = disk::remove_file(&JobRecord::file(dir, id));
        let folder = dir.join(id);
        if let Err(error) = disk::remove_folder(&folder)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!("{}: {error}", folder.display());
        }
    }

    fn not_found(id: &str) -> JobError {
        JobError::NoJob {
            id: id.chars().take(80).collect(),
        }
    }
}

impl QueueRecord for Evaluation {
    const KIND: &'static str = "evaluation";
    const OPEN: Resource = Resource::OpenEvaluations;
    const MAX_OPEN: usize = MAX_OPEN_EVALUATIONS;
    const STORED: Resource = Resource::StoredEvaluations;
    const MAX_STORED: usize = MAX_STORED_EVALUATIONS;

    fn header(&self) -> RecordHeader<'_> {
        RecordHeader {
            id: &self.id,
            number: self.number,
            owner: self.owner.as_deref(),
            is_over: self.status.is_over(),
            has_only_copy: false,
            bytes: 0,
        }
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn file(dir: &Path, id: &str) -> PathBuf {
        dir.join(format!("{id}.json"))
    }

    fn remove(dir: &Path, id: &str) -> std::io::Result<()> {
        disk::remove_file(&Evaluation::file(dir, id))
    }

    fn discard(dir: &Path, id: &str) {
        // It may have its name and not be flushed.
        let _ = disk::remove_file(&Evaluation::file(dir, id));
    }

    fn not_found(id: &str) -> JobError {
        JobError::Results(ResultError::Unknown(id.chars().take(40).collect()))
    }
}

/// Settings of background work.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// The folder of files and queues.
    pub dir: PathBuf,
    /// The id of a base that Lory knows; `None` for any other file.
    pub known_base: Option<String>,
    /// Where results of evaluations are stored; evaluations are refused if it is `None`.
    pub results: Option<EvaluationResults>,
    /// The most memory of a run, in bytes, in addition to its rows. A plan is refused if it needs more.
    pub train_memory: u64,
}

/// The state that the API's calls and the worker threads share: the uploaded files, both queues and the service.
pub struct JobsState {
    pub(crate) service: Arc<Service>,
    pub(crate) files: Files,
    pub(crate) known_base: Option<String>,
    pub(crate) results: Option<EvaluationResults>,
    pub(crate) jobs: WorkQueue<JobRecord>,
    pub(crate) evaluations: WorkQueue<Evaluation>,
    /// Tokens that this process has trained on.
    pub(crate) trained_tokens: AtomicU64,
    /// Training speed of the latest step.
    pub(crate) tokens_per_s: Mutex<Option<f64>>,
    /// Held while a plan is made.
    pub(crate) planning: Turn,
    pub(crate) train_memory: TrainMemory,
    pub(crate) damaged: DamagedRecords,
    pub(crate) folder: JobsFolder,
}

impl JobsState {
    /// Opens both queues in the folder of `settings`.
    ///
    /// # Errors
    /// The folder cannot be used, or another process works on it.
    pub(crate) fn open(
        service: Arc<Service>,
        settings: &JobSettings,
    ) -> Result<JobsState, JobError> {
        let folder = JobsFolder::open(&settings.dir)?;
        let damaged = DamagedRecords::default();
        let dir = settings.dir.join("jobs");
        let records = open_jobs(&dir, &damaged)?;
        let evaluations_dir = settings.dir.join("evaluations");
        let evaluations = open_evaluations(&evaluations_dir, &damaged)?;
        Ok(JobsState {
            files: Files::open(&settings.dir.join("files"), &damaged)?,
            service,
            known_base: settings.known_base.clone(),
            results: settings.results.clone(),
            jobs: WorkQueue::new(dir, records),
            evaluations: WorkQueue::new(evaluations_dir, evaluations),
            trained_tokens: AtomicU64::new(0),
            tokens_per_s: Mutex::new(None),
            planning: Turn::default(),
            train_memory: TrainMemory::new(settings.train_memory),
            damaged,
            folder,
        })
    }

    /// The service that serves while jobs run.
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

    /// `text` for a record or an event, without the folders of this machine.
    pub(crate) fn client_message(&self, text: &str) -> ClientMessage {
        let mut folders = vec![self.folder.path()];
        folders.extend(self.results.as_ref().map(EvaluationResults::folder));
        ClientMessage::without_folders(text, &self.service, &folders)
    }

    /// The base's context length, which is the most tokens of a row.
    pub fn context_length(&self) -> usize {
        self.service.base().model.config().context_length
    }

    /// Starts the upload of a file that the client calls `filename`. Write its bytes, then call [`JobsState::finish_upload`].
    ///
    /// # Errors
    /// The name is too long, [`JobError::Quota`], or a disk error.
    pub fn start_upload(&self, filename: &str, caller: &Caller) -> Result<Upload, JobError> {
        self.folder.check()?;
        self.files.start_upload(filename, caller.owner())
    }

    /// Whether new files and jobs can be stored.
    pub fn is_available(&self) -> bool {
        self.folder.check().is_ok()
    }

    /// Accepts a complete upload if every line is a row.
    ///
    /// # Errors
    /// [`JobError::Rows`] with the broken lines, [`JobError::Stopped`] once `stop` is set, or a disk error.
    pub fn finish_upload(&self, upload: Upload, stop: &AtomicBool) -> Result<StoredFile, JobError> {
        self.files.finish_upload(upload, stop)
    }

    /// A file.
    ///
    /// # Errors
    /// [`JobError::NoFile`].
    pub fn file(&self, viewer: &Viewer, id: &str) -> Result<StoredFile, JobError> {
        self.files.find(viewer, id, "file_id")
    }

    /// The path of a file's bytes.
    pub fn file_path(&self, file: &StoredFile) -> PathBuf {
        self.files.path(file)
    }

    /// A page of files, and whether there are more.
    ///
    /// # Errors
    /// [`JobError::NoPage`].
    pub fn list_files(
        &self,
        viewer: &Viewer,
        page: &Page,
    ) -> Result<(Vec<StoredFile>, bool), JobError> {
        self.files.list(viewer, page)
    }

    /// Deletes a file that no unfinished job or evaluation needs.
    ///
    /// # Errors
    /// [`JobError::NoFile`], [`JobError::FileInUse`], or a disk error.
    pub fn delete_file(&self, viewer: &Viewer, id: &str) -> Result<(), JobError> {
        let file = self.file(viewer, id)?;
        // Held until the file is gone, so that no job is created on it meanwhile.
        let jobs = self.jobs.lock();
        let needs = |job: &&JobRecord| {
            !job.status.is_over()
                && (job.training_file == id || job.validation_file.as_deref() == Some(id))
        };
        if let Some(job) = jobs.records.values().find(needs) {
            return Err(JobError::FileInUse {
                id: id.to_owned(),
                by: job.id.clone(),
            });
        }
        let evaluations = self.evaluations.lock();
        let needs = |one: &&Evaluation| !one.status.is_over() && one.file.as_deref() == Some(id);
        if let Some(evaluation) = evaluations.records.values().find(needs) {
            return Err(JobError::FileInUse {
                id: id.to_owned(),
                by: evaluation.id.clone(),
            });
        }
        self.files.delete(&file)
    }
}
