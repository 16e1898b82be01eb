//! Files that appear complete or not at all: written under a temporary name in the same folder, flushed to the disk, renamed.
//!
//! A crash at any point leaves the old file. A writer locks its temporary file, so the next writer in the folder can
//! distinguish a file that is being written from what a killed process left, which it removes. Only files whose names
//! begin with [`MARK`] are ever removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;

/// The first characters of a temporary file's name.
pub const MARK: &str = ".lory-partial-";

/// Where the file system has no locks, a temporary file is a leftover when it is older than this.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// Replaces the file at `path` by what `write` writes; permissions are those of any new file.
///
/// # Errors
/// The first step that fails. `path` still holds its old content, unless the very last step failed: flushing the folder.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    fill(AtomicFile::create_in(folder_of(path))?, path, write)
}

/// The same with a file that only its owner can read.
///
/// # Errors
/// As [`replace`].
pub fn replace_private(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    fill(AtomicFile::create_private_in(folder_of(path))?, path, write)
}

fn fill(
    mut file: AtomicFile,
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    write(file.file())?;
    file.commit(path).map(drop)
}

/// A file under a temporary name. [`AtomicFile::commit`] gives it its own; dropped before that, it is removed.
#[derive(Debug)]
pub struct AtomicFile(NamedTempFile);

impl AtomicFile {
    /// Creates the file in `folder`, with the permissions of any new file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create_in(folder: &Path) -> io::Result<AtomicFile> {
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // The process's umask still applies.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        Self::create(builder, folder)
    }

    /// Creates the file in `folder`, readable only by its owner.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create_private_in(folder: &Path) -> io::Result<AtomicFile> {
        Self::create(tempfile::Builder::new(), folder)
    }

    fn create(mut builder: tempfile::Builder<'_, '_>, folder: &Path) -> io::Result<AtomicFile> {
        remove_leftovers(folder);
        builder.prefix(MARK);
        loop {
            let file = builder.tempfile_in(folder)?;
            // Not every file system has locks; there, age distinguishes leftovers.
            let _ = file.as_file().lock();
            // Another writer may have removed the file as a leftover before it was locked.
            if file.path().exists() {
                return Ok(AtomicFile(file));
            }
        }
    }

    /// The file, open for writing.
    pub fn file(&mut self) -> &mut File {
        self.0.as_file_mut()
    }

    /// Flushes the file to the disk and renames it to `path`, which must be in the folder it was created in.
    ///
    /// # Errors
    /// The first step that fails; the temporary file is removed.
    pub fn commit(self, path: &Path) -> io::Result<File> {
        self.0.as_file().sync_all()?;
        let file = self.0.persist(path).map_err(|error| error.error)?;
        sync_folder(folder_of(path))?;
        Ok(file)
    }
}

/// Removes the temporary files in `folder` that no process is writing. What cannot be removed stays until the next call.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(MARK.as_bytes()) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::options().write(true).open(&path) else {
            continue;
        };
        let abandoned = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => is_older(&file, LEFTOVER_AGE),
        };
        // Removed while the lock is held, so that no writer takes the file for its own.
        if abandoned {
            let _ = fs::remove_file(&path);
        }
    }
}

fn is_older(file: &File, age: Duration) -> bool {
    let modified = file.metadata().and_then(|meta| meta.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|found| found > age))
}

/// Flushes a folder's entries to the disk, so that a rename in it outlasts a power cut.
///
/// # Errors
/// The disk reports a failure. A system that cannot flush folders is not an error.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) => match error.kind() {
            // The file system does not support it, or the folder may be written but not read.
            io::ErrorKind::InvalidInput
            | io::ErrorKind::Unsupported
            | io::ErrorKind::PermissionDenied => Ok(()),
            _ => Err(error),
        },
        synced => synced,
    }
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
