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
use crate::jobs_folder::{self, DamagedRecords, JobsFolder};
use crate::listing::{Page, Viewer};
use crate::queue_state::{QueueRecord, RecordHeader};
use crate::record_file::{self, is_id, now};
use crate::records::evaluation::{self, Evaluation, EvaluationStatus};
use crate::records::failure::Failure;
use crate::records::file::StoredFile;
use crate::records::job::{self, EVENTS_FILE, JobRecord};
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

    /// `text` without the folders of this machine. Records and events of jobs and evaluations are shown to clients.
    pub(crate) fn hide_folders(&self, text: &str) -> String {
        let mut folders = vec![self.folder.path()];
        folders.extend(self.results.as_ref().map(EvaluationResults::folder));
        let shown = self.service.hide_folders(text, &folders);
        if shown != text {
            tracing::warn!("{text}");
        }
        shown
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

/// The records of jobs in the folder `dir`. A job whose record is damaged is reported, and its run stays on disk.
///
/// # Errors
/// The folder cannot be read.
fn open_jobs(dir: &Path, damaged: &DamagedRecords) -> Result<Vec<JobRecord>, JobError> {
    let mut records = Vec::new();
    for (id, folder) in jobs_folder::entries(dir, |name| is_id(name, job::ID_PREFIX))? {
        let path = JobRecord::file(dir, &id);
        if !path.exists() && has_only_events(&folder) {
            // Its creation did not finish, and no client knows its id.
            if let Err(error) = atomic_file::remove_folder(&folder) {
                tracing::warn!("{}: {error}", folder.display());
            }
            continue;
        }
        atomic_file::remove_leftovers(&folder);
        match record_file::read(&path).map_err(|error| error.to_string()) {
            Ok(record) => match checked(record, &id) {
                Ok(record) => records.push(record),
                Err(why) => damaged.report("job", &folder, &why),
            },
            Err(why) => damaged.report("job", &folder, &why),
        }
    }
    Ok(records)
}

/// Whether the folder of a job has nothing except its first event and what a killed process left.
fn has_only_events(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder);
    entries.is_ok_and(|mut entries| {
        entries.all(|entry| {
            entry.is_ok_and(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name == EVENTS_FILE || name.starts_with(atomic_file::MARK)
            })
        })
    })
}

/// Checks that a record has the id of its place, since the id becomes a path again, and a number that another can follow.
fn checked<R: QueueRecord>(record: R, id: &str) -> Result<R, String> {
    let header = record.header();
    if header.id != id {
        return Err(format!("its record has the id {:?}", header.id));
    }
    record_file::check_number(header.number)?;
    Ok(record)
}

/// The records of evaluations in the folder `dir`. A damaged record is reported and stays on disk; an evaluation that was running
/// when the process ended has failed, since it might end the next process too.
///
/// # Errors
/// The folder cannot be read.
fn open_evaluations(dir: &Path, damaged: &DamagedRecords) -> Result<Vec<Evaluation>, JobError> {
    let mut records = Vec::new();
    let id_of = |name: &str| name.strip_suffix(".json").map(str::to_owned);
    let is_ours = |name: &str| id_of(name).is_some_and(|id| is_id(&id, evaluation::ID_PREFIX));
    for (name, path) in jobs_folder::entries(dir, is_ours)? {
        let id = id_of(&name).unwrap_or_default();
        let read = record_file::read::<Evaluation>(&path).map_err(|error| error.to_string());
        let mut evaluation = match read.and_then(|evaluation| checked(evaluation, &id)) {
            Ok(evaluation) => evaluation,
            Err(why) => {
                damaged.report("evaluation", &path, &why);
                continue;
            }
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
            // A full disk must not stop the start; the next start finds it running and does the same.
            if let Err(error) = record_file::write(&path, &evaluation) {
                tracing::error!("evaluation {id}: {error}");
            }
        }
        records.push(evaluation);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use formats::disk::faults::for_each_fault;

    use auth::{Owner, Quotas};
    use train::TrainSettings;

    use crate::fine_tuning::events::EventLog;
    use crate::records::evaluation::{EvaluationProgress, ID_PREFIX};
    use crate::records::job::{JobStatus, Method, Progress};

    use super::*;

    fn job(digit: &str, owner: Option<&str>, status: JobStatus) -> JobRecord {
        JobRecord {
            id: job_id(digit),
            number: 1,
            owner: owner.map(str::to_owned),
            created_at: 1,
            finished_at: None,
            status,
            model: "tiny".to_owned(),
            persona: "warm".to_owned(),
            named: true,
            training_file: "file-1".to_owned(),
            validation_file: None,
            method: Method::Supervised,
            learning_rate_multiplier: 1.0,
            settings: TrainSettings::default(),
            start: None,
            system_prompt: None,
            thresholds: None,
            threshold_results: Vec::new(),
            publish: true,
            adapter_kept: false,
            parameters: 0,
            samples: Vec::new(),
            sample_prompts: None,
            metadata: std::collections::BTreeMap::new(),
            progress: Progress::default(),
            trained_tokens: None,
            plan: None,
            publishing: None,
            fine_tuned_model: None,
            error: None,
        }
    }

    fn job_id(digit: &str) -> String {
        format!("{}{}", job::ID_PREFIX, digit.repeat(24))
    }

    /// The first event of a job, as its creation writes it.
    fn begin(dir: &Path, record: &JobRecord) -> Result<(), JobError> {
        let folder = dir.join(&record.id);
        disk::create_missing_folder(&folder).map_err(JobError::io(&folder))?;
        EventLog::of(&folder).push("info", "Created", None);
        Ok(())
    }

    fn evaluation(id: &str, status: EvaluationStatus) -> Evaluation {
        Evaluation {
            id: id.to_owned(),
            number: 1,
            owner: None,
            created_at: 1,
            finished_at: None,
            status,
            personas: vec!["warm@1".to_owned()],
            file: None,
            max_rows: 3,
            progress: EvaluationProgress::default(),
            error: None,
            result: None,
        }
    }

    #[test]
    fn damaged_evaluation_records_are_reported_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let id = |digit: &str| format!("{ID_PREFIX}{}", digit.repeat(24));
        let complete = evaluation(&id("1"), EvaluationStatus::Queued);
        let path = |digit: &str| Evaluation::file(folder.path(), &id(digit));
        record_file::write(&path("1"), &complete).unwrap();
        let text = std::fs::read(path("1")).unwrap();
        std::fs::write(path("2"), &text[..text.len() / 2]).unwrap();
        // A record with another id, a folder, and a stray file.
        std::fs::write(path("3"), &text).unwrap();
        std::fs::create_dir(path("4")).unwrap();
        std::fs::write(folder.path().join("notes.json"), "{}").unwrap();
        let damaged = DamagedRecords::default();
        let opened = open_evaluations(folder.path(), &damaged).unwrap();
        assert_eq!(opened, [complete]);
        assert_eq!(damaged.counts()[2], ("evaluation", 3));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 5);
    }

    #[test]
    fn damaged_job_folders_are_reported_and_keep_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let dir = |digit: &str| {
            folder
                .path()
                .join(format!("{}{}", job::ID_PREFIX, digit.repeat(24)))
        };
        for (digit, file) in [("1", "job.json"), ("2", "adapter.txt"), ("3", EVENTS_FILE)] {
            std::fs::create_dir(dir(digit)).unwrap();
            std::fs::write(dir(digit).join(file), "{").unwrap();
        }
        let damaged = DamagedRecords::default();
        assert!(open_jobs(folder.path(), &damaged).unwrap().is_empty());
        assert_eq!(damaged.counts()[0], ("job", 2));
        assert!(dir("1").join("job.json").exists());
        // Without a record the folder may be anyone's.
        assert!(dir("2").join("adapter.txt").exists());
        // A creation that was cut off.
        assert!(!dir("3").exists());
    }

    #[test]
    fn record_with_the_id_of_another_folder_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let good = job("1", None, JobStatus::Succeeded);
        for digit in ["1", "2"] {
            let path = JobRecord::file(folder.path(), &job_id(digit));
            std::fs::create_dir(path.parent().unwrap()).unwrap();
            record_file::write(&path, &good).unwrap();
        }
        let damaged = DamagedRecords::default();
        let opened = open_jobs(folder.path(), &damaged).unwrap();
        assert_eq!(opened, [good]);
        assert_eq!(damaged.counts()[0], ("job", 1));
        // Its files stay.
        assert!(JobRecord::file(folder.path(), &job_id("2")).exists());
    }

    #[test]
    fn record_with_an_impossible_number_is_damaged_and_the_next_one_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let damaged = DamagedRecords::default();
        let (jobs, evaluations) = (
            folder.path().join("jobs"),
            folder.path().join("evaluations"),
        );
        std::fs::create_dir(&evaluations).unwrap();
        for (digit, number) in [("1", 7), ("2", u64::MAX), ("3", u64::MAX - 1)] {
            let record = JobRecord {
                number,
                ..job(digit, None, JobStatus::Succeeded)
            };
            let path = JobRecord::file(&jobs, &record.id);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            record_file::write(&path, &record).unwrap();
            let id = format!("{ID_PREFIX}{}", digit.repeat(24));
            let record = Evaluation {
                number,
                ..evaluation(&id, EvaluationStatus::Succeeded)
            };
            record_file::write(&Evaluation::file(&evaluations, &id), &record).unwrap();
        }
        let records = open_jobs(&jobs, &damaged).unwrap();
        let queue = WorkQueue::new(jobs.clone(), records);
        let next = job("4", None, JobStatus::Queued);
        let begin = |record: &JobRecord| begin(&jobs, record);
        let (next, _) = queue
            .add(&Owner::everyone(), next, || Ok(()), begin)
            .unwrap();
        assert_eq!(next.number, 8);
        assert_eq!(open_evaluations(&evaluations, &damaged).unwrap().len(), 1);
        let counts = damaged.counts();
        assert_eq!((counts[0].1, counts[2].1), (2, 2));
    }

    #[test]
    fn failed_creation_leaves_no_files_and_evicts_nothing() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path().to_owned();
            let mut quotas = Quotas::default();
            quotas.set(Resource::StoredJobs, Some(1));
            let owner = Owner::key("one", quotas);
            let queue = WorkQueue::new(dir.clone(), Vec::new());
            let begin = |record: &JobRecord| begin(&dir, record);
            let old = job("1", Some("one"), JobStatus::Succeeded);
            queue.add(&owner, old, || Ok(()), begin).unwrap();
            let new = job("2", Some("one"), JobStatus::Queued);
            let added = injection.run(|| queue.add(&owner, new, || Ok(()), begin));
            let listed = |records: &[JobRecord]| -> Vec<String> {
                records.iter().map(|record| record.id.clone()).collect()
            };
            let shown = listed(&queue.list(&Viewer::everybody(), |_| true));
            let expected = match added.is_ok() {
                true => [job_id("2")],
                false => [job_id("1")],
            };
            assert_eq!(shown, expected, "{injection:?}");
            if added.is_err() && !injection.fault.ends_the_process() {
                let found = std::fs::read_dir(&dir).unwrap();
                let found: Vec<_> = found.map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(
                    found,
                    [std::ffi::OsString::from(job_id("1"))],
                    "{injection:?}"
                );
            }
            let damaged = DamagedRecords::default();
            let opened = listed(&open_jobs(&dir, &damaged).unwrap());
            assert!(opened.contains(&expected[0]), "{injection:?}: {opened:?}");
            assert_eq!(damaged.counts()[0].1, 0, "{injection:?}");
        });
    }

    #[test]
    fn failed_request_for_an_evaluation_leaves_no_file() {
        let id = format!("{ID_PREFIX}{}", "1".repeat(24));
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let queue = WorkQueue::new(folder.path().to_owned(), Vec::new());
            let new = evaluation(&id, EvaluationStatus::Queued);
            let owner = Owner::everyone();
            let added = injection.run(|| queue.add(&owner, new, || Ok(()), |_| Ok(())));
            if added.is_err() && !injection.fault.ends_the_process() {
                let left = std::fs::read_dir(folder.path()).unwrap().count();
                assert_eq!(left, 0, "{injection:?}");
            }
        });
    }

    #[test]
    fn jobs_folder_opens_after_every_fault_of_a_start() {
        let id = format!("{ID_PREFIX}{}", "1".repeat(24));
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path().join("jobs");
            let open = || {
                let folder = JobsFolder::open(&dir)?;
                let damaged = DamagedRecords::default();
                open_jobs(&dir.join("jobs"), &damaged)?;
                let evaluations = open_evaluations(&dir.join("evaluations"), &damaged)?;
                Files::open(&dir.join("files"), &damaged)?;
                drop(folder);
                let counts: u64 = damaged.counts().iter().map(|(_, count)| count).sum();
                Ok::<_, JobError>((evaluations, counts))
            };
            let _ = injection.run(open);
            open().unwrap();
            // The same with an evaluation that a start changes.
            let running = evaluation(&id, EvaluationStatus::Running);
            let path = Evaluation::file(&dir.join("evaluations"), &id);
            record_file::write(&path, &running).unwrap();
            let _ = injection.run(open);
            let (evaluations, damaged) = open().unwrap();
            assert_eq!(damaged, 0, "{injection:?}");
            assert_eq!(evaluations[0].status, EvaluationStatus::Failed);
        });
    }
}
