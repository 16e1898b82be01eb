//! Uploaded training files. Every line is checked before a file is accepted; accepted files stay until they are deleted.
//!
//! ```text
//! files/<id>/<the file>, then files/<id>/file.json     a folder without file.json is incomplete and is removed at start
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use formats::atomic_file;
use serde::{Deserialize, Serialize};
use train::TrainError;
use train::dataset::{CheckedFile, Columns, Dataset, DatasetScan, HoldOut};
use train::preference::{check_pairs, holds_pairs, scan_pairs_until};

use crate::error::JobError;
use crate::listing::{Page, Viewer};
use crate::record_file::{self, fresh_id, now};

/// The largest file, in bytes.
pub const MAX_FILE: u64 = 256 << 20;
/// The most files.
pub const MAX_FILES: usize = 1000;
/// The most bytes of all files in total.
pub const MAX_STORED: u64 = 4 << 30;
/// The longest stored file name, in characters.
const MAX_NAME: usize = 100;
/// The name of a file's record.
const ENTRY: &str = "file.json";
/// The only supported purpose.
pub const PURPOSE: &str = "fine-tune";

/// The record of an uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival.
    pub number: u64,
    /// The API key that uploaded it; `None` on a server without keys.
    pub owner: Option<String>,
    /// When it was uploaded, as a Unix time in seconds.
    pub created_at: u64,
    /// The client's file name, without folders.
    pub filename: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// The number of its rows.
    pub rows: usize,
    /// Whether each row has a chosen and a rejected answer.
    pub pairs: bool,
    /// What decides which of its rows are held out; `None` in records of older versions.
    #[serde(default)]
    pub hold_out: Option<HoldOut>,
}

/// All files.
pub(crate) struct Files {
    dir: PathBuf,
    all: Mutex<BTreeMap<String, StoredFile>>,
}

/// A file that is being uploaded.
pub struct Upload {
    folder: tempfile::TempDir,
    file: File,
    path: PathBuf,
    bytes: u64,
    /// Bytes that the other files leave free.
    room: u64,
}

impl Upload {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`JobError::FileTooLarge`], [`JobError::NoRoom`], or a disk error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JobError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_FILE {
            return Err(JobError::FileTooLarge { limit: MAX_FILE });
        }
        if self.bytes > self.room {
            return Err(JobError::NoRoom { limit: MAX_STORED });
        }
        self.file
            .write_all(bytes)
            .map_err(JobError::io(self.folder.path()))
    }
}

impl Files {
    /// Opens the files in the folder `dir`, which is created if it is missing.
    pub fn open(dir: &Path) -> Result<Files, JobError> {
        std::fs::create_dir_all(dir).map_err(JobError::io(dir))?;
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(JobError::io(dir))? {
            let folder = entry.map_err(JobError::io(dir))?.path();
            let entry = folder.join(ENTRY);
            if entry.exists() {
                let file: StoredFile = record_file::read(&entry)?;
                all.insert(file.id.clone(), file);
            } else {
                // An upload or a deletion that did not finish.
                std::fs::remove_dir_all(&folder).map_err(JobError::io(&folder))?;
            }
        }
        Ok(Files {
            dir: dir.to_owned(),
            all: Mutex::new(all),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, StoredFile>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an upload.
    pub fn start_upload(&self) -> Result<Upload, JobError> {
        let room = {
            let all = self.lock();
            if all.len() >= MAX_FILES {
                return Err(JobError::TooManyFiles { limit: MAX_FILES });
            }
            let stored: u64 = all.values().map(|file| file.bytes).sum();
            MAX_STORED.saturating_sub(stored)
        };
        let folder = tempfile::Builder::new()
            .prefix(".upload")
            .tempdir_in(&self.dir)
            .map_err(JobError::io(&self.dir))?;
        let path = folder.path().join("rows");
        let file = File::create(&path).map_err(JobError::io(&path))?;
        Ok(Upload {
            folder,
            file,
            path,
            bytes: 0,
            room,
        })
    }

    /// Accepts a complete upload if every line is a row.
    pub fn finish_upload(
        &self,
        upload: Upload,
        filename: &str,
        owner: Option<String>,
        stop: &AtomicBool,
    ) -> Result<StoredFile, JobError> {
        let Upload {
            folder,
            file,
            path,
            bytes,
            ..
        } = upload;
        file.sync_all().map_err(JobError::io(&path))?;
        let filename = plain_name(filename);
        let named = |error| match error {
            TrainError::Stopped => JobError::Stopped,
            error => JobError::Rows(with_client_name(&error, &path, &filename)),
        };
        let pairs = holds_pairs(&path).map_err(named)?;
        let checked = check(&path, pairs, stop).map_err(named)?;
        let mut all = self.lock();
        if all.len() >= MAX_FILES {
            return Err(JobError::TooManyFiles { limit: MAX_FILES });
        }
        let stored = StoredFile {
            id: fresh_id("file-")?,
            number: all.values().map(|file| file.number + 1).max().unwrap_or(1),
            owner,
            created_at: now(),
            filename,
            bytes,
            rows: checked.rows,
            pairs,
            hold_out: Some(checked.hold_out),
        };
        let rows_path = folder.path().join(&stored.filename);
        std::fs::rename(&path, &rows_path).map_err(JobError::io(&rows_path))?;
        record_file::write(&folder.path().join(ENTRY), &stored)?;
        let stored_folder = self.dir.join(&stored.id);
        std::fs::rename(folder.keep(), &stored_folder).map_err(JobError::io(&stored_folder))?;
        let _ = atomic_file::sync_folder(&self.dir);
        all.insert(stored.id.clone(), stored.clone());
        Ok(stored)
    }

    /// The file with this id, if `viewer` may see it; the error names `field`.
    pub fn find(
        &self,
        viewer: &Viewer,
        id: &str,
        field: &'static str,
    ) -> Result<StoredFile, JobError> {
        let found = self.lock().get(id).cloned();
        found
            .filter(|file| viewer.sees(file.owner.as_deref()))
            .ok_or_else(|| JobError::NoFile {
                id: id.chars().take(80).collect(),
                field,
            })
    }

    /// The files that `viewer` may see, in the order of upload, or reversed if `page.newest_first`; and whether there are more.
    pub fn list(&self, viewer: &Viewer, page: &Page) -> Result<(Vec<StoredFile>, bool), JobError> {
        let mut seen: Vec<StoredFile> = self
            .lock()
            .values()
            .filter(|file| viewer.sees(file.owner.as_deref()))
            .cloned()
            .collect();
        seen.sort_by_key(|file| file.number);
        page.of(seen, |file| &file.id)
    }

    /// What decides which rows of a file are held out. A file of an older version is read once for that.
    pub fn hold_out(&self, file: &StoredFile, stop: &AtomicBool) -> Result<HoldOut, JobError> {
        if let Some(hold_out) = file.hold_out {
            return Ok(hold_out);
        }
        let path = self.path(file);
        let checked = check(&path, file.pairs, stop).map_err(|error| match error {
            TrainError::Stopped => JobError::Stopped,
            error => JobError::Rows(with_client_name(&error, &path, &file.filename)),
        })?;
        if let Some(file) = self.lock().get_mut(&file.id) {
            file.hold_out = Some(checked.hold_out);
        }
        Ok(checked.hold_out)
    }

    /// The path of a file's bytes.
    pub fn path(&self, file: &StoredFile) -> PathBuf {
        self.dir.join(&file.id).join(&file.filename)
    }

    /// Deletes a file.
    pub fn delete(&self, file: &StoredFile) -> Result<(), JobError> {
        let mut all = self.lock();
        let folder = self.dir.join(&file.id);
        // The record first: without it, the next start removes what is left.
        for gone in [
            std::fs::remove_file(folder.join(ENTRY)),
            std::fs::remove_dir_all(&folder),
        ] {
            gone.map_err(JobError::io(&folder))?;
        }
        all.remove(&file.id);
        Ok(())
    }
}

/// Checks every line of a file, in little memory.
fn check(path: &Path, pairs: bool, stop: &AtomicBool) -> Result<CheckedFile, TrainError> {
    match pairs {
        true => check_pairs(path, stop),
        false => Dataset::check(path, &Columns::default(), stop),
    }
}

/// Reads the rows of a file and everything that is wrong with them; for pairs, the rows with the chosen answers.
pub(crate) fn scan(path: &Path, pairs: bool, stop: &AtomicBool) -> Result<DatasetScan, TrainError> {
    match pairs {
        true => Ok(scan_pairs_until(path, stop)?.chosen),
        false => Dataset::scan_until(path, &Columns::default(), stop),
    }
}

/// The message of `error` with the client's file name instead of the path, which clients must not see.
pub(crate) fn with_client_name(error: &TrainError, path: &Path, filename: &str) -> String {
    error
        .to_string()
        .replace(&path.display().to_string(), filename)
}

/// `name` without folders, with `_` for characters that a file system or a log may not accept.
fn plain_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain: String = last
        .chars()
        .map(|c| match c {
            c if c.is_alphanumeric() || "-_.".contains(c) => c,
            _ => '_',
        })
        .take(MAX_NAME)
        .collect();
    // Not hidden, not a folder, and not the record's name.
    match plain.trim_start_matches('.') {
        "" => "rows.jsonl".to_owned(),
        ENTRY => format!("_{ENTRY}"),
        plain => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uploaded(files: &Files, text: &str, name: &str) -> Result<StoredFile, JobError> {
        let mut upload = files.start_upload()?;
        upload.write(text.as_bytes())?;
        files.finish_upload(upload, name, None, &train::stop::NEVER)
    }

    const ROW: &str = "{\"instruction\":\"Hi\",\"output\":\"Hello.\"}\n";

    #[test]
    fn complete_files_survive_a_restart_and_incomplete_ones_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let one = uploaded(&files, ROW, "../a b/rows?.jsonl").unwrap();
        assert_eq!(
            (one.filename.as_str(), one.rows, one.pairs),
            ("rows_.jsonl", 1, false)
        );
        let pair = "{\"prompt\":\"Hi\",\"chosen\":\"Yay.\",\"rejected\":\"No.\"}\n";
        let two = uploaded(&files, pair, "file.json").unwrap();
        assert!(two.pairs && two.filename == "_file.json");
        // A process that was killed during an upload, and during a deletion.
        std::fs::create_dir(folder.path().join(".uploadX")).unwrap();
        std::fs::remove_file(folder.path().join(&two.id).join(ENTRY)).unwrap();
        drop(files);
        let again = Files::open(folder.path()).unwrap();
        let page = Page::default();
        let everybody = Viewer::everybody();
        assert_eq!(
            again.list(&everybody, &page).unwrap(),
            (vec![one.clone()], false)
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(again.path(&one)).unwrap(), ROW);
        again.delete(&one).unwrap();
        assert!(again.find(&everybody, &one.id, "id").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn errors_name_the_clients_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let message = uploaded(
            &files,
            &format!("{ROW}{{\"instruction\":1}}\n"),
            "mine.jsonl",
        )
        .unwrap_err()
        .to_string();
        assert!(message.starts_with("mine.jsonl:2: "), "{message}");
        let message = uploaded(&files, "\n", "mine.jsonl")
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("mine.jsonl: the file holds no rows"),
            "{message}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn too_large_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut upload = Files::open(folder.path()).unwrap().start_upload().unwrap();
        upload.bytes = MAX_FILE - 1;
        upload.write(b"a").unwrap();
        let message = upload.write(b"a").unwrap_err().to_string();
        assert!(message.contains("268435456 bytes"), "{message}");
        upload.bytes = 0;
        upload.room = 3;
        assert!(matches!(
            upload.write(b"four"),
            Err(JobError::NoRoom { .. })
        ));
    }
}
