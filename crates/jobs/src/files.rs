//! Uploaded training files. Every line is checked before a file is accepted; accepted files stay until they are deleted.
//!
//! ```text
//! files/<id>/<the file>, files/<id>/file.json     a folder gets its name when both are complete
//! ```

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use auth::Owner;
use dataset::{CheckedFile, Columns, Dataset, DatasetError, HoldOut, check_pairs, holds_pairs};
use formats::atomic_file::{self, AtomicFolder};
use formats::disk::{self, DiskFile};

use crate::error::JobError;
use crate::file_reservation::{FilesState, MAX_STORED, Reservation, lock};
use crate::jobs_folder::{self, DamagedRecords};
use crate::listing::{Page, Viewer};
use crate::record_file::{self, fresh_id, is_id, now};
use crate::records::file::StoredFile;

/// The largest file, in bytes: as it is uploaded, and after decompression.
pub const MAX_FILE: u64 = 256 << 20;
/// The longest file name, in bytes; file systems allow 255.
pub const MAX_NAME: usize = 200;
/// The name of a file's record.
const ENTRY: &str = "file.json";
/// How a file's id begins.
const ID_PREFIX: &str = "file-";
/// The only supported purpose.
pub const PURPOSE: &str = "fine-tune";

/// All files.
pub(crate) struct Files {
    dir: PathBuf,
    state: Arc<Mutex<FilesState>>,
}

/// A file that is being uploaded. Dropping it removes what was written.
pub struct Upload {
    folder: AtomicFolder,
    file: DiskFile,
    filename: String,
    reservation: Reservation,
}

impl Upload {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`JobError::FileTooLarge`], [`JobError::Quota`], or a disk error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JobError> {
        let more = bytes.len() as u64;
        if self.reservation.bytes() + more > MAX_FILE {
            return Err(JobError::FileTooLarge { limit: MAX_FILE });
        }
        self.reservation.grow(more, MAX_STORED)?;
        self.file
            .write_all(bytes)
            .map_err(JobError::io(self.folder.path()))
    }
}

impl Files {
    /// Opens the files in the folder `dir`. A file whose record is damaged is reported and stays on disk.
    pub fn open(dir: &Path, damaged: &DamagedRecords) -> Result<Files, JobError> {
        let mut all = BTreeMap::new();
        for (id, folder) in jobs_folder::entries(dir, |name| is_id(name, ID_PREFIX))? {
            match read_file(&id, &folder) {
                Ok(file) => {
                    all.insert(id, file);
                }
                Err(why) => damaged.report("file", &folder, &why),
            }
        }
        Ok(Files {
            dir: dir.to_owned(),
            state: Arc::new(Mutex::new(FilesState::new(all))),
        })
    }

    fn lock(&self) -> MutexGuard<'_, FilesState> {
        lock(&self.state)
    }

    /// Starts the upload of a file of `owner` that the client calls `filename`.
    pub fn start_upload(&self, filename: &str, owner: Owner) -> Result<Upload, JobError> {
        let filename = plain_name(filename)?;
        let reservation = Reservation::new(&self.state, owner)?;
        let folder = AtomicFolder::create_in(&self.dir).map_err(JobError::io(&self.dir))?;
        let path = folder.path().join(&filename);
        let file = disk::create(&path).map_err(JobError::io(&path))?;
        Ok(Upload {
            folder,
            file,
            filename,
            reservation,
        })
    }

    /// Accepts a complete upload if every record is a row.
    pub fn finish_upload(&self, upload: Upload, stop: &AtomicBool) -> Result<StoredFile, JobError> {
        let Upload {
            folder,
            file,
            filename,
            reservation,
        } = upload;
        let path = folder.path().join(&filename);
        file.sync_all().map_err(JobError::io(&path))?;
        let named = |error| match error {
            DatasetError::Stopped => JobError::Stopped,
            error => JobError::Rows(with_client_name(&error, &path, &filename)),
        };
        let pairs = holds_pairs(&path, &Columns::default()).map_err(named)?;
        let checked = check(&path, pairs, stop).map_err(named)?;
        let number = self.lock().take_number();
        let stored = StoredFile {
            id: fresh_id(ID_PREFIX)?,
            number,
            owner: reservation.owner().name().map(str::to_owned),
            created_at: now(),
            filename,
            bytes: reservation.bytes(),
            content_bytes: Some(checked.bytes),
            rows: checked.rows,
            pairs,
            hold_out: Some(checked.hold_out),
            fields: checked.fields,
        };
        record_file::write(&folder.path().join(ENTRY), &stored)?;
        let stored_folder = self.dir.join(&stored.id);
        if let Err(error) = folder.commit(&stored_folder) {
            // It may have its name and not be flushed. The next start must not find a file that was refused.
            let _ = disk::remove_folder(&stored_folder);
            return Err(JobError::io(&stored_folder)(error));
        }
        reservation.store(stored.clone());
        Ok(stored)
    }

    /// The file with this id, if `viewer` may see it; the error names `field`.
    pub fn find(
        &self,
        viewer: &Viewer,
        id: &str,
        field: &'static str,
    ) -> Result<StoredFile, JobError> {
        let found = self.lock().all.get(id).cloned();
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
            .all
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
            DatasetError::Stopped => JobError::Stopped,
            error => JobError::Rows(with_client_name(&error, &path, &file.filename)),
        })?;
        if let Some(file) = self.lock().all.get_mut(&file.id) {
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
        let mut state = self.lock();
        let folder = self.dir.join(&file.id);
        atomic_file::remove_folder(&folder).map_err(JobError::io(&folder))?;
        state.all.remove(&file.id);
        Ok(())
    }
}

/// The record of the file in `folder`. The error says why it cannot be used.
fn read_file(id: &str, folder: &Path) -> Result<StoredFile, String> {
    let file: StoredFile =
        record_file::read(&folder.join(ENTRY)).map_err(|error| error.to_string())?;
    if file.id != id {
        return Err(format!("its record has the id {:?}", file.id));
    }
    record_file::check_number(file.number)?;
    // Rows and sizes of several files are added. A row has a byte of content at least.
    if file.rows as u64 > file.content_bytes() || file.content_bytes() > MAX_FILE {
        return Err(format!(
            "its record has {} rows and {} bytes of content; a file has at most {MAX_FILE} bytes",
            file.rows,
            file.content_bytes()
        ));
    }
    // The name becomes a path.
    if plain_name(&file.filename).ok().as_deref() != Some(file.filename.as_str()) {
        return Err(format!("its record has the file name {:?}", file.filename));
    }
    let path = folder.join(&file.filename);
    let found = disk::open(&path)
        .and_then(|file| file.metadata())
        .map_err(|error| format!("{}: {error}", path.display()))?
        .len();
    if found != file.bytes {
        let expected = file.bytes;
        return Err(format!(
            "{} has {found} bytes instead of {expected}",
            path.display()
        ));
    }
    Ok(file)
}

/// Checks every line of a file, in little memory.
fn check(path: &Path, pairs: bool, stop: &AtomicBool) -> Result<CheckedFile, DatasetError> {
    let columns = Columns::default();
    match pairs {
        true => check_pairs(path, &columns, MAX_FILE, stop),
        false => Dataset::check(path, &columns, MAX_FILE, stop),
    }
}

/// The message of `error` with the client's file name instead of the path, which clients must not see.
pub(crate) fn with_client_name(
    error: &impl std::fmt::Display,
    path: &Path,
    filename: &str,
) -> String {
    error
        .to_string()
        .replace(&path.display().to_string(), filename)
}

/// `name` without folders, with `_` for characters that a file system or a log may not accept.
///
/// # Errors
/// It is longer than [`MAX_NAME`].
fn plain_name(name: &str) -> Result<String, JobError> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    if last.len() > MAX_NAME {
        let message = format!(
            "has a name of {} bytes; give at most {MAX_NAME}",
            last.len()
        );
        return Err(JobError::invalid("file", message));
    }
    let plain: String = last
        .chars()
        .map(|c| match c {
            c if c.is_alphanumeric() || "-_.".contains(c) => c,
            _ => '_',
        })
        .collect();
    // Not hidden, not a folder, and not the record's name.
    Ok(match plain.trim_start_matches('.') {
        "" => "rows.jsonl".to_owned(),
        ENTRY => format!("_{ENTRY}"),
        plain => plain.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use auth::{Quotas, Resource};
    use formats::disk::faults::for_each_fault;

    use super::*;

    fn open(dir: &Path) -> Files {
        Files::open(dir, &DamagedRecords::default()).unwrap()
    }

    fn uploaded(files: &Files, text: &str, name: &str) -> Result<StoredFile, JobError> {
        uploaded_by(files, text, name, Owner::everyone())
    }

    fn uploaded_by(
        files: &Files,
        text: &str,
        name: &str,
        owner: Owner,
    ) -> Result<StoredFile, JobError> {
        let mut upload = files.start_upload(name, owner)?;
        upload.write(text.as_bytes())?;
        files.finish_upload(upload, &dataset::stop::NEVER)
    }

    fn listed(files: &Files) -> Vec<StoredFile> {
        files
            .list(&Viewer::everybody(), &Page::default())
            .unwrap()
            .0
    }

    const ROW: &str = "{\"instruction\":\"Hi\",\"output\":\"Hello.\"}\n";

    #[test]
    fn files_survive_a_restart_and_unfinished_uploads_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let files = open(folder.path());
        let one = uploaded(&files, ROW, "../a b/rows?.jsonl").unwrap();
        assert_eq!(
            (one.filename.as_str(), one.rows, one.pairs),
            ("rows_.jsonl", 1, false)
        );
        let pair = "{\"prompt\":\"Hi\",\"chosen\":\"Yay.\",\"rejected\":\"No.\"}\n";
        let two = uploaded(&files, pair, "file.json").unwrap();
        assert!(two.pairs && two.filename == "_file.json");
        files.delete(&two).unwrap();
        // Processes that were killed during an upload: this version, and an earlier one.
        std::mem::forget(files.start_upload("rows", Owner::everyone()).unwrap());
        std::fs::create_dir(folder.path().join(".uploadXyzXyz")).unwrap();
        drop(files);
        let again = open(folder.path());
        assert_eq!(listed(&again), std::slice::from_ref(&one));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(again.path(&one)).unwrap(), ROW);
        again.delete(&one).unwrap();
        let everybody = Viewer::everybody();
        assert!(again.find(&everybody, &one.id, "id").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    fn replace_in_record(dir: &Path, old: &str, new: &str) {
        let text = std::fs::read_to_string(dir.join(ENTRY)).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(dir.join(ENTRY), text.replace(old, new)).unwrap();
    }

    #[test]
    fn damaged_record_affects_only_its_file_and_nothing_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let files = open(folder.path());
        let good = uploaded(&files, ROW, "good").unwrap();
        let damages: [fn(&Path); 7] = [
            |dir| std::fs::write(dir.join(ENTRY), "").unwrap(),
            |dir| std::fs::remove_file(dir.join(ENTRY)).unwrap(),
            |dir| std::fs::remove_file(dir.join("bad")).unwrap(),
            |dir| std::fs::write(dir.join("bad"), "cut").unwrap(),
            |dir| replace_in_record(dir, "\"number\": ", "\"number\": 999999999999999999"),
            |dir| replace_in_record(dir, "\"rows\": ", "\"rows\": 1844674407370955161"),
            |dir| replace_in_record(dir, "\"bad\"", "\"../../bad\""),
        ];
        for damage in damages {
            let bad = uploaded(&files, ROW, "bad").unwrap();
            damage(&folder.path().join(&bad.id));
        }
        std::fs::write(folder.path().join("stray.txt"), "").unwrap();
        std::fs::create_dir(folder.path().join("mine")).unwrap();
        // A record that names another folder must not reach it.
        let copy = folder.path().join(format!("file-{}", "0".repeat(24)));
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(folder.path().join(&good.id).join(ENTRY), copy.join(ENTRY)).unwrap();
        let damaged = DamagedRecords::default();
        let again = Files::open(folder.path(), &damaged).unwrap();
        assert_eq!(listed(&again), [good]);
        assert_eq!(damaged.counts()[1], ("file", 8));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 11);
        uploaded(&again, ROW, "next").unwrap();
        uploaded(&again, ROW, "next").unwrap();
    }

    #[test]
    fn upload_is_stored_or_refused_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let files = open(folder.path());
            let old = uploaded(&files, ROW, "old").unwrap();
            let new = injection.run(|| uploaded(&files, &ROW.repeat(3), "new"));
            // Either this process goes on, or the next one starts.
            let files = match injection.fault.ends_the_process() {
                true => open(folder.path()),
                false => files,
            };
            let found = listed(&files);
            assert!(found.contains(&old), "{injection:?}");
            if let Ok(new) = &new {
                assert!(found.contains(new), "{injection:?}");
            }
            for file in &found {
                let bytes = std::fs::read(files.path(file)).unwrap();
                assert_eq!(bytes.len() as u64, file.bytes, "{injection:?}");
            }
            let counted = files.lock().usage(&Owner::everyone(), 10, |_| 1);
            assert_eq!(counted.all, found.len() as u64, "{injection:?}");
            uploaded(&files, ROW, "next").unwrap();
            // No leftovers after the next start, and what was stored is found again, but nothing that was refused.
            let before = listed(&files);
            drop(files);
            let damaged = DamagedRecords::default();
            let again = Files::open(folder.path(), &damaged).unwrap();
            assert_eq!(damaged.counts()[1].1, 0, "{injection:?}");
            let again = listed(&again);
            assert!(before.iter().all(|file| again.contains(file)));
            assert!(
                injection.fault.ends_the_process() || before.len() == again.len(),
                "{injection:?}"
            );
            let entries = std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(entries, again.len(), "{injection:?}");
        });
    }

    /// `text` compressed with gzip.
    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compressed_upload_counts_with_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let files = open(folder.path());
        let upload = |bytes: &[u8], name: &str| {
            let mut upload = files.start_upload(name, Owner::everyone())?;
            upload.write(bytes)?;
            files.finish_upload(upload, &dataset::stop::NEVER)
        };
        let table = "instruction,output,label\nHi,Hello.,\nBye,Go.,false\n".as_bytes();
        let bytes = gzip(table);
        let stored = upload(&bytes, "rows.csv.gz").unwrap();
        assert_eq!((stored.rows, stored.bytes), (1, bytes.len() as u64));
        assert_eq!(stored.content_bytes(), table.len() as u64);
        assert_eq!(stored.fields.skipped["label: false"], 1);
        // A small file that decompresses to more than the largest file.
        let bomb = gzip(&vec![b' '; MAX_FILE as usize + 1]);
        assert!((bomb.len() as u64) < MAX_FILE / 32);
        let message = upload(&bomb, "rows.jsonl").unwrap_err().to_string();
        assert_eq!(
            message,
            "rows.jsonl: the content of the file is larger than 268435456 bytes; split it"
        );
        assert_eq!(listed(&files), std::slice::from_ref(&stored));
        // More rows than bytes on disk.
        let many = upload(&gzip(ROW.repeat(10_000).as_bytes()), "rows.jsonl").unwrap();
        assert!(many.rows as u64 > many.bytes);
        assert_eq!(listed(&open(folder.path())), [many, stored]);
    }

    #[test]
    fn errors_name_the_clients_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let files = open(folder.path());
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
    fn file_names_are_limited_in_bytes() {
        // Three bytes each.
        assert_eq!(plain_name(&"语".repeat(66)).unwrap().len(), 198);
        assert_eq!(plain_name(&"a".repeat(MAX_NAME)).unwrap().len(), MAX_NAME);
        let error = plain_name(&"语".repeat(100)).unwrap_err();
        assert_eq!(error.field(), Some("file"));
        let message = error.to_string();
        assert!(
            message.contains("300 bytes") && message.contains("200"),
            "{message}"
        );
    }

    #[test]
    fn too_large_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut upload = open(folder.path())
            .start_upload("rows", Owner::everyone())
            .unwrap();
        upload.reservation.grow(MAX_FILE - 1, MAX_STORED).unwrap();
        upload.write(b"a").unwrap();
        let message = upload.write(b"a").unwrap_err().to_string();
        assert!(message.contains("268435456 bytes"), "{message}");
    }

    #[test]
    fn a_key_cannot_take_the_room_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let files = open(folder.path());
        let mut quotas = Quotas::default();
        quotas.set(Resource::Files, Some(2));
        quotas.set(Resource::FileBytes, Some(100));
        let one = || Owner::key("one", quotas);
        let two = || Owner::key("two", Quotas::default());
        let stored = uploaded_by(&files, ROW, "rows", one()).unwrap();
        assert_eq!(stored.owner.as_deref(), Some("one"));
        let mut upload = files.start_upload("rows", one()).unwrap();
        let message = files.start_upload("rows", one()).err().unwrap().to_string();
        assert_eq!(
            message,
            "key one has 2 of its 2 files (`files` in the file of keys); delete some"
        );
        upload.write(&[b'a'; 50]).unwrap();
        let message = upload.write(&[b'a'; 50]).unwrap_err().to_string();
        assert!(
            message.contains("; it may have 100 (`file_bytes`"),
            "{message}"
        );
        let has = format!(
            "key one has {} bytes of files, and this file has at least 100;",
            stored.bytes
        );
        assert!(message.starts_with(&has), "{message}");
        let message = upload.write(&[b'a'; 51]).unwrap_err().to_string();
        assert!(
            message.starts_with("this file has at least 101 bytes"),
            "{message}"
        );
        uploaded_by(&files, ROW, "rows", two()).unwrap();
        // A dropped upload is free again.
        drop(upload);
        files.start_upload("rows", one()).unwrap();
    }
}
