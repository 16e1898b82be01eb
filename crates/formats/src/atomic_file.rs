//! Files and folders that appear complete or not at all: written under a temporary name in the same folder, flushed to the disk,
//! renamed.
//!
//! A crash at any point leaves the old file. A writer locks what it writes, so the next writer in the folder can distinguish a
//! file that is being written from what a killed process left, which it removes. Only names that begin with [`MARK`] are ever
//! removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{self, DiskFile};

pub use crate::disk::sync_folder;

/// The first characters of a temporary file's or folder's name.
pub const MARK: &str = ".lory-partial-";

/// The file that the writer of a temporary folder locks.
const LOCK: &str = ".lock";

/// Where the file system has no locks, a temporary file is a leftover when it is older than this.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// A temporary folder without a lock file is a leftover when it is older than this: its writer locks it at once and unlocks it
/// only to rename it.
const UNLOCKED_AGE: Duration = Duration::from_secs(3600);

/// Replaces the file at `path` by what `write` writes; permissions are those of any new file.
///
/// # Errors
/// The first step that fails. `path` still holds its old content, unless the very last step failed: flushing the folder.
pub fn replace(path: &Path, write: impl FnOnce(&mut DiskFile) -> io::Result<()>) -> io::Result<()> {
    fill(AtomicFile::create_in(folder_of(path))?, path, write)
}

/// The same with a file that only its owner can read.
///
/// # Errors
/// As [`replace`].
pub fn replace_private(
    path: &Path,
    write: impl FnOnce(&mut DiskFile) -> io::Result<()>,
) -> io::Result<()> {
    fill(AtomicFile::create_private_in(folder_of(path))?, path, write)
}

fn fill(
    mut file: AtomicFile,
    path: &Path,
    write: impl FnOnce(&mut DiskFile) -> io::Result<()>,
) -> io::Result<()> {
    write(file.file())?;
    file.commit(path).map(drop)
}

/// Removes the folder at `path` and all that is in it. It disappears in one step: it is renamed first, and what a crash leaves of
/// it carries [`MARK`].
///
/// # Errors
/// The system's. The folder is complete, or gone from `path`.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let parent = folder_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let removed = parent.join(format!("{MARK}removed-{name}"));
    if removed.exists() {
        disk::remove_folder(&removed)?;
    }
    disk::rename(path, &removed)?;
    sync_folder(parent)?;
    // What cannot be removed now is a leftover.
    let _ = disk::remove_folder(&removed);
    Ok(())
}

/// A file under a temporary name. [`AtomicFile::commit`] gives it its own; dropped before that, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    file: Option<DiskFile>,
    path: PathBuf,
}

impl AtomicFile {
    /// Creates the file in `folder`, with the permissions of any new file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create_in(folder: &Path) -> io::Result<AtomicFile> {
        Self::create(folder, false)
    }

    /// Creates the file in `folder`, readable only by its owner.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create_private_in(folder: &Path) -> io::Result<AtomicFile> {
        Self::create(folder, true)
    }

    fn create(folder: &Path, private: bool) -> io::Result<AtomicFile> {
        remove_leftovers(folder);
        loop {
            let (file, path) = with_free_name(folder, |path| disk::create_new(path, private))?;
            let file = AtomicFile {
                file: Some(file),
                path,
            };
            // Not every file system has locks; there, age distinguishes leftovers.
            let _ = file.file.as_ref().map(|file| file.lock());
            // Another writer may have removed the file as a leftover before it was locked.
            if file.path.exists() {
                return Ok(file);
            }
        }
    }

    /// The file, open for writing.
    ///
    /// # Panics
    /// Never: only [`AtomicFile::commit`] takes the file.
    pub fn file(&mut self) -> &mut DiskFile {
        self.file.as_mut().expect("present until the commit")
    }

    /// Its temporary path, for a reader of this process.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes the file to the disk and renames it to `path`, which must be in the folder it was created in.
    ///
    /// # Errors
    /// The first step that fails; the temporary file is removed.
    pub fn commit(mut self, path: &Path) -> io::Result<DiskFile> {
        self.file().sync_all()?;
        disk::rename(&self.path, path)?;
        let file = self.file.take().expect("present until the commit");
        // The lock marks a temporary file. A second handle would keep it on the file under its own name.
        let _ = file.unlock();
        sync_folder(folder_of(path))?;
        Ok(file)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // What cannot be removed is a leftover.
            let _ = disk::remove_file(&self.path);
        }
    }
}

/// A folder under a temporary name. [`AtomicFolder::commit`] gives it its own; dropped before that, it is removed.
#[derive(Debug)]
pub struct AtomicFolder {
    /// None once it is committed.
    lock: Option<File>,
    path: PathBuf,
}

impl AtomicFolder {
    /// Creates an empty folder in `parent`.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn create_in(parent: &Path) -> io::Result<AtomicFolder> {
        remove_leftovers(parent);
        let ((), path) = with_free_name(parent, disk::create_folder)?;
        let lock = disk::create_new(&path.join(LOCK), false).map(DiskFile::into_file);
        match lock {
            Ok(lock) => {
                // Not every file system has locks; there, age distinguishes leftovers.
                let _ = lock.lock();
                Ok(AtomicFolder {
                    lock: Some(lock),
                    path,
                })
            }
            Err(error) => {
                let _ = disk::remove_folder(&path);
                Err(error)
            }
        }
    }

    /// Its temporary path, to write files into. They must be flushed before the commit.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder to `path`, which must be in the folder it was created in, and must be missing.
    ///
    /// # Errors
    /// The first step that fails; the temporary folder is removed.
    pub fn commit(mut self, path: &Path) -> io::Result<()> {
        disk::remove_file(&self.path.join(LOCK))?;
        sync_folder(&self.path)?;
        disk::rename(&self.path, path)?;
        self.lock = None;
        sync_folder(folder_of(path))
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // What cannot be removed is a leftover.
            let _ = disk::remove_folder(&self.path);
        }
    }
}

/// Calls `create` with a new name in `folder` that begins with [`MARK`].
fn with_free_name<T>(
    folder: &Path,
    create: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    let made = tempfile::Builder::new()
        .prefix(MARK)
        .make_in(folder, create)?;
    made.keep().map_err(|error| error.error)
}

/// Removes the temporary files and folders in `folder` that no process is writing. What cannot be removed stays until the next
/// call.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(MARK.as_bytes()) {
            continue;
        }
        let path = entry.path();
        // A link is not followed.
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            let is_old = || {
                let meta = entry.metadata();
                meta.is_ok_and(|meta| is_older(&meta, UNLOCKED_AGE))
            };
            match File::options().write(true).open(path.join(LOCK)) {
                // Removed while the lock is held, so that no writer takes the folder for its own.
                Ok(lock) if is_abandoned(&lock, LEFTOVER_AGE) => {
                    let _ = disk::remove_folder(&path);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && is_old() => {
                    let _ = disk::remove_folder(&path);
                }
                _ => {}
            }
        } else if kind.is_file()
            && let Ok(file) = File::options().write(true).open(&path)
            && is_abandoned(&file, LEFTOVER_AGE)
        {
            let _ = disk::remove_file(&path);
        }
    }
}

/// Locks the file of another writer; whether it has none any more.
fn is_abandoned(file: &File, age: Duration) -> bool {
    match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => file.metadata().is_ok_and(|meta| is_older(&meta, age)),
    }
}

fn is_older(meta: &fs::Metadata, age: Duration) -> bool {
    let modified = meta.modified();
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|found| found > age))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::disk::faults::for_each_fault;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        replace(&path, |file| file.write_all(b"old")).unwrap();
        let failed = replace(&path, |file| {
            file.write_all(b"half of the n")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["state"]);
        assert!(replace(&folder.path().join("none/state"), |_| Ok(())).is_err());
    }

    #[test]
    fn leftover_of_a_killed_writer_is_removed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(folder.path().join(format!("{MARK}killed")), "half").unwrap();
        fs::write(folder.path().join(".partial"), "of the user").unwrap();
        replace(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), [".partial", "state"]);
    }

    #[test]
    fn file_is_old_or_new_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state");
            replace(&path, |file| file.write_all(b"old")).unwrap();
            let replaced = injection.run(|| {
                replace(&path, |file| {
                    file.write_all(b"some of ")?;
                    file.write_all(b"the new")
                })
            });
            let found = fs::read(&path).unwrap();
            assert!(
                found == b"some of the new" || (found == b"old" && replaced.is_err()),
                "{injection:?}: {replaced:?}"
            );
            // The next writer works, and removes what is left.
            replace(&path, |file| file.write_all(b"next")).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"next");
            assert_eq!(names(folder.path()), ["state"], "{injection:?}");
        });
    }

    #[test]
    fn folder_is_complete_or_missing_after_every_fault() {
        let write = |folder: &Path| -> io::Result<()> {
            let new = AtomicFolder::create_in(folder)?;
            let mut file = disk::create(&new.path().join("content"))?;
            file.write_all(b"content")?;
            file.sync_all()?;
            new.commit(&folder.join("new"))
        };
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let written = injection.run(|| write(folder.path()));
            let new = folder.path().join("new");
            assert!(new.exists() || written.is_err(), "{injection:?}");
            if new.exists() {
                assert_eq!(names(&new), ["content"], "{injection:?}");
                assert_eq!(fs::read(new.join("content")).unwrap(), b"content");
            } else {
                write(folder.path()).unwrap();
            }
            for name in names(folder.path()) {
                // Only a killed process leaves something, and it carries the mark.
                let leftover = injection.fault.ends_the_process() && name.starts_with(MARK);
                assert!(name == "new" || leftover, "{injection:?}: {name}");
            }
        });
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path()).unwrap();
            let new = folder.path().join("new");
            let removed = injection.run(|| remove_folder(&new));
            assert!(removed.is_err() || !new.exists(), "{injection:?}");
            if new.exists() {
                assert_eq!(names(&new), ["content"], "{injection:?}");
            }
        });
    }

    #[test]
    fn leftover_folder_is_removed_once_its_writer_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let busy = AtomicFolder::create_in(folder.path()).unwrap();
        // A writer that was killed, one that is between its two steps, and a folder of someone else.
        let killed = folder.path().join(format!("{MARK}killed"));
        let committing = folder.path().join(format!("{MARK}committing"));
        let foreign = folder.path().join(".partial-foreign");
        for path in [&killed, &committing, &foreign] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("content"), "").unwrap();
        }
        fs::write(killed.join(LOCK), "").unwrap();
        remove_leftovers(folder.path());
        assert!(!killed.exists() && committing.exists() && foreign.exists());
        let path = busy.path().to_owned();
        assert!(path.exists());
        drop(busy);
        assert!(!path.exists());
        let old = std::time::SystemTime::now() - UNLOCKED_AGE * 2;
        File::open(&committing).unwrap().set_modified(old).unwrap();
        remove_leftovers(folder.path());
        assert!(!committing.exists() && foreign.exists());
    }

    #[test]
    fn file_that_is_being_written_is_not_a_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let mut slow = AtomicFile::create_in(folder.path()).unwrap();
        slow.file().write_all(b"1").unwrap();
        replace(&two, |file| file.write_all(b"2")).unwrap();
        slow.commit(&one).unwrap();
        assert_eq!(fs::read(&one).unwrap(), b"1");
        assert_eq!(names(folder.path()), ["one", "two"]);
        drop(AtomicFile::create_private_in(folder.path()).unwrap());
        assert_eq!(names(folder.path()), ["one", "two"]);
    }

    #[test]
    fn writers_of_one_folder_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let path = folder.path().join(format!("{}", writer % 2));
                scope.spawn(move || {
                    for _ in 0..50 {
                        replace(&path, |file| file.write_all(&[writer; 1000])).unwrap();
                    }
                });
            }
        });
        for (name, writers) in [("0", [0, 2]), ("1", [1, 3])] {
            let bytes = fs::read(folder.path().join(name)).unwrap();
            assert!(writers.contains(&bytes[0]) && bytes == [bytes[0]; 1000]);
        }
        assert_eq!(names(folder.path()), ["0", "1"]);
    }

    #[cfg(unix)]
    #[test]
    fn private_files_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let private = folder.path().join("private");
        replace_private(&private, |_| Ok(())).unwrap();
        assert_eq!(mode(&private), 0o600);
        let (plain, public) = (folder.path().join("plain"), folder.path().join("public"));
        File::create(&plain).unwrap();
        replace(&public, |_| Ok(())).unwrap();
        assert_eq!(mode(&public), mode(&plain));
    }
}
