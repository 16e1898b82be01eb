//! What uploads count for the quotas of their owners: those that are stored, and those that are being received.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use auth::{Owner, Resource, Usage};
use formats::atomic_file::AtomicFile;

use super::error::UploadError;

/// The most bytes of all uploads, with those that are being received.
pub const MAX_STORED: u64 = 8 << 30;
/// The most bytes of an uploaded archive.
pub const MAX_ARCHIVE: u64 = 1 << 30;

/// What uploads count for quotas.
#[derive(Debug, Default)]
pub(super) struct UploadSizes {
    /// By hash.
    pub stored: BTreeMap<String, UploadSize>,
    /// Those that are being received, by their numbers.
    pub receiving: BTreeMap<u64, UploadSize>,
    pub next: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct UploadSize {
    /// The keys that sent it; none without keys, and for uploads of an earlier process.
    pub owners: BTreeSet<String>,
    pub bytes: u64,
}

impl UploadSize {
    pub fn of(owner: &Owner, bytes: u64) -> UploadSize {
        UploadSize {
            owners: owner.name().map(str::to_owned).into_iter().collect(),
            bytes,
        }
    }

    pub fn is_of(&self, owner: &Owner) -> bool {
        owner.name().is_none_or(|name| self.owners.contains(name))
    }
}

impl UploadSizes {
    pub fn usage(&self, owner: &Owner) -> Usage {
        let mut usage = Usage {
            own: 0,
            all: 0,
            limit: MAX_STORED,
        };
        for size in self.stored.values().chain(self.receiving.values()) {
            usage.all += size.bytes;
            if size.is_of(owner) {
                usage.own += size.bytes;
            }
        }
        usage
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An archive that is being received. Its bytes count before they are written; dropping it removes them.
#[derive(Debug)]
pub struct ReceivedArchive {
    pub(super) file: AtomicFile,
    pub(super) sizes: Arc<Mutex<UploadSizes>>,
    pub(super) owner: Owner,
    pub(super) number: u64,
    pub(super) bytes: u64,
}

impl ReceivedArchive {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`UploadError::TooLarge`], [`UploadError::Quota`], [`UploadError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        let size = self.bytes.saturating_add(bytes.len() as u64);
        if size > MAX_ARCHIVE {
            return Err(UploadError::TooLarge {
                name: "the archive".to_owned(),
                limit: MAX_ARCHIVE,
            });
        }
        self.grow_to(size)?;
        let path = self.file.path().to_owned();
        let written = self.file.file().write_all(bytes);
        written.map_err(|source| UploadError::Io { path, source })
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.file.path()
    }

    /// Counts `bytes` in all, if the owner may have them.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), UploadError> {
        let more = bytes.saturating_sub(self.bytes);
        let mut sizes = lock(&self.sizes);
        let usage = sizes.usage(&self.owner);
        self.owner
            .check_growth(Resource::UploadBytes, usage, self.bytes, more)?;
        self.bytes += more;
        if let Some(size) = sizes.receiving.get_mut(&self.number) {
            size.bytes = self.bytes;
        }
        Ok(())
    }
}

impl Drop for ReceivedArchive {
    fn drop(&mut self) {
        lock(&self.sizes).receiving.remove(&self.number);
    }
}
