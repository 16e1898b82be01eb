//! The folder of files and queues: it is marked as ours before anything is written into it, and only one process uses it.
//!
//! Nothing in it is ever removed because something is missing. What is removed has a name that only Lory makes, and what cannot be
//! read stays where it is: it is skipped, logged and counted ([`DamagedRecords`]).

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use formats::{atomic_file, disk};

use crate::error::JobError;

/// The file that marks the folder.
const MARKER: &str = ".lory-jobs";
/// Its content, for a person who finds it.
const MARKER_TEXT: &str = "This folder has the training jobs of lory serve. It removes old jobs and files here by itself.\n";
/// The file that the process locks.
const LOCK: &str = "lock";
/// The folders in it.
const FOLDERS: [&str; 3] = ["jobs", "files", "evaluations"];

/// An open folder. Its lock is held for the process's lifetime.
pub(crate) struct JobsFolder {
    dir: PathBuf,
    _lock: File,
}

impl JobsFolder {
    /// Opens the folder `dir`, which is created if it is missing.
    ///
    /// # Errors
    /// It has files of someone else, cannot be used, or another process works in it.
    pub fn open(dir: &Path) -> Result<JobsFolder, JobError> {
        disk::create_private_folders(dir).map_err(JobError::io(dir))?;
        let marker = dir.join(MARKER);
        if !marker.exists() {
            check_ownership(dir)?;
        }
        let path = dir.join(LOCK);
        let lock = File::create(&path).map_err(JobError::io(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JobError::NoJobs {
                    why: format!(
                        "another process runs the jobs in {}; name another folder with --jobs-dir",
                        dir.display()
                    ),
                });
            }
            Err(TryLockError::Error(source)) => return Err(JobError::io(&path)(source)),
        }
        if !marker.exists() {
            let text = MARKER_TEXT.as_bytes();
            atomic_file::replace(&marker, |file| file.write_all(text))
                .map_err(JobError::io(&marker))?;
        }
        for name in FOLDERS {
            let folder = dir.join(name);
            disk::create_private_folders(&folder).map_err(JobError::io(&folder))?;
        }
        Ok(JobsFolder {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether it is still the folder that was opened. What is written into another one would be lost at the next start.
    ///
    /// # Errors
    /// [`JobError::FolderRemoved`].
    pub fn check(&self) -> Result<(), JobError> {
        let complete = self.dir.join(MARKER).exists()
            && FOLDERS.iter().all(|name| self.dir.join(name).is_dir());
        match complete {
            true => Ok(()),
            false => Err(JobError::FolderRemoved),
        }
    }
}

/// Checks that a folder without a marker is empty, or was written by a version that made no marker.
fn check_ownership(dir: &Path) -> Result<(), JobError> {
    let is_empty_file = |name: &str| {
        let meta = fs::metadata(dir.join(name));
        meta.is_ok_and(|meta| meta.is_file() && meta.len() == 0)
    };
    // All versions locked the folder first, and then made these two.
    let earlier_version =
        is_empty_file(LOCK) && dir.join("jobs").is_dir() && dir.join("files").is_dir();
    if earlier_version {
        return Ok(());
    }
    for entry in fs::read_dir(dir).map_err(JobError::io(dir))? {
        let name = entry.map_err(JobError::io(dir))?.file_name();
        let name = name.to_string_lossy();
        // Hidden files and what a file system makes itself do not show that somebody uses the folder.
        let neutral = name.starts_with('.') || name == "lost+found";
        // A first start that was killed.
        let unused_folder = || {
            FOLDERS.contains(&&*name)
                && fs::read_dir(dir.join(&*name)).is_ok_and(|mut e| e.next().is_none())
        };
        if !(neutral || unused_folder() || name == LOCK && is_empty_file(LOCK)) {
            return Err(JobError::NoJobs {
                why: format!(
                    "{} is not a folder of jobs, it has {name:?}; name an empty or a new folder with --jobs-dir",
                    dir.display()
                ),
            });
        }
    }
    Ok(())
}

/// Records that were found damaged at the start. They stay on disk, and everything else works.
#[derive(Debug, Default)]
pub(crate) struct DamagedRecords(Mutex<[u64; 3]>);

/// The kinds of records, as metrics name them, in the order of [`DamagedRecords`].
pub(crate) const RECORD_KINDS: [&str; 3] = ["job", "file", "evaluation"];

impl DamagedRecords {
    /// Logs and counts a record that cannot be used.
    pub fn report(&self, kind: &'static str, path: &Path, why: &str) {
        tracing::error!(
            "{}: this {kind} cannot be used and is skipped; its files stay where they are: {why}",
            path.display()
        );
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = RECORD_KINDS.iter().position(|one| *one == kind) {
            counts[at] += 1;
        }
    }

    /// The number of damaged records by kind.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        RECORD_KINDS.into_iter().zip(*counts).collect()
    }
}

/// The entries of `dir` whose names are ids that begin with `prefix`, after leftovers of a killed process are removed. Others are
/// logged and stay.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn entries(
    dir: &Path,
    is_ours: impl Fn(&str) -> bool,
) -> Result<Vec<(String, PathBuf)>, JobError> {
    remove_leftovers(dir);
    let mut ours = Vec::new();
    for entry in fs::read_dir(dir).map_err(JobError::io(dir))? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                tracing::error!("{}: an entry cannot be read: {error}", dir.display());
                continue;
            }
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_ours(&name) {
            ours.push((name, entry.path()));
        } else if !name.starts_with('.') {
            tracing::warn!("{}: unknown file, ignored", entry.path().display());
        }
    }
    ours.sort();
    Ok(ours)
}

/// Removes what a killed process left in `dir`. Only the process that holds the lock of the jobs folder may call it, since it does
/// not look for other writers.
fn remove_leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // The names of unfinished uploads of earlier versions: `.upload` and six letters or digits.
        let unfinished_upload = name.strip_prefix(".upload").is_some_and(|rest| {
            rest.len() == 6 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        let removed = match (is_folder, name.starts_with(atomic_file::MARK)) {
            (true, true) => disk::remove_folder(&entry.path()),
            (false, true) => disk::remove_file(&entry.path()),
            (true, false) if unfinished_upload => disk::remove_folder(&entry.path()),
            _ => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!("{}: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn foreign_folders_are_refused_by_name_and_keep_their_files() {
        for path in ["files/mine", "jobs/mine", "evaluations/mine", "src"] {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join(path)).unwrap();
            let error = JobsFolder::open(folder.path()).err().unwrap().to_string();
            let first = path.split('/').next().unwrap();
            assert!(error.contains(&format!("{first:?}")), "{error}");
            assert!(error.contains("--jobs-dir"), "{error}");
            assert_eq!(names(folder.path()), [first]);
        }
        // A lock that has content is not ours.
        let folder = tempfile::tempdir().unwrap();
        for name in ["files", "jobs"] {
            fs::create_dir_all(folder.path().join(name).join("mine")).unwrap();
        }
        fs::write(folder.path().join(LOCK), "17").unwrap();
        assert!(JobsFolder::open(folder.path()).is_err());
        assert_eq!(fs::read(folder.path().join(LOCK)).unwrap(), b"17");
    }

    #[test]
    fn empty_folders_and_those_of_earlier_versions_are_opened() {
        let all = [".lory-jobs", "evaluations", "files", "jobs", "lock"];
        let folder = tempfile::tempdir().unwrap();
        drop(JobsFolder::open(&folder.path().join("new")).unwrap());
        assert_eq!(names(&folder.path().join("new")), all);
        // A volume.
        fs::create_dir(folder.path().join("volume")).unwrap();
        fs::create_dir(folder.path().join("volume/lost+found")).unwrap();
        JobsFolder::open(&folder.path().join("volume")).unwrap();
        // An earlier version, with a file that someone left there.
        let earlier = folder.path().join("earlier");
        for name in ["jobs/ftjob-0", "files"] {
            fs::create_dir_all(earlier.join(name)).unwrap();
        }
        fs::write(earlier.join(LOCK), "").unwrap();
        fs::write(earlier.join("notes.txt"), "").unwrap();
        drop(JobsFolder::open(&earlier).unwrap());
        assert!(earlier.join("jobs/ftjob-0").exists() && earlier.join("notes.txt").exists());
        // An earlier version that was killed in its first start.
        fs::create_dir_all(folder.path().join("killed/jobs")).unwrap();
        JobsFolder::open(&folder.path().join("killed")).unwrap();
    }

    #[test]
    fn second_process_and_a_removed_folder_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("jobs");
        let open = JobsFolder::open(&dir).unwrap();
        let second = JobsFolder::open(&dir).err().unwrap().to_string();
        assert!(second.contains("another process"), "{second}");
        open.check().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let error = open.check().unwrap_err();
        assert!(matches!(error, JobError::FolderRemoved));
        fs::create_dir(&dir).unwrap();
        assert!(open.check().is_err());
    }

    #[test]
    fn only_names_that_lory_makes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let ours = [".lory-partial-a", ".lory-partial-b", ".uploadAb3xyZ"];
        let foreign = [
            ".upload",
            ".uploads",
            ".upload-mine",
            "file-1",
            "mine",
            ".git",
        ];
        for name in ours.into_iter().chain(foreign) {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("rows"), "").unwrap();
        }
        let found = entries(folder.path(), |name| name == "file-1").unwrap();
        assert_eq!(found.len(), 1);
        let mut expected = foreign.to_vec();
        expected.sort_unstable();
        assert_eq!(names(folder.path()), expected);
    }
}
