//! Changes of files and folders. Every file that Lory writes goes through these functions, so that a test can make any of the
//! operations fail (`faults`). Reading does not; [`open`] and [`read`] read what a scan of a folder finds.

#[cfg(any(test, feature = "faults"))]
pub mod faults;
mod lasting_folder;
mod operation;
mod read;
#[cfg(any(test, feature = "faults"))]
pub mod slow_file;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::ops::Deref;
use std::path::Path;

#[cfg(any(test, feature = "faults"))]
use faults::begin;
pub use lasting_folder::{LastingFolder, is_removed};
use operation::{Effect, Operation};
pub use read::{open, read};

#[cfg(not(any(test, feature = "faults")))]
#[expect(clippy::unnecessary_wraps, reason = "the same as with faults")]
fn begin(_: Operation) -> io::Result<Effect> {
    Ok(Effect::Complete)
}

/// An operation that takes place completely or not at all.
fn change(operation: Operation) -> io::Result<()> {
    match begin(operation)? {
        Effect::Complete | Effect::Half(None) => Ok(()),
        Effect::Half(Some(error)) => Err(error),
    }
}

/// A file that is open for writing.
#[derive(Debug)]
pub struct DiskFile(File);

impl DiskFile {
    fn new(file: File) -> DiskFile {
        #[cfg(any(test, feature = "faults"))]
        faults::opened(&file);
        DiskFile(file)
    }

    /// Flushes content and metadata to the disk.
    ///
    /// # Errors
    /// The disk reports a failure; what was written since the last flush may be lost.
    pub fn sync_all(&self) -> io::Result<()> {
        change(Operation::Change)?;
        self.0.sync_all()?;
        #[cfg(any(test, feature = "faults"))]
        faults::flushed(&self.0);
        Ok(())
    }

    /// Cuts the file to `length` bytes.
    ///
    /// # Errors
    /// The disk reports a failure.
    pub fn truncate(&self, length: u64) -> io::Result<()> {
        change(Operation::Release)?;
        self.0.set_len(length)
    }

    /// The file without this layer, to hold its lock.
    pub(crate) fn into_file(self) -> File {
        self.0
    }

    /// A second handle of the same file.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn try_clone(&self) -> io::Result<DiskFile> {
        self.0.try_clone().map(DiskFile)
    }
}

impl From<File> for DiskFile {
    fn from(file: File) -> DiskFile {
        DiskFile::new(file)
    }
}

impl Deref for DiskFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match begin(Operation::Write)? {
            Effect::Complete => self.0.write(bytes),
            Effect::Half(None) => {
                let half = bytes.len().div_ceil(2);
                self.0.write(&bytes[..half])
            }
            Effect::Half(Some(error)) => {
                self.0.write_all(&bytes[..bytes.len() / 2])?;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Creates a file that must not exist. Only its owner can read it if `private`; else it has the permissions of any new file.
///
/// # Errors
/// It exists, or cannot be created.
pub fn create_new(path: &Path, private: bool) -> io::Result<DiskFile> {
    change(Operation::Change)?;
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    let _ = private;
    options.open(path).map(DiskFile::new)
}

/// Creates a file, or empties an existing one.
///
/// # Errors
/// It cannot be created.
pub fn create(path: &Path) -> io::Result<DiskFile> {
    change(Operation::Change)?;
    File::create(path).map(DiskFile::new)
}

/// Writes a file, and flushes it to the disk. It is not complete in one step: use it in an [`crate::atomic_file::AtomicFolder`].
///
/// # Errors
/// It cannot be created or written.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens a file for reading, and for writing at its end; creates a missing one.
///
/// # Errors
/// It is not a regular file, or cannot be opened or created.
pub fn open_append(path: &Path) -> io::Result<DiskFile> {
    change(Operation::Change)?;
    if let Ok(meta) = path.metadata() {
        read::check_regular(&meta)?;
    }
    let mut options = File::options();
    options.read(true).append(true).create(true);
    options.open(path).map(DiskFile::new)
}

/// Creates one folder.
///
/// # Errors
/// It exists, or cannot be created.
pub fn create_folder(path: &Path) -> io::Result<()> {
    change(Operation::Change)?;
    fs::create_dir(path)
}

/// Creates a folder if it is missing. The folder above it must exist.
///
/// # Errors
/// It cannot be created.
pub fn create_missing_folder(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => Ok(()),
        false => create_folder(path),
    }
}

/// Creates a folder and those above it that are missing.
///
/// # Errors
/// One of them cannot be created.
pub fn create_folders(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    change(Operation::Change)?;
    fs::create_dir_all(path)
}

/// Creates a folder and those above it that are missing. Only their owner can read those that it creates.
///
/// # Errors
/// One of them cannot be created.
pub fn create_private_folders(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    change(Operation::Change)?;
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Renames a file or folder; replaces a file at `to`.
///
/// # Errors
/// The system's.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    change(Operation::Change)?;
    fs::rename(from, to)
}

/// Removes a file.
///
/// # Errors
/// The system's.
pub fn remove_file(path: &Path) -> io::Result<()> {
    change(Operation::Release)?;
    fs::remove_file(path)
}

/// Removes a folder and all that is in it. Prefer [`crate::atomic_file::remove_folder`] for a folder that a reader may find.
///
/// # Errors
/// The system's; some of it may be gone.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    change(Operation::Release)?;
    fs::remove_dir_all(path)
}

/// Removes a folder that has nothing in it.
///
/// # Errors
/// It has something in it, or the system's.
pub fn remove_empty_folder(path: &Path) -> io::Result<()> {
    change(Operation::Release)?;
    fs::remove_dir(path)
}

/// Flushes a folder's entries to the disk, so that a rename in it outlasts a power cut.
///
/// # Errors
/// The disk reports a failure. A system that cannot flush folders is not an error.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    change(Operation::Change)?;
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
