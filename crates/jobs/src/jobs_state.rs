//! [`JobsState`]: what the API's calls and the worker threads share. The uploaded files and both queues are in one folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use auth::Resource;
use service::{Caller, Service};

use crate::error::JobError;
use crate::evaluation_results::{EvaluationResults, ResultError};
use crate::files::{Files, StoredFile, Upload};
use crate::listing::{Page, Viewer};
use crate::record_file::{self, now};
use crate::records::evaluation::{Evaluation, EvaluationStatus};
use crate::records::failure::Failure;
use crate::records::job::JobRecord;
use crate::work_queue::{QueueRecord, RecordHeader, WorkQueue};

/// The most unfinished jobs of all keys.
pub const MAX_OPEN_JOBS: usize = 64;
/// The most stored jobs of all keys; the oldest finished ones of a key make room for its next.
pub const MAX_STORED_JOBS: usize = 1000;
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

    fn header(&self) -> RecordHeader<'_> {
        RecordHeader {
            id: &self.id,
            number: self.number,
            owner: self.owner.as_deref(),
            is_over: self.status.is_over(),
            // Without publication the job's folder has the only copy of its adapter.
            has_only_copy: self.adapter_kept,
        }
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn file(dir: &Path, id: &str) -> PathBuf {
        dir.join(id).join("job.json")
    }

    fn remove(dir: &Path, id: &str) -> std::io::Result<()> {
        std::fs::remove_dir_all(dir.join(id))
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
        }
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn file(dir: &Path, id: &str) -> PathBuf {
        dir.join(format!("{id}.json"))
    }

    fn remove(dir: &Path, id: &str) -> std::io::Result<()> {
        std::fs::remove_file(Evaluation::file(dir, id))
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
    pub(crate) planning: Mutex<()>,
    /// Held while a kept adapter is published.
    pub(crate) publishing: Mutex<()>,
    /// Held for the process's lifetime: only one process works on the queues.
    _lock: File,
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
        let records = open_jobs(&dir)?;
        let evaluations_dir = settings.dir.join("evaluations");
        let evaluations = open_evaluations(&evaluations_dir)?;
        Ok(JobsState {
            files: Files::open(&settings.dir.join("files"))?,
            service,
            known_base: settings.known_base.clone(),
            results: settings.results.clone(),
            jobs: WorkQueue::new(dir, records),
            evaluations: WorkQueue::new(evaluations_dir, evaluations),
            trained_tokens: AtomicU64::new(0),
            tokens_per_s: Mutex::new(None),
            planning: Mutex::new(()),
            publishing: Mutex::new(()),
            _lock: file,
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

    /// The base's context length, which is the most tokens of a row.
    pub fn context_length(&self) -> usize {
        self.service.base().model.config().context_length
    }

    /// Starts an upload. Write its bytes, then call [`JobsState::finish_upload`].
    ///
    /// # Errors
    /// [`JobError::TooManyFiles`], or a disk error.
    pub fn start_upload(&self) -> Result<Upload, JobError> {
        self.files.start_upload()
    }

    /// Accepts a complete upload if every line is a row.
    ///
    /// # Errors
    /// [`JobError::Rows`] with the broken lines, [`JobError::TooManyFiles`], [`JobError::Stopped`] once `stop` is set, or a disk error.
    pub fn finish_upload(
        &self,
        upload: Upload,
        filename: &str,
        caller: &Caller,
        stop: &AtomicBool,
    ) -> Result<StoredFile, JobError> {
        let owner = Viewer::of(caller).name().map(str::to_owned);
        self.files.finish_upload(upload, filename, owner, stop)
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

/// The records of jobs in the folder `dir`. A folder without a record is removed: its creation did not finish, and no client knows its
/// id.
fn open_jobs(dir: &Path) -> Result<Vec<JobRecord>, JobError> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(JobError::io(dir))? {
        let folder = entry.map_err(JobError::io(dir))?.path();
        let path = folder.join("job.json");
        if path.exists() {
            records.push(record_file::read(&path)?);
        } else {
            std::fs::remove_dir_all(&folder).map_err(JobError::io(&folder))?;
        }
    }
    Ok(records)
}

/// The records of evaluations in the folder `dir`. A damaged record is skipped, since its result is elsewhere; an evaluation that was
/// running when the process ended has failed, since it might end the next process too.
///
/// # Errors
/// The folder cannot be read, or a changed record cannot be written.
fn open_evaluations(dir: &Path) -> Result<Vec<Evaluation>, JobError> {
    std::fs::create_dir_all(dir).map_err(JobError::io(dir))?;
    let mut records = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(JobError::io(dir))? {
        let path = entry.map_err(JobError::io(dir))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let mut evaluation: Evaluation = match record_file::read(&path) {
            Err(error @ JobError::Damaged { .. }) => {
                tracing::warn!("skipping a damaged evaluation record: {error}");
                continue;
            }
            read => read?,
        };
        if evaluation.status == EvaluationStatus::Running {
            evaluation.status = EvaluationStatus::Failed;
            evaluation.finished_at = Some(now());
            evaluation.error = Some(Failure {
                code: "interrupted".to_owned(),
                message: "the server stopped before the evaluation finished; request it again"
                    .to_owned(),
                param: None,
            });
            record_file::write(&path, &evaluation)?;
        }
        records.push(evaluation);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use crate::records::evaluation::EvaluationProgress;

    use super::*;

    #[test]
    fn damaged_evaluation_records_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let complete = Evaluation {
            id: "eval-1".to_owned(),
            number: 1,
            owner: None,
            created_at: 1,
            finished_at: None,
            status: EvaluationStatus::Queued,
            personas: vec!["warm@1".to_owned()],
            file: None,
            max_rows: 3,
            progress: EvaluationProgress::default(),
            error: None,
            result: None,
        };
        record_file::write(&folder.path().join("eval-1.json"), &complete).unwrap();
        let text = std::fs::read(folder.path().join("eval-1.json")).unwrap();
        let cut = folder.path().join("eval-2.json");
        std::fs::write(&cut, &text[..text.len() / 2]).unwrap();
        let opened = open_evaluations(folder.path()).unwrap();
        assert_eq!(opened, [complete]);
        assert!(cut.exists());
    }
}
