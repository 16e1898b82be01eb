//! The trainer's files, each written in one step (see [`formats::atomic_file`]).

use std::io;
use std::path::Path;

use formats::atomic_file;
use formats::disk::{self, DiskFile};

use crate::error::TrainError;

/// Replaces the file at `path` by what `write` writes; creates the folder if it is missing, but not the one above
/// it: a run whose folder was removed fails.
///
/// # Errors
/// Any step fails (no room, no permission): then `path` has its old content.
pub(crate) fn replace_file(
    path: &Path,
    write: impl FnOnce(&mut DiskFile) -> io::Result<()>,
) -> Result<(), TrainError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    disk::create_missing_folder(folder)
        .and_then(|()| atomic_file::replace(path, write))
        .map_err(TrainError::write(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn failed_write_names_the_file_and_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/state");
        replace_file(&path, |file| io::Write::write_all(file, b"old")).unwrap();
        let failed = replace_file(&path, |_| Err(io::ErrorKind::StorageFull.into()));
        let message = failed.unwrap_err().to_string();
        assert!(
            message.contains("run/state") && message.contains("is unchanged"),
            "{message}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let run = folder.path().join("removed");
        assert!(replace_file(&run.join("run/state"), |_| Ok(())).is_err());
        assert!(!run.exists());
    }
}
