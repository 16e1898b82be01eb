//! Adapters that clients upload: each waits in a folder named by its hash until it is published, forgotten, or too old.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use formats::peft::Dtype;
use registry::RegistryError;
use tempfile::{NamedTempFile, TempDir};

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
    pub fn new_archive(&self) -> Result<NamedTempFile, UploadError> {
        fs::create_dir_all(&self.root).map_err(self.io())?;
        NamedTempFile::new_in(&self.root).map_err(self.io())
    }

    /// An empty folder to unpack an archive into; it is removed on drop.
    pub fn new_folder(&self) -> Result<TempDir, UploadError> {
        TempDir::new_in(&self.root).map_err(self.io())
    }

    /// Removes an upload.
    pub fn remove(&self, sha256: &str) -> Result<(), UploadError> {
        fs::remove_dir_all(self.find(sha256)?).map_err(self.io())
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
        let digits = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        let dir = self.root.join(sha256);
        (digits && dir.is_dir()).then_some(dir).ok_or_else(unknown)
    }

    /// Stores an unpacked adapter under its hash.
    pub fn store(&self, unpacked: TempDir, sha256: &str) -> Result<(), UploadError> {
        let dir = self.root.join(sha256);
        // The same adapter again: its time starts anew.
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(self.io())?;
        }
        fs::rename(unpacked.keep(), &dir).map_err(self.io())?;
        self.remove_old();
        Ok(())
    }

    /// Removes uploads that are too old, and the oldest if there are too many.
    fn remove_old(&self) {
        let mut uploads: Vec<(Duration, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
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
                let _ = match path.is_dir() {
                    true => fs::remove_dir_all(&path),
                    false => fs::remove_file(&path),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_uploads_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let uploads = UploadStore::new(root.path().to_owned());
        for n in 0..MAX_UPLOADS + 3 {
            let dir = TempDir::new_in(root.path()).unwrap();
            uploads.store(dir, &format!("{n:064x}")).unwrap();
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), MAX_UPLOADS);
        for wrong in ["", "..", "../..", &"0".repeat(63), &"f".repeat(64)] {
            assert!(uploads.find(wrong).is_err(), "{wrong}");
        }
    }
}
