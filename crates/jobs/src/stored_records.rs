//! Reads the records of jobs and evaluations when the process starts. A damaged record affects only itself.

use std::path::Path;

use formats::atomic_file;

use crate::error::JobError;
use crate::jobs_folder::{self, DamagedRecords};
use crate::queue_state::QueueRecord;
use crate::record_file::{self, is_id, now};
use crate::records::evaluation::{self, Evaluation, EvaluationStatus};
use crate::records::failure::Failure;
use crate::records::job::{self, EVENTS_FILE, JobRecord};

/// The records of jobs in the folder `dir`. A job whose record is damaged is reported, and its run stays on disk.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn open_jobs(dir: &Path, damaged: &DamagedRecords) -> Result<Vec<JobRecord>, JobError> {
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
pub(crate) fn open_evaluations(
    dir: &Path,
    damaged: &DamagedRecords,
) -> Result<Vec<Evaluation>, JobError> {
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
                    .into(),
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
    use formats::disk::{self, faults::for_each_fault};

    use auth::{Owner, Quotas, Resource};
    use train::TrainSettings;

    use crate::files::Files;
    use crate::fine_tuning::events::EventLog;
    use crate::jobs_folder::JobsFolder;
    use crate::listing::Viewer;
    use crate::records::evaluation::{EvaluationProgress, ID_PREFIX};
    use crate::records::job::{JobStatus, Method, Progress};
    use crate::work_queue::WorkQueue;

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
