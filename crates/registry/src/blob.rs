//! Adapters as immutable blobs: `adapters/<sha256>/` with the two files of a PEFT folder and, written last, `manifest.json`.
//! A blob exists only with its manifest. Blobs of a remote store are copied to this machine when they are needed
//! (`blob_cache`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::atomic_file::{self, AtomicFolder};
use formats::disk;
use formats::peft::{self, AdapterConfig, PeftError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::blob_cache;
use crate::error::{ReadError, RegistryError};
use crate::store::Store;

/// The folder of all blobs.
pub(crate) const FOLDER: &str = "adapters";
/// The file that completes a blob.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The most bytes of an adapter's weights.
pub const MAX_WEIGHTS: u64 = 1 << 30;
/// The most bytes of an adapter's configuration.
const MAX_CONFIG: u64 = 1 << 20;
/// The metadata key under which an adapter records the sha256 of its base.
pub const BASE_KEY: &str = "lory.base_sha256";

/// The contents of a blob, so that a reader need not trust its path.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    sha256: String,
    files: Vec<ManifestFile>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ManifestFile {
    name: String,
    bytes: u64,
}

/// An adapter as the log records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecord {
    /// Its content hash (see [`formats::peft::content_hash`]), 64 hexadecimal digits.
    pub sha256: String,
    /// The size of its weights file.
    pub bytes: u64,
    /// The sha256 of the base that it was trained on, if it records one.
    pub base_sha256: Option<String>,
}

/// An adapter read from a PEFT folder, with the bytes that were checked, so that exactly these are published.
pub struct AdapterContent {
    /// The parsed adapter.
    pub adapter: peft::Adapter,
    /// Its content hash, in hex.
    pub sha256: String,
    config: Vec<u8>,
    weights: Vec<u8>,
}

impl AdapterContent {
    /// Reads a PEFT folder.
    ///
    /// # Errors
    /// [`RegistryError::Adapter`] for an adapter that this decoder cannot run, naming file and field;
    /// [`RegistryError::TooLarge`] above [`MAX_WEIGHTS`].
    pub fn read(dir: &Path) -> Result<AdapterContent, RegistryError> {
        let path = dir.join(peft::CONFIG_FILE);
        let config = read_limited(&path, MAX_CONFIG)?;
        peft::refuse_other_formats(dir)?;
        let parsed = AdapterConfig::parse(&config, &path)?;
        let path = dir.join(peft::WEIGHTS_FILE);
        let weights = read_limited(&path, MAX_WEIGHTS)?;
        let adapter = peft::Adapter::parse(parsed, &weights, &path)?;
        Ok(AdapterContent {
            adapter,
            sha256: hash(&config, &weights),
            config,
            weights,
        })
    }

    /// The sha256 of the base that it was trained on, if it records one.
    #[must_use]
    pub fn base_sha256(&self) -> Option<&str> {
        self.adapter.metadata.get(BASE_KEY).map(String::as_str)
    }

    pub(crate) fn record(&self) -> AdapterRecord {
        AdapterRecord {
            sha256: self.sha256.clone(),
            bytes: self.weights.len() as u64,
            base_sha256: self.base_sha256().map(str::to_owned),
        }
    }
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, RegistryError> {
    use std::io::Read as _;
    let io = |source| PeftError::Io {
        path: path.to_owned(),
        source,
    };
    let file = formats::git_lfs::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    match bytes.len() as u64 {
        found if found > limit => Err(RegistryError::TooLarge {
            path: path.to_owned(),
            limit,
        }),
        _ => Ok(bytes),
    }
}

/// The content hash of the two files (see [`peft::content_hash`]), in hex.
fn hash(config: &[u8], weights: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(config);
    hasher.update(weights);
    base16ct::lower::encode_string(&hasher.finalize())
}

/// The bytes of 64 hexadecimal digits in lower case.
pub(crate) fn digest(text: &str) -> Option<[u8; 32]> {
    let mut sha256 = [0; 32];
    let decoded = base16ct::lower::decode(text, &mut sha256).ok()?;
    (decoded.len() == 32).then_some(sha256)
}

pub(crate) fn path(sha256: &str, file: &str) -> String {
    format!("{FOLDER}/{sha256}/{file}")
}

/// Whether the blob exists.
pub(crate) fn exists(store: &Store, sha256: &str) -> Result<bool, RegistryError> {
    Ok(store.get(&path(sha256, MANIFEST))?.is_some())
}

/// The names of its files. Without the manifest it does not exist, even if others do, so that is removed first.
pub(crate) const FILES: [&str; 3] = [MANIFEST, peft::CONFIG_FILE, peft::WEIGHTS_FILE];

/// Those of its files that exist; does not read them.
pub(crate) fn existing_files(
    store: &Store,
    sha256: &str,
) -> Result<Vec<&'static str>, RegistryError> {
    let found = store.list(&format!("{FOLDER}/{sha256}"))?;
    let exists = |name: &&str| found.iter().any(|file| file.name == *name);
    Ok(FILES.into_iter().filter(exists).collect())
}

/// Whether all of its files exist; does not read them.
pub(crate) fn complete(store: &Store, sha256: &str) -> Result<bool, RegistryError> {
    Ok(existing_files(store, sha256)?.len() == FILES.len())
}

/// Makes sure that the blob exists with the right content: one that exists is read and checked, and a damaged one is written
/// again.
pub(crate) fn write(store: &Store, content: &AdapterContent) -> Result<(), RegistryError> {
    let sha256 = &content.sha256;
    if !matches!(read(store, sha256), Ok(Some(_))) {
        // The weights first: they are the largest, and a store without room for them gets nothing.
        store.put(&path(sha256, peft::WEIGHTS_FILE), content.weights.clone())?;
        store.put(&path(sha256, peft::CONFIG_FILE), content.config.clone())?;
    }
    // Written again even if it exists: garbage collection looks at its age.
    let manifest = Manifest {
        format: 1,
        sha256: sha256.clone(),
        files: vec![
            ManifestFile {
                name: peft::CONFIG_FILE.to_owned(),
                bytes: content.config.len() as u64,
            },
            ManifestFile {
                name: peft::WEIGHTS_FILE.to_owned(),
                bytes: content.weights.len() as u64,
            },
        ],
    };
    let bytes = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    store.put(&path(sha256, MANIFEST), bytes)
}

/// The two files of a blob, with the right hash.
pub(crate) struct BlobFiles {
    config: Vec<u8>,
    weights: Vec<u8>,
}

/// Reads both files of a blob and checks their hash; none if the blob does not exist.
pub(crate) fn read(store: &Store, sha256: &str) -> Result<Option<BlobFiles>, RegistryError> {
    if !exists(store, sha256)? {
        return Ok(None);
    }
    let file = |name: &str| {
        let bytes = store.get(&path(sha256, name));
        bytes.map(Option::unwrap_or_default)
    };
    let (config, weights) = (file(peft::CONFIG_FILE)?, file(peft::WEIGHTS_FILE)?);
    let found = hash(&config, &weights);
    if found != sha256 {
        return Err(RegistryError::Corrupt {
            path: format!("{}/{FOLDER}/{sha256}", store.name),
            found,
        });
    }
    Ok(Some(BlobFiles { config, weights }))
}

/// The store of a blob, for an [`crate::AdapterRef`].
#[derive(Clone)]
pub(crate) struct BlobSource {
    pub store: Arc<Store>,
    /// Whether the files must be fetched to this machine before they are read.
    pub remote: bool,
}

impl BlobSource {
    /// Fetches the blob into `dir` if it is not there yet.
    fn fetch(&self, sha256: &str, dir: &Path) -> Result<(), ReadError> {
        if !self.remote {
            return Ok(());
        }
        if dir.join(peft::CONFIG_FILE).exists() {
            blob_cache::touch(dir);
            return Ok(());
        }
        let missing = || RegistryError::Missing {
            path: format!("{}/{FOLDER}/{sha256}", self.store.name),
        };
        let BlobFiles { config, weights } = read(&self.store, sha256)?.ok_or_else(missing)?;
        let io = |source| RegistryError::Folder {
            path: dir.to_owned(),
            source,
        };
        let cache = dir.parent().unwrap_or(Path::new("."));
        disk::create_private_folders(cache).map_err(io)?;
        let fetched = AtomicFolder::create_in(cache).map_err(io)?;
        let file = |name: &str, bytes: &[u8]| disk::write(&fetched.path().join(name), bytes);
        file(peft::WEIGHTS_FILE, &weights).map_err(io)?;
        file(peft::CONFIG_FILE, &config).map_err(io)?;
        match fetched.commit(dir) {
            Ok(()) => {
                blob_cache::prune(cache, dir, blob_cache::MAX_BYTES);
                Ok(())
            }
            // Another process was faster.
            Err(_) if dir.join(peft::CONFIG_FILE).exists() => Ok(()),
            Err(source) => Err(io(source).into()),
        }
    }
}

/// Reads the adapter whose files are in `dir`, after fetching them if necessary, and checks its hash. `read` returns what it
/// read and the content hash.
pub(crate) fn read_adapter<T>(
    dir: &Path,
    sha256: &str,
    source: Option<&BlobSource>,
    read: impl Fn(&Path) -> Result<(T, String), PeftError>,
) -> Result<T, ReadError> {
    let Some(source) = source else {
        let (adapter, found) = read(dir)?;
        return match found == sha256 {
            true => Ok(adapter),
            false => Err(ReadError::Changed {
                path: dir.to_owned(),
                found,
            }),
        };
    };
    let corrupt = |found| RegistryError::Corrupt {
        path: dir.display().to_string(),
        found,
    };
    source.fetch(sha256, dir)?;
    if !source.remote && !dir.join(MANIFEST).exists() {
        let path = dir.display().to_string();
        return Err(RegistryError::Missing { path }.into());
    }
    match read(dir) {
        Ok((adapter, found)) if found == sha256 => return Ok(adapter),
        Ok((_, found)) if !source.remote => return Err(corrupt(found).into()),
        // Overwritten with something that is not an adapter.
        Err(error) if !source.remote => {
            return match peft::content_hash(dir) {
                Ok(found) if found != sha256 => Err(corrupt(found).into()),
                _ => Err(error.into()),
            };
        }
        _ => {}
    }
    // The copy is damaged; the original may be intact.
    let io = |source| RegistryError::Folder {
        path: dir.to_owned(),
        source,
    };
    match atomic_file::remove_folder(dir) {
        // Another process has removed the copy.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        removed => removed.map_err(io)?,
    }
    source.fetch(sha256, dir)?;
    match read(dir)? {
        (adapter, found) if found == sha256 => Ok(adapter),
        (_, found) => Err(corrupt(found).into()),
    }
}

/// The folder of a blob's files under `root`.
pub(crate) fn folder(root: &Path, sha256: &str) -> PathBuf {
    root.join(sha256)
}
