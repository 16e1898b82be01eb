//! Adapters as immutable blobs: `adapters/<sha256>/` with the two files of a PEFT folder and, written last, `manifest.json`.
//! Without its manifest a blob is not there, whatever else is. Of blobs that lie elsewhere there are copies, kept within a bound.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::peft::{self, AdapterConfig, PeftError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::copies;
use crate::entry::AdapterRecord;
use crate::error::{ReadError, RegistryError};
use crate::store::Store;

/// The folder of all blobs.
pub(crate) const FOLDER: &str = "adapters";
/// The file that makes a blob one.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The most bytes of an adapter's weights.
pub const MAX_WEIGHTS: u64 = 1 << 30;
/// The most bytes of an adapter's configuration.
const MAX_CONFIG: u64 = 1 << 20;
/// What the base that an adapter was trained on is recorded as.
pub const BASE_KEY: &str = "lory.base_sha256";

/// What a blob holds, so that a reader need not trust names.
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

/// An adapter read from a PEFT folder: the very bytes that were checked, so that nothing else is published.
pub struct Content {
    /// What they say.
    pub adapter: peft::Adapter,
    /// Its content hash, in hex.
    pub sha256: String,
    config: Vec<u8>,
    weights: Vec<u8>,
}

impl Content {
    /// Reads a PEFT folder.
    ///
    /// # Errors
    /// [`RegistryError::Adapter`] for what is no adapter that this decoder runs, naming file and field;
    /// [`RegistryError::TooLarge`] above [`MAX_WEIGHTS`].
    pub fn read(dir: &Path) -> Result<Content, RegistryError> {
        let path = dir.join(peft::CONFIG_FILE);
        let config = limited(&path, MAX_CONFIG)?;
        let parsed = AdapterConfig::parse(&config, &path)?;
        let path = dir.join(peft::WEIGHTS_FILE);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(PeftError::Pickle {
                path: dir.to_owned(),
            }
            .into());
        }
        let weights = limited(&path, MAX_WEIGHTS)?;
        let adapter = peft::Adapter::parse(parsed, &weights, &path)?;
        Ok(Content {
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

fn limited(path: &Path, limit: u64) -> Result<Vec<u8>, RegistryError> {
    use std::io::Read as _;
    let io = |source| PeftError::Io {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(io)?;
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

/// Whether the blob is there.
pub(crate) fn exists(store: &Store, sha256: &str) -> Result<bool, RegistryError> {
    Ok(store.get(&path(sha256, MANIFEST))?.is_some())
}

/// Whether all of its files are there, without reading them.
pub(crate) fn complete(store: &Store, sha256: &str) -> Result<bool, RegistryError> {
    let files = store.list(&format!("{FOLDER}/{sha256}"))?;
    let there = |name: &str| files.iter().any(|file| file.name == name);
    Ok([peft::CONFIG_FILE, peft::WEIGHTS_FILE, MANIFEST]
        .into_iter()
        .all(there))
}

/// Makes the blob be there, whole. One that is there is read and compared; one that is broken is written anew, with the bytes
/// that its name says.
pub(crate) fn write(store: &Store, content: &Content) -> Result<(), RegistryError> {
    let sha256 = &content.sha256;
    if !matches!(read(store, sha256), Ok(Some(_))) {
        store.put(&path(sha256, peft::CONFIG_FILE), content.config.clone())?;
        store.put(&path(sha256, peft::WEIGHTS_FILE), content.weights.clone())?;
    }
    // Written again where it was there: a collection of garbage goes by its age.
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

/// The two files of a blob, whose hash was right.
pub(crate) struct Files {
    config: Vec<u8>,
    weights: Vec<u8>,
}

/// Reads both files of a blob and holds them to its name; none where it is not there.
pub(crate) fn read(store: &Store, sha256: &str) -> Result<Option<Files>, RegistryError> {
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
    Ok(Some(Files { config, weights }))
}

/// Where the files of a blob come from, for an [`crate::AdapterRef`].
#[derive(Clone)]
pub(crate) struct Source {
    pub store: Arc<Store>,
    /// Whether the files lie on this machine only after they were fetched.
    pub remote: bool,
}

impl Source {
    /// Fetches the blob into `dir`, where it is not there yet.
    fn fetch(&self, sha256: &str, dir: &Path) -> Result<(), ReadError> {
        if !self.remote {
            return Ok(());
        }
        if dir.join(peft::CONFIG_FILE).exists() {
            copies::used(dir);
            return Ok(());
        }
        let missing = || RegistryError::Missing {
            path: format!("{}/{FOLDER}/{sha256}", self.store.name),
        };
        let Files { config, weights } = read(&self.store, sha256)?.ok_or_else(missing)?;
        let io = |source| RegistryError::Folder {
            path: dir.to_owned(),
            source,
        };
        let cache = dir.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(cache).map_err(io)?;
        let fetched = tempfile::Builder::new()
            .prefix(copies::UNFINISHED)
            .tempdir_in(cache)
            .map_err(io)?;
        let file = |name: &str, bytes: &[u8]| std::fs::write(fetched.path().join(name), bytes);
        file(peft::WEIGHTS_FILE, &weights).map_err(io)?;
        file(peft::CONFIG_FILE, &config).map_err(io)?;
        match std::fs::rename(fetched.path(), dir) {
            Ok(()) => {
                copies::prune(cache, dir, copies::MAX_BYTES);
                Ok(())
            }
            // Somebody else was faster.
            Err(_) if dir.join(peft::CONFIG_FILE).exists() => Ok(()),
            Err(source) => Err(io(source).into()),
        }
    }
}

/// Reads the adapter whose files are, or will be, in `dir`, and holds it to its hash. `read` says what it read and its hash.
pub(crate) fn read_adapter<T>(
    dir: &Path,
    sha256: &str,
    source: Option<&Source>,
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
        // Overwritten with something that is no adapter at all.
        Err(error) if !source.remote => {
            return match peft::content_hash(dir) {
                Ok(found) if found != sha256 => Err(corrupt(found).into()),
                _ => Err(error.into()),
            };
        }
        _ => {}
    }
    // A copy went bad; the original may be good.
    let io = |source| RegistryError::Folder {
        path: dir.to_owned(),
        source,
    };
    match std::fs::remove_dir_all(dir) {
        // Somebody made room meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        removed => removed.map_err(io)?,
    }
    source.fetch(sha256, dir)?;
    match read(dir)? {
        (adapter, found) if found == sha256 => Ok(adapter),
        (_, found) => Err(corrupt(found).into()),
    }
}

/// The folder of a blob's files on this machine.
pub(crate) fn folder(root: &Path, sha256: &str) -> PathBuf {
    root.join(sha256)
}
