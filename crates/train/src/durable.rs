//! Files that appear whole or not at all: written beside, flushed to the disk, renamed.
//!
//! Knows paths and bytes only.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::TrainError;

/// Puts the file that `write` makes at `path`, in one step; makes the folder where it is missing.
///
/// `write` is given the temporary path to write to.
///
/// # Errors
/// Any step fails (no room, no permission): then `path` is what it was before.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), TrainError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let partial = partial(path);
    let beside = partial.join(path.file_name().unwrap_or_default());
    let put = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        // What a process left that was killed while it wrote.
        clear(&partial)?;
        fs::create_dir(&partial)?;
        write(&beside)?;
        File::open(&beside)?.sync_all()?;
        fs::rename(&beside, path)?;
        clear(&partial)
    };
    put().map_err(|source| {
        // The half-written file is of no use to anyone; that it cannot be removed changes nothing.
        let _ = clear(&partial);
        TrainError::Write {
            path: path.to_owned(),
            source,
        }
    })?;
    // The rename itself must outlive a power cut; systems that cannot sync a folder say so, which is no failure.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// The folder in which the next `path` is made: beside it, so that the rename stays on one file system. A folder, as
/// writers may have temporary names of their own, and all of them are to be found again.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// Removes what is at `path`, if anything.
fn clear(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        replace(&path, |beside| fs::write(beside, b"old")).unwrap();
        let failed = replace(&path, |beside| {
            fs::write(beside, b"half of the n")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        let said = failed.unwrap_err().to_string();
        assert!(said.contains("still stands"), "{said}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_cleared_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::create_dir(folder.path().join("state.partial")).unwrap();
        fs::write(folder.path().join("state.partial/.tmpX"), b"half").unwrap();
        replace(&path, |beside| fs::write(beside, b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
