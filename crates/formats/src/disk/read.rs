//! Reads files that a scan of a folder finds. Such a name may be a pipe, which waits for a writer, or a link to a device without an end.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;

/// Opens a regular file for reading. Links are followed.
///
/// # Errors
/// It is not a regular file, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened, which may wait forever.
    check_regular(&path.metadata()?)?;
    #[cfg(any(test, feature = "faults"))]
    super::slow_file::wait(path);
    let file = File::open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// It is not a regular file, larger than `limit`, or cannot be read.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    check_size(file.metadata()?.len(), limit)?;
    let mut bytes = Vec::new();
    // One byte more than the limit, so that a file that grows while it is read is noticed.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    check_size(bytes.len() as u64, limit)?;
    Ok(bytes)
}

/// # Errors
/// It is not the metadata of a regular file.
pub(super) fn check_regular(meta: &Metadata) -> io::Result<()> {
    match meta.is_file() {
        true => Ok(()),
        false if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        false => {
            let message = "not a regular file, but a pipe or a device; remove it";
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

fn check_size(found: u64, limit: u64) -> io::Result<()> {
    if found <= limit {
        return Ok(());
    }
    let message = format!("the file is larger than {limit} bytes, the most that are read");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, b"four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        assert_eq!(
            read(&path, 3).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        // A file that is large and takes no space.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read(&path, 1 << 20).is_err());
        assert!(read(folder.path(), 4).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        std::os::unix::fs::symlink("/dev/zero", &device).unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [device, pipe] {
            let error = read(&path, 4).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
            assert!(super::super::open_append(&path).is_err());
        }
    }
}
