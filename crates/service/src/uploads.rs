//! Adapters that clients upload: each waits in a folder named by its hash until it is published, forgotten, or too old. Nothing
//! else in the folder of uploads is ever removed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use auth::{Owner, QuotaExceeded, Resource, Usage};
use formats::atomic_file::{self, AtomicFile, AtomicFolder};
use formats::disk::{self, LastingFolder};
use formats::peft::Dtype;
use registry::RegistryError;

/// The most uploads that wait to be published; beyond that the oldest are removed.
const MAX_UPLOADS: usize = 8;
/// The most bytes of all uploads, with those that are being received.
pub const MAX_STORED: u64 = 8 << 30;
/// How long an upload waits.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// The most bytes of an uploaded archive.
pub const MAX_ARCHIVE: u64 = 1 << 30;

/// Why an upload is refused or not found.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is no folder for uploads.
    #[error(
        "there is nowhere to keep uploads; set LORY_HOME to a folder and start the server again"
    )]
    Off,
    /// It is not an archive, or a broken one.
    #[error("the upload is not a readable zip archive: {0}")]
    Archive(String),
    /// A file in it is refused.
    #[error("the archive is refused: {name:?} {message}")]
    Entry {
        /// The name in the archive.
        name: String,
        /// Why.
        message: String,
    },
    /// A file that makes an adapter is not in it.
    #[error(
        "the archive has no {file}; put adapter_config.json and adapter_model.safetensors into it, as PEFT saves them"
    )]
    Missing {
        /// The file.
        file: &'static str,
    },
    /// It is too large, packed or unpacked.
    #[error("{name} is larger than {limit} bytes, the limit")]
    TooLarge {
        /// The archive, or the file in it.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// The key's uploads would have too many bytes.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// There is no such upload.
    #[error("there is no upload {sha256}; it may have been published or forgotten: send it again")]
    Unknown {
        /// The requested hash.
        sha256: String,
    },
    /// The folder of uploads was removed.
    #[error(transparent)]
    Removed(std::io::Error),
    /// The folder of uploads cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// The files are not an adapter.
    #[error(transparent)]
    Adapter(#[from] RegistryError),
}

/// The adapter of an upload, and whether this base can run it.
#[derive(Debug, Clone, PartialEq)]
pub struct Uploaded {
    /// Its content hash, by which it is published.
    pub sha256: String,
    /// The size of its weights file.
    pub bytes: u64,
    /// How its weights are stored.
    pub dtype: Dtype,
    /// The largest rank of its pairs.
    pub rank: usize,
    /// `lora_alpha` of its configuration.
    pub alpha: f64,
    /// The linears that it changes, by name.
    pub modules: Vec<&'static str>,
    /// How many layers it changes.
    pub layers: usize,
    /// Pairs of A and B.
    pub pairs: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// The base that its configuration names.
    pub base_name: Option<String>,
    /// The sha256 of the base that it was trained on, if it records one.
    pub base_sha256: Option<String>,
    /// Why this base cannot run it; none if it can.
    pub problem: Option<String>,
    /// Other files of the archive, which were skipped; the first few.
    pub passed_over: Vec<String>,
}

/// The folder of uploads.
#[derive(Debug)]
pub(crate) struct UploadStore {
    root: PathBuf,
    folder: LastingFolder,
    sizes: Arc<Mutex<UploadSizes>>,
}

/// What uploads count for quotas.
#[derive(Debug, Default)]
struct UploadSizes {
    /// By hash.
    stored: BTreeMap<String, UploadSize>,
    /// Those that are being received, by their numbers.
    receiving: BTreeMap<u64, UploadSize>,
    next: u64,
}

#[derive(Debug, Clone)]
struct UploadSize {
    /// The key that sent it; `None` without keys, and for uploads of an earlier process.
    owner: Option<String>,
    bytes: u64,
}

impl UploadSizes {
    fn usage(&self, owner: &Owner) -> Usage {
        let mut usage = Usage {
            own: 0,
            all: 0,
            limit: MAX_STORED,
        };
        for size in self.stored.values().chain(self.receiving.values()) {
            usage.all += size.bytes;
            if owner.owns(size.owner.as_deref()) {
                usage.own += size.bytes;
            }
        }
        usage
    }
}

fn lock(sizes: &Mutex<UploadSizes>) -> MutexGuard<'_, UploadSizes> {
    sizes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An archive that is being received. Its bytes count before they are written; dropping it removes them.
#[derive(Debug)]
pub struct ReceivedArchive {
    file: AtomicFile,
    sizes: Arc<Mutex<UploadSizes>>,
    owner: Owner,
    number: u64,
    bytes: u64,
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

impl UploadStore {
    pub fn new(root: PathBuf) -> UploadStore {
        UploadStore {
            folder: LastingFolder::new(&root),
            root,
            sizes: Arc::default(),
        }
    }

    /// Checks that the folder is still there, if it has existed.
    pub fn check(&self) -> std::io::Result<()> {
        self.folder.check()
    }

    /// An empty file for an archive of `owner` that is being received; it is removed on drop.
    pub fn new_archive(&self, owner: Owner) -> Result<ReceivedArchive, UploadError> {
        self.folder.create().map_err(self.io())?;
        let file = AtomicFile::create_private_in(&self.root).map_err(self.io())?;
        let mut sizes = lock(&self.sizes);
        let number = sizes.next;
        sizes.next += 1;
        let size = UploadSize {
            owner: owner.name().map(str::to_owned),
            bytes: 0,
        };
        sizes.receiving.insert(number, size);
        Ok(ReceivedArchive {
            file,
            sizes: Arc::clone(&self.sizes),
            owner,
            number,
            bytes: 0,
        })
    }

    /// An empty folder to unpack an archive into; it is removed on drop.
    pub fn new_folder(&self) -> Result<AtomicFolder, UploadError> {
        AtomicFolder::create_in(&self.root).map_err(self.io())
    }

    /// Removes uploads that are too old, and what killed processes left. Without this an unused server would keep them.
    pub fn remove_stale(&self) {
        atomic_file::remove_leftovers(&self.root);
        self.remove_old();
    }

    /// Removes an upload.
    pub fn remove(&self, sha256: &str) -> Result<(), UploadError> {
        atomic_file::remove_folder(&self.find(sha256)?).map_err(self.io())?;
        lock(&self.sizes).stored.remove(sha256);
        Ok(())
    }

    fn io(&self) -> impl Fn(std::io::Error) -> UploadError + '_ {
        |source| match disk::is_removed(&source) {
            true => UploadError::Removed(source),
            false => UploadError::Io {
                path: self.root.clone(),
                source,
            },
        }
    }

    /// The folder of an upload.
    pub fn find(&self, sha256: &str) -> Result<PathBuf, UploadError> {
        let unknown = || UploadError::Unknown {
            sha256: sha256.chars().take(64).collect(),
        };
        let dir = self.root.join(sha256);
        (is_sha256(sha256) && dir.is_dir())
            .then_some(dir)
            .ok_or_else(unknown)
    }

    /// Stores an unpacked adapter of `bytes` bytes under its hash.
    pub fn store(
        &self,
        unpacked: AtomicFolder,
        sha256: &str,
        owner: &Owner,
        bytes: u64,
    ) -> Result<(), UploadError> {
        self.folder.check().map_err(self.io())?;
        let dir = self.root.join(sha256);
        // The same adapter again: its time starts anew.
        if dir.exists() {
            atomic_file::remove_folder(&dir).map_err(self.io())?;
        }
        unpacked.commit(&dir).map_err(self.io())?;
        let size = UploadSize {
            owner: owner.name().map(str::to_owned),
            bytes,
        };
        lock(&self.sizes).stored.insert(sha256.to_owned(), size);
        self.remove_old();
        Ok(())
    }

    /// Removes uploads that are too old, and the oldest if there are too many.
    fn remove_old(&self) {
        let mut uploads: Vec<(Duration, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_folder || !entry.file_name().to_str().is_some_and(is_sha256) {
                continue;
            }
            let age = entry.metadata().and_then(|data| data.modified());
            let age = age
                .ok()
                .and_then(|time| time.elapsed().ok())
                .unwrap_or_default();
            uploads.push((age, entry.path()));
        }
        uploads.sort();
        let mut left = BTreeMap::new();
        for (at, (age, path)) in uploads.into_iter().enumerate() {
            // What cannot be removed counts, and the next call tries again.
            let is_old = at >= MAX_UPLOADS || age > MAX_AGE;
            if !is_old || atomic_file::remove_folder(&path).is_err() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                left.insert(name.into_owned(), folder_bytes(&path));
            }
        }
        let mut sizes = lock(&self.sizes);
        let known = std::mem::take(&mut sizes.stored);
        let with_owner = |(sha256, bytes): (String, u64)| {
            let owner = known.get(&sha256).and_then(|size| size.owner.clone());
            (sha256, UploadSize { owner, bytes })
        };
        sizes.stored = left.into_iter().map(with_owner).collect();
    }
}

/// The bytes of the files in a folder.
pub(crate) fn folder_bytes(folder: &std::path::Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// Whether `name` is a content hash as this server writes it.
fn is_sha256(name: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.len() == 64 && name.bytes().all(hex)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use formats::disk::faults::for_each_fault;

    use super::*;

    #[test]
    fn only_the_latest_uploads_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let uploads = UploadStore::new(root.path().to_owned());
        for n in 0..MAX_UPLOADS + 3 {
            uploads
                .store(
                    uploads.new_folder().unwrap(),
                    &format!("{n:064x}"),
                    &Owner::everyone(),
                    0,
                )
                .unwrap();
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), MAX_UPLOADS);
        for wrong in ["", "..", "../..", &"0".repeat(63), &"f".repeat(64)] {
            assert!(uploads.find(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn uploads_of_a_key_are_within_its_bytes() {
        let root = tempfile::tempdir().unwrap();
        let uploads = UploadStore::new(root.path().to_owned());
        let owner = |name: &str| {
            let mut quotas = auth::Quotas::default();
            quotas.set(Resource::UploadBytes, Some(100));
            Owner::key(name, quotas)
        };
        let stored = |name: &str, bytes: usize, digit: &str| -> Result<(), UploadError> {
            let mut archive = uploads.new_archive(owner(name))?;
            archive.write(&vec![0; bytes])?;
            let dir = uploads.new_folder()?;
            let weights = dir.path().join("weights");
            fs::write(&weights, vec![0; bytes]).unwrap();
            let bytes = folder_bytes(dir.path());
            archive.grow_to(bytes)?;
            drop(archive);
            uploads.store(dir, &digit.repeat(64), &owner(name), bytes)
        };
        stored("one", 60, "1").unwrap();
        let message = stored("one", 41, "2").unwrap_err().to_string();
        assert!(
            message.starts_with(
                "key one has 60 bytes of uploaded adapters, and this upload needs at least 41; it may have 100 (`upload_bytes`"
            ),
            "{message}"
        );
        // Parallel uploads count together, and another key has its own bytes.
        let mut first = uploads.new_archive(owner("one")).unwrap();
        first.write(&[0; 30]).unwrap();
        assert!(stored("one", 20, "2").is_err());
        stored("two", 100, "3").unwrap();
        drop(first);
        uploads.remove(&"1".repeat(64)).unwrap();
        stored("one", 100, "2").unwrap();
    }

    #[test]
    fn only_uploads_and_leftovers_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let uploads = UploadStore::new(root.path().to_owned());
        let old = std::time::SystemTime::now() - 2 * MAX_AGE;
        let folder = |name: &str| {
            let dir = root.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::File::open(&dir).unwrap().set_modified(old).unwrap();
        };
        for n in 0..MAX_UPLOADS + 3 {
            folder(&format!("mine-{n}"));
        }
        folder(&"A".repeat(64));
        folder(".tmpAb12Cd");
        fs::write(root.path().join("notes.txt"), "").unwrap();
        let before = fs::read_dir(root.path()).unwrap().count();
        folder(&"0".repeat(64));
        folder(&format!("{}killed", atomic_file::MARK));
        uploads.remove_stale();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), before);
    }

    #[test]
    fn upload_is_complete_or_missing_after_every_fault() {
        let store = |uploads: &UploadStore, sha256: &str| {
            let mut archive = uploads.new_archive(Owner::everyone())?;
            archive.write(b"zip")?;
            let dir = uploads.new_folder()?;
            for name in ["config", "weights"] {
                let file = disk::create(&dir.path().join(name));
                let write = |mut file: disk::DiskFile| {
                    file.write_all(b"content")?;
                    file.sync_all()
                };
                file.and_then(write).map_err(uploads.io())?;
            }
            uploads.store(dir, sha256, &Owner::everyone(), 14)
        };
        for_each_fault(|injection| {
            let root = tempfile::tempdir().unwrap();
            let uploads = UploadStore::new(root.path().join("uploads"));
            let (old, new) = ("0".repeat(64), "1".repeat(64));
            store(&uploads, &old).unwrap();
            let stored = injection.run(|| store(&uploads, &new));
            assert!(uploads.find(&old).is_ok(), "{injection:?}");
            match uploads.find(&new) {
                Ok(dir) => {
                    for name in ["config", "weights"] {
                        assert_eq!(fs::read(dir.join(name)).unwrap(), b"content");
                    }
                }
                Err(_) => assert!(stored.is_err(), "{injection:?}"),
            }
            store(&uploads, &new).unwrap();
        });
    }
}
