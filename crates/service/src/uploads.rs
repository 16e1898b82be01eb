//! Adapters that clients upload: each waits in a folder named by its hash until it is published, forgotten, or too old. Nothing
//! else in the folder of uploads is ever removed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use formats::atomic_file::{self, AtomicFile, AtomicFolder};
use formats::disk;
use formats::peft::Dtype;
use registry::RegistryError;

/// The most uploads that wait to be published; beyond that the oldest are removed.
const MAX_UPLOADS: usize = 8;
/// How long an upload waits.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

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
    /// There is no such upload.
    #[error("there is no upload {sha256}; it may have been published or forgotten: send it again")]
    Unknown {
        /// The requested hash.
        sha256: String,
    },
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
}

impl UploadStore {
    pub fn new(root: PathBuf) -> UploadStore {
        UploadStore { root }
    }

    /// An empty file for an archive that is being received; it is removed on drop.
    pub fn new_archive(&self) -> Result<AtomicFile, UploadError> {
        disk::create_folders(&self.root).map_err(self.io())?;
        AtomicFile::create_private_in(&self.root).map_err(self.io())
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
        atomic_file::remove_folder(&self.find(sha256)?).map_err(self.io())
    }

    fn io(&self) -> impl Fn(std::io::Error) -> UploadError + '_ {
        |source| UploadError::Io {
            path: self.root.clone(),
            source,
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

    /// Stores an unpacked adapter under its hash.
    pub fn store(&self, unpacked: AtomicFolder, sha256: &str) -> Result<(), UploadError> {
        let dir = self.root.join(sha256);
        // The same adapter again: its time starts anew.
        if dir.exists() {
            atomic_file::remove_folder(&dir).map_err(self.io())?;
        }
        unpacked.commit(&dir).map_err(self.io())?;
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
        for (at, (age, path)) in uploads.into_iter().enumerate() {
            if at >= MAX_UPLOADS || age > MAX_AGE {
                // The next call tries again.
                let _ = atomic_file::remove_folder(&path);
            }
        }
    }
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
                .store(uploads.new_folder().unwrap(), &format!("{n:064x}"))
                .unwrap();
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), MAX_UPLOADS);
        for wrong in ["", "..", "../..", &"0".repeat(63), &"f".repeat(64)] {
            assert!(uploads.find(wrong).is_err(), "{wrong}");
        }
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
            let mut archive = uploads.new_archive()?;
            archive.file().write_all(b"zip").map_err(uploads.io())?;
            let dir = uploads.new_folder()?;
            for name in ["config", "weights"] {
                let file = disk::create(&dir.path().join(name));
                let write = |mut file: disk::DiskFile| {
                    file.write_all(b"content")?;
                    file.sync_all()
                };
                file.and_then(write).map_err(uploads.io())?;
            }
            uploads.store(dir, sha256)
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
