//! Adapters that clients upload: each waits in a folder named by its hash until it is published, forgotten, or too old. Nothing
//! else in the folder of uploads is ever removed.

mod error;
mod sizes;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use auth::Owner;
use formats::atomic_file::{self, AtomicFile, AtomicFolder};
use formats::disk::{self, LastingFolder};
use formats::peft::{self, Dtype};

pub use error::UploadError;
pub use sizes::{MAX_ARCHIVE, MAX_STORED, ReceivedArchive};
use sizes::{UploadSize, UploadSizes, lock};

/// The most uploads of a key that wait to be published; beyond that its oldest is removed.
const MAX_UPLOADS: usize = 8;
/// The most uploads of all keys that wait to be published, with those that are being received.
const MAX_ALL_UPLOADS: usize = 64;
/// How long an upload waits.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

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
    /// Held while stored uploads are added or removed, so that the sizes are those of the folder.
    changing: Mutex<()>,
}

impl UploadStore {
    pub fn new(root: PathBuf) -> UploadStore {
        UploadStore {
            folder: LastingFolder::new(&root),
            root,
            sizes: Arc::default(),
            changing: Mutex::default(),
        }
    }

    /// Checks that the folder is still there, if it has existed.
    pub fn check(&self) -> std::io::Result<()> {
        self.folder.check()
    }

    /// An empty file for an archive of `owner` that is being received; it is removed on drop.
    pub fn new_archive(&self, owner: Owner) -> Result<ReceivedArchive, UploadError> {
        self.folder.create().map_err(self.io())?;
        self.remove_expired();
        let mut sizes = lock(&self.sizes);
        if sizes.stored.len() + sizes.receiving.len() >= MAX_ALL_UPLOADS {
            return Err(UploadError::TooMany {
                limit: MAX_ALL_UPLOADS,
            });
        }
        let file = AtomicFile::create_private_in(&self.root).map_err(self.io())?;
        let number = sizes.next;
        sizes.next += 1;
        let size = UploadSize::of(&owner, 0);
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
        self.remove_expired();
    }

    fn remove_expired(&self) {
        let _changing = lock(&self.changing);
        self.remove_old(None);
    }

    /// Removes an upload.
    pub fn remove(&self, sha256: &str) -> Result<(), UploadError> {
        let _changing = lock(&self.changing);
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

    /// Stores an unpacked adapter of `bytes` bytes under its hash. The oldest of the owner makes room.
    pub fn store(
        &self,
        unpacked: AtomicFolder,
        sha256: &str,
        owner: &Owner,
        bytes: u64,
    ) -> Result<(), UploadError> {
        self.folder.check().map_err(self.io())?;
        let dir = self.root.join(sha256);
        let is_intact = dir.exists() && peft::content_hash(&dir).is_ok_and(|found| found == sha256);
        let _changing = lock(&self.changing);
        if is_intact && dir.exists() {
            // The same adapter again stays where it is, so that it is not lost if the disk fails. Its time starts anew.
            drop(unpacked);
            // If the time cannot be set, it only expires earlier.
            let _ = fs::File::open(&dir).and_then(|dir| dir.set_modified(SystemTime::now()));
        } else {
            if dir.exists() {
                atomic_file::remove_folder(&dir).map_err(self.io())?;
            }
            unpacked.commit(&dir).map_err(self.io())?;
        }
        let mut sizes = lock(&self.sizes);
        let stored = sizes.stored.entry(sha256.to_owned()).or_default();
        stored.owners.extend(owner.name().map(str::to_owned));
        stored.bytes = bytes;
        drop(sizes);
        self.remove_old(Some(owner));
        Ok(())
    }

    /// Removes uploads that are too old, and the oldest of `owner` if it has too many. An upload that another key sent too stays.
    fn remove_old(&self, owner: Option<&Owner>) {
        let mut uploads: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_folder || !entry.file_name().to_str().is_some_and(is_sha256) {
                continue;
            }
            let modified = entry.metadata().and_then(|data| data.modified());
            uploads.push((modified.unwrap_or_else(|_| SystemTime::now()), entry.path()));
        }
        uploads.sort_by(|(one, _), (other, _)| other.cmp(one));
        let known = lock(&self.sizes).stored.clone();
        let mut left = BTreeMap::new();
        let mut own = 0;
        for (modified, path) in uploads {
            let sha256 = path.file_name().unwrap_or_default().to_string_lossy();
            let mut size = known.get(&*sha256).cloned().unwrap_or_default();
            let mut is_old = modified.elapsed().is_ok_and(|age| age > MAX_AGE);
            if let Some(owner) = owner.filter(|owner| size.is_of(owner)) {
                own += 1;
                if own > MAX_UPLOADS {
                    owner.name().map(|name| size.owners.remove(name));
                    is_old |= size.owners.is_empty();
                }
            }
            // What cannot be removed counts, and the next call tries again.
            if !is_old || atomic_file::remove_folder(&path).is_err() {
                size.bytes = folder_bytes(&path);
                left.insert(sha256.into_owned(), size);
            }
        }
        lock(&self.sizes).stored = left;
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

    use auth::Resource;
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

    fn key(name: &str) -> Owner {
        Owner::key(name, auth::Quotas::default())
    }

    /// Stores an adapter that is not one, with 7 bytes.
    fn store(uploads: &UploadStore, owner: &Owner, sha256: &str) -> Result<(), UploadError> {
        let mut archive = uploads.new_archive(owner.clone())?;
        archive.write(b"zip")?;
        let dir = uploads.new_folder()?;
        disk::write(&dir.path().join("weights"), b"content").map_err(uploads.io())?;
        archive.grow_to(7)?;
        drop(archive);
        uploads.store(dir, sha256, owner, 7)
    }

    #[test]
    fn a_key_evicts_its_own_uploads_only() {
        let root = tempfile::tempdir().unwrap();
        let uploads = UploadStore::new(root.path().to_owned());
        let sha256 = |n: usize| format!("{n:064x}");
        let shared = sha256(1000);
        store(&uploads, &key("two"), &sha256(999)).unwrap();
        store(&uploads, &key("two"), &shared).unwrap();
        // An adapter that both sent belongs to both.
        store(&uploads, &key("one"), &shared).unwrap();
        for n in 0..20 {
            store(&uploads, &key("one"), &sha256(n)).unwrap();
        }
        assert!(uploads.find(&sha256(999)).is_ok() && uploads.find(&shared).is_ok());
        let of_one = (0..20).filter(|n| uploads.find(&sha256(*n)).is_ok());
        assert_eq!(of_one.collect::<Vec<_>>(), (12..20).collect::<Vec<_>>());
        let usage = |name: &str| lock(&uploads.sizes).usage(&key(name)).own;
        assert_eq!((usage("one"), usage("two")), (8 * 7, 2 * 7));
    }

    #[test]
    fn uploads_of_all_keys_are_bounded_and_expire() {
        let root = tempfile::tempdir().unwrap();
        let uploads = UploadStore::new(root.path().to_owned());
        for n in 0..64 {
            let owner = key(&format!("key-{}", n / 8));
            store(&uploads, &owner, &format!("{n:064x}")).unwrap();
        }
        let refused = uploads.new_archive(key("next")).map(drop).unwrap_err();
        let message = refused.to_string();
        assert!(message.contains("64 uploaded adapters"), "{message}");
        // One that is received counts, too.
        uploads.remove(&"0".repeat(64)).unwrap();
        let archive = uploads.new_archive(key("next")).unwrap();
        assert!(uploads.new_archive(key("last")).is_err());
        drop(archive);
        // Old ones make room before anything is refused.
        let old = std::time::SystemTime::now() - 2 * MAX_AGE;
        for entry in fs::read_dir(root.path()).unwrap() {
            let dir = fs::File::open(entry.unwrap().path()).unwrap();
            dir.set_modified(old).unwrap();
        }
        let _one = uploads.new_archive(key("next")).unwrap();
        let _two = uploads.new_archive(key("next")).unwrap();
        assert_eq!(lock(&uploads.sizes).usage(&key("key-1")).all, 0);
    }

    #[test]
    fn adapter_that_is_sent_again_is_found_after_every_fault() {
        let fill = |dir: &std::path::Path| -> std::io::Result<()> {
            disk::write(&dir.join("adapter_config.json"), b"{}")?;
            disk::write(&dir.join("adapter_model.safetensors"), b"content")
        };
        for_each_fault(|injection| {
            let root = tempfile::tempdir().unwrap();
            let uploads = UploadStore::new(root.path().join("uploads"));
            let mut archive = uploads.new_archive(key("one")).unwrap();
            archive.write(b"zip").unwrap();
            let first = uploads.new_folder().unwrap();
            fill(first.path()).unwrap();
            let sha256 = formats::peft::content_hash(first.path()).unwrap();
            uploads.store(first, &sha256, &key("one"), 9).unwrap();
            let old = std::time::SystemTime::now() - MAX_AGE / 2;
            let dir = uploads.find(&sha256).unwrap();
            fs::File::open(&dir).unwrap().set_modified(old).unwrap();
            let again = injection.run(|| {
                let second = uploads.new_folder()?;
                fill(second.path()).map_err(uploads.io())?;
                uploads.store(second, &sha256, &key("two"), 9)
            });
            let dir = uploads.find(&sha256).unwrap();
            let found = formats::peft::content_hash(&dir).unwrap();
            assert_eq!(found, sha256, "{injection:?}");
            // Its time starts anew.
            let age = dir.metadata().unwrap().modified().unwrap().elapsed();
            assert!(again.is_err() || age.unwrap() < MAX_AGE / 4);
        });
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
