//! Training jobs and evaluations next to serving: the uploaded files and both queues, in one folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use service::{Caller, Service};

use crate::background_queue::{BackgroundQueue, QueueRecord};
use crate::error::JobError;
use crate::evaluation_results::{EvaluationResults, ResultError};
use crate::files::{Files, StoredFile, Upload};
use crate::listing::{Page, Viewer};
use crate::record_file::{self, now};
use crate::records::evaluation::{Evaluation, EvaluationStatus};
use crate::records::failure::Failure;
use crate::records::job::JobRecord;

/// The most jobs that are not over.
pub const MAX_OPEN_JOBS: usize = 64;
/// The most jobs that are stored; the oldest that are over make room.
pub const MAX_STORED_JOBS: usize = 1000;
/// The most evaluations that are not over.
pub const MAX_OPEN_EVALUATIONS: usize = 16;
/// The most evaluations that are stored; the oldest that are over make room.
const MAX_STORED_EVALUATIONS: usize = 200;

impl QueueRecord for JobRecord {
    const KIND: &'static str = "job";
    const MAX_OPEN: usize = MAX_OPEN_JOBS;
    const MAX_STORED: usize = MAX_STORED_JOBS;

    fn id(&self) -> &str {
        &self.id
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    fn is_over(&self) -> bool {
        self.status.is_over()
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

    fn queue_full() -> JobError {
        JobError::QueueFull {
            limit: MAX_OPEN_JOBS,
        }
    }
}

impl QueueRecord for Evaluation {
    const KIND: &'static str = "evaluation";
    const MAX_OPEN: usize = MAX_OPEN_EVALUATIONS;
    const MAX_STORED: usize = MAX_STORED_EVALUATIONS;

    fn id(&self) -> &str {
        &self.id
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    fn is_over(&self) -> bool {
        self.status.is_over()
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

    fn queue_full() -> JobError {
        JobError::EvaluationsFull {
            limit: MAX_OPEN_EVALUATIONS,
        }
    }
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

/// The uploaded files and both queues.
pub struct BackgroundWork {
    pub(crate) service: Arc<Service>,
    pub(crate) files: Files,
    pub(crate) known: Option<String>,
    pub(crate) results: Option<EvaluationResults>,
    pub(crate) jobs: BackgroundQueue<JobRecord>,
    pub(crate) evaluations: BackgroundQueue<Evaluation>,
    /// Tokens trained on by this process.
    pub(crate) trained: AtomicU64,
    /// Tokens a second of the latest step that was taken.
    pub(crate) pace: Mutex<Option<f64>>,
    /// Held by who measures a step.
    pub(crate) measuring: Mutex<()>,
    /// Held by who publishes what a job kept.
    pub(crate) publishing: Mutex<()>,
    /// Held for as long as the queue is: one process runs it.
    _lock: File,
}

impl BackgroundWork {
    /// Opens both queues in the folder of `settings`.
    ///
    /// # Errors
    /// The folder cannot be used, or another process uses it.
    pub(crate) fn open(
        service: Arc<Service>,
        settings: &JobSettings,
    ) -> Result<BackgroundWork, JobError> {
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
        Ok(BackgroundWork {
            files: Files::open(&settings.dir.join("files"))?,
            service,
            known: settings.known.clone(),
            results: settings.results.clone(),
            jobs: BackgroundQueue::new(dir, records),
            evaluations: BackgroundQueue::new(evaluations_dir, evaluations),
            trained: AtomicU64::new(0),
            pace: Mutex::new(None),
            measuring: Mutex::new(()),
            publishing: Mutex::new(()),
            _lock: file,
        })
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

    /// Begins to take a file; its bytes follow, then [`BackgroundWork::keep`].
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
        let owner = Viewer::of(caller).name().map(str::to_owned);
        self.files.finish(upload, filename, owner)
    }

    /// A file.
    ///
    /// # Errors
    /// [`JobError::NoFile`].
    pub fn file(&self, who: &Viewer, id: &str) -> Result<StoredFile, JobError> {
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
    pub fn list_files(
        &self,
        who: &Viewer,
        page: &Page,
    ) -> Result<(Vec<StoredFile>, bool), JobError> {
        self.files.list(who, page)
    }

    /// Deletes a file that no job needs any more.
    ///
    /// # Errors
    /// [`JobError::NoFile`], [`JobError::FileInUse`], or the disk's.
    pub fn delete_file(&self, who: &Viewer, id: &str) -> Result<(), JobError> {
        let file = self.file(who, id)?;
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
                tracing::warn!("an evaluation is skipped: {error}");
                continue;
            }
            read => read?,
        };
        if evaluation.status == EvaluationStatus::Running {
            evaluation.status = EvaluationStatus::Failed;
            evaluation.finished_at = Some(now());
            evaluation.error = Some(Failure {
                code: "interrupted".to_owned(),
                message: "the server ended before it was done; ask for it again".to_owned(),
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
    fn a_damaged_record_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let whole = Evaluation {
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
        record_file::write(&folder.path().join("eval-1.json"), &whole).unwrap();
        let text = std::fs::read(folder.path().join("eval-1.json")).unwrap();
        let cut = folder.path().join("eval-2.json");
        std::fs::write(&cut, &text[..text.len() / 2]).unwrap();
        let opened = open_evaluations(folder.path()).unwrap();
        assert_eq!(opened, [whole]);
        assert!(cut.exists());
    }
}
