//! What files and uploads count for quotas. An upload and its bytes count before they are written, so parallel uploads do not exceed a
//! quota or a limit together. Must not know what is in a file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use auth::{Owner, Resource, Usage};

use crate::error::JobError;
use crate::records::file::StoredFile;

/// The most files of all keys, with those that are being uploaded.
pub const MAX_FILES: usize = 1000;
/// The most bytes of all files in total, with those that are being uploaded.
pub const MAX_STORED: u64 = 4 << 30;

/// All files and uploads.
#[derive(Default)]
pub(crate) struct FilesState {
    /// The stored files, by their ids.
    pub(crate) all: BTreeMap<String, StoredFile>,
    /// The uploads that are not accepted yet, by their numbers.
    uploads: BTreeMap<u64, Uploading>,
    next_upload: u64,
    next_number: u64,
}

/// What an upload counts.
struct Uploading {
    owner: Option<String>,
    bytes: u64,
}

impl FilesState {
    /// The state with the files that were found on disk.
    pub(crate) fn new(all: BTreeMap<String, StoredFile>) -> FilesState {
        let numbers = all.values().map(|file| file.number);
        FilesState {
            next_number: numbers.max().unwrap_or(0).saturating_add(1),
            all,
            uploads: BTreeMap::new(),
            next_upload: 0,
        }
    }

    /// The place of the next file in the order of arrival.
    pub(crate) fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number = number.saturating_add(1);
        number
    }

    /// The sum of what `count` makes of the bytes of each file and upload.
    pub(crate) fn usage(&self, owner: &Owner, limit: u64, count: fn(u64) -> u64) -> Usage {
        let stored = self.all.values().map(|file| (&file.owner, file.bytes));
        let uploads = self.uploads.values();
        let uploads = uploads.map(|upload| (&upload.owner, upload.bytes));
        let mut usage = Usage {
            own: 0,
            all: 0,
            limit,
        };
        for (name, bytes) in stored.chain(uploads) {
            usage.all += count(bytes);
            if owner.owns(name.as_deref()) {
                usage.own += count(bytes);
            }
        }
        usage
    }
}

pub(crate) fn lock(state: &Mutex<FilesState>) -> MutexGuard<'_, FilesState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file and its bytes that count as stored while they are written.
pub(crate) struct Reservation {
    state: Arc<Mutex<FilesState>>,
    owner: Owner,
    /// The number of its upload.
    number: u64,
    bytes: u64,
}

impl Reservation {
    /// Reserves a file without bytes.
    pub(crate) fn new(
        state: &Arc<Mutex<FilesState>>,
        owner: Owner,
    ) -> Result<Reservation, JobError> {
        let mut locked = lock(state);
        let files = locked.usage(&owner, MAX_FILES as u64, |_| 1);
        owner.check(Resource::Files, files, 1)?;
        let number = locked.next_upload;
        locked.next_upload += 1;
        let uploading = Uploading {
            owner: owner.name().map(str::to_owned),
            bytes: 0,
        };
        locked.uploads.insert(number, uploading);
        Ok(Reservation {
            state: Arc::clone(state),
            owner,
            number,
            bytes: 0,
        })
    }

    /// Reserves `bytes` more, or none if the owner's quota does not allow it or all files would exceed `limit`.
    pub(crate) fn grow(&mut self, bytes: u64, limit: u64) -> Result<(), JobError> {
        let mut state = lock(&self.state);
        let stored = state.usage(&self.owner, limit, |bytes| bytes);
        self.owner
            .check_growth(Resource::FileBytes, stored, self.bytes, bytes)?;
        self.bytes += bytes;
        if let Some(upload) = state.uploads.get_mut(&self.number) {
            upload.bytes = self.bytes;
        }
        Ok(())
    }

    /// Its owner.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The reserved bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Turns it into a stored file.
    pub(crate) fn store(self, file: StoredFile) {
        let mut state = lock(&self.state);
        state.uploads.remove(&self.number);
        state.all.insert(file.id.clone(), file);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.state).uploads.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use dataset::FieldReport;

    use super::*;

    #[test]
    fn parallel_uploads_stay_within_the_limit_together() {
        let stored = StoredFile {
            id: "file-1".to_owned(),
            number: 1,
            owner: None,
            created_at: 1,
            filename: "rows.jsonl".to_owned(),
            bytes: 39,
            content_bytes: Some(39),
            rows: 1,
            pairs: false,
            hold_out: None,
            fields: FieldReport::default(),
        };
        let limit = stored.bytes + 25;
        let all = BTreeMap::from([(stored.id.clone(), stored)]);
        let state = Arc::new(Mutex::new(FilesState::new(all)));
        let mut uploads = Vec::new();
        for _ in 0..4 {
            uploads.push(Reservation::new(&state, Owner::everyone()).unwrap());
        }
        let grown: Vec<bool> = uploads
            .iter_mut()
            .map(|upload| upload.grow(10, limit).is_ok())
            .collect();
        assert_eq!(grown, [true, true, false, false]);
        // What a dropped upload had reserved is free again.
        uploads.remove(0);
        uploads[2].grow(10, limit).unwrap();
        drop(uploads);
        assert!(lock(&state).uploads.is_empty());
        lock(&state).all.clear();
        let usage = lock(&state).usage(&Owner::everyone(), limit, |bytes| bytes);
        assert_eq!((usage.own, usage.all), (0, 0));
    }
}
