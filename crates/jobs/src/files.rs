//! The files that jobs are trained on: checked line by line before they are taken, and kept until they are deleted.
//!
//! ```text
//! files/<id>/<the file>, then files/<id>/file.json     a folder without the latter is no file yet
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use formats::atomic_file;
use serde::{Deserialize, Serialize};
use train::dataset::{Columns, Dataset, DatasetScan};
use train::preference::{holds_pairs, scan_pairs};

use crate::error::JobError;
use crate::listing::{Page, Viewer};
use crate::record_file::{self, fresh_id, now};

/// The largest file, in bytes.
pub const MAX_FILE: u64 = 256 << 20;
/// The most files.
pub const MAX_FILES: usize = 1000;
/// The most bytes of all files together.
pub const MAX_STORED: u64 = 4 << 30;
/// The longest name of a file that is kept, in characters.
const MAX_NAME: usize = 100;
/// What a file's entry is called.
const ENTRY: &str = "file.json";
/// The one purpose that there is.
pub const PURPOSE: &str = "fine-tune";

/// A file, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival.
    pub number: u64,
    /// The key that brought it; none on a server without keys.
    pub owner: Option<String>,
    /// When it came, in seconds since 1970.
    pub created_at: u64,
    /// As the client called it, without folders.
    pub filename: String,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: usize,
    /// Whether its rows bring a chosen and a rejected answer.
    pub pairs: bool,
}

/// All files.
pub(crate) struct Files {
    dir: PathBuf,
    all: Mutex<BTreeMap<String, StoredFile>>,
}

/// A file on its way in.
pub struct Upload {
    beside: tempfile::TempDir,
    file: File,
    path: PathBuf,
    bytes: u64,
    /// What there may be at most, with the others there are.
    room: u64,
}

impl Upload {
    /// The next bytes.
    ///
    /// # Errors
    /// [`JobError::FileTooLarge`], [`JobError::NoRoom`], or the disk's.
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
            .map_err(JobError::io(self.beside.path()))
    }
}

impl Files {
    /// Those in the folder `dir`, which is made if need be.
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
                // An upload, or a deletion, that did not come to its end.
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

    /// Begins to take a file.
    pub fn upload(&self) -> Result<Upload, JobError> {
        let room = {
            let all = self.lock();
            if all.len() >= MAX_FILES {
                return Err(JobError::TooManyFiles { limit: MAX_FILES });
            }
            let stored: u64 = all.values().map(|file| file.bytes).sum();
            MAX_STORED.saturating_sub(stored)
        };
        let beside = tempfile::Builder::new()
            .prefix(".upload")
            .tempdir_in(&self.dir)
            .map_err(JobError::io(&self.dir))?;
        let path = beside.path().join("rows");
        let file = File::create(&path).map_err(JobError::io(&path))?;
        Ok(Upload {
            beside,
            file,
            path,
            bytes: 0,
            room,
        })
    }

    /// Takes a file whose bytes are all there, if each of its lines is a row.
    pub fn finish(
        &self,
        upload: Upload,
        filename: &str,
        owner: Option<String>,
    ) -> Result<StoredFile, JobError> {
        let Upload {
            beside,
            file,
            path,
            bytes,
            ..
        } = upload;
        file.sync_all().map_err(JobError::io(&path))?;
        let filename = plain_name(filename);
        let named = |error: train::TrainError| JobError::Rows(called(&error, &path, &filename));
        let pairs = holds_pairs(&path).map_err(named)?;
        let rows = scan(&path, pairs)
            .and_then(DatasetScan::whole)
            .map_err(named)?
            .rows
            .len();
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
            rows,
            pairs,
        };
        let kept = beside.path().join(&stored.filename);
        std::fs::rename(&path, &kept).map_err(JobError::io(&kept))?;
        record_file::write(&beside.path().join(ENTRY), &stored)?;
        let folder = self.dir.join(&stored.id);
        std::fs::rename(beside.keep(), &folder).map_err(JobError::io(&folder))?;
        let _ = atomic_file::sync_folder(&self.dir);
        all.insert(stored.id.clone(), stored.clone());
        Ok(stored)
    }

    /// The file of this id, which the field `field` named.
    pub fn find(
        &self,
        who: &Viewer,
        id: &str,
        field: &'static str,
    ) -> Result<StoredFile, JobError> {
        let found = self.lock().get(id).cloned();
        found
            .filter(|file| who.sees(file.owner.as_deref()))
            .ok_or_else(|| JobError::NoFile {
                id: id.chars().take(80).collect(),
                field,
            })
    }

    /// Those that `who` sees, in the order of arrival or, if `page.newest_first`, the other way round.
    pub fn list(&self, who: &Viewer, page: &Page) -> Result<(Vec<StoredFile>, bool), JobError> {
        let mut seen: Vec<StoredFile> = self
            .lock()
            .values()
            .filter(|file| who.sees(file.owner.as_deref()))
            .cloned()
            .collect();
        seen.sort_by_key(|file| file.number);
        page.of(seen, |file| &file.id)
    }

    /// Where the file's bytes lie.
    pub fn path(&self, file: &StoredFile) -> PathBuf {
        self.dir.join(&file.id).join(&file.filename)
    }

    /// Deletes it.
    pub fn delete(&self, file: &StoredFile) -> Result<(), JobError> {
        let mut all = self.lock();
        let folder = self.dir.join(&file.id);
        // The entry first: without it there is no file, whatever else is left.
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

/// The rows of a file with all that is wrong in it; of pairs those with the chosen answers.
pub(crate) fn scan(path: &Path, pairs: bool) -> Result<DatasetScan, train::TrainError> {
    match pairs {
        true => Ok(scan_pairs(path)?.chosen),
        false => Dataset::scan(path, &Columns::default()),
    }
}

/// What `error` says, with the file called as the client calls it: where it lies is the server's business.
pub(crate) fn called(error: &train::TrainError, path: &Path, filename: &str) -> String {
    error
        .to_string()
        .replace(&path.display().to_string(), filename)
}

/// `name` without folders, and with nothing in it that a file system or a log could mind.
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
    // Neither hidden nor a folder, and not the entry's own name.
    match plain.trim_start_matches('.') {
        "" => "rows.jsonl".to_owned(),
        ENTRY => format!("_{ENTRY}"),
        plain => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(files: &Files, text: &str, name: &str) -> Result<StoredFile, JobError> {
        let mut upload = files.upload()?;
        upload.write(text.as_bytes())?;
        files.finish(upload, name, None)
    }

    const ROW: &str = "{\"instruction\":\"Hi\",\"output\":\"Hello.\"}\n";

    #[test]
    fn files_are_there_again_and_half_of_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let one = taken(&files, ROW, "../a b/rows?.jsonl").unwrap();
        assert_eq!(
            (one.filename.as_str(), one.rows, one.pairs),
            ("rows_.jsonl", 1, false)
        );
        let pair = "{\"prompt\":\"Hi\",\"chosen\":\"Yay.\",\"rejected\":\"No.\"}\n";
        let two = taken(&files, pair, "file.json").unwrap();
        assert!(two.pairs && two.filename == "_file.json");
        // A process that was killed while it took a third, or while it deleted one.
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
    fn a_broken_line_is_named_as_the_client_calls_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let said = taken(
            &files,
            &format!("{ROW}{{\"instruction\":1}}\n"),
            "mine.jsonl",
        )
        .unwrap_err()
        .to_string();
        assert!(said.starts_with("mine.jsonl:2: "), "{said}");
        let said = taken(&files, "\n", "mine.jsonl").unwrap_err().to_string();
        assert!(
            said.starts_with("mine.jsonl: the file holds no rows"),
            "{said}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_has_a_largest_size() {
        let folder = tempfile::tempdir().unwrap();
        let mut upload = Files::open(folder.path()).unwrap().upload().unwrap();
        upload.bytes = MAX_FILE - 1;
        upload.write(b"a").unwrap();
        let said = upload.write(b"a").unwrap_err().to_string();
        assert!(said.contains("268435456 bytes"), "{said}");
        upload.bytes = 0;
        upload.room = 3;
        assert!(matches!(
            upload.write(b"four"),
            Err(JobError::NoRoom { .. })
        ));
    }
}
