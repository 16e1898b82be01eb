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
    let beside = beside(path);
    let put = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        write(&beside)?;
        File::open(&beside)?.sync_all()?;
        fs::rename(&beside, path)
    };
    put().map_err(|source| {
        // The half-written file is of no use to anyone; that it cannot be removed changes nothing.
        let _ = fs::remove_file(&beside);
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

/// The temporary name of `path`: in the same folder, so that the rename stays on one file system.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
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
}
