//! What was judged of personas, kept under `LORY_HOME`: the results of `lory eval`, and what people voted. Knows no HTTP, no engine and
//! no personas: names are texts here.

mod evaluations;
mod votes;

use std::path::PathBuf;

pub use evaluations::{Evaluations, MAX_KEPT};
pub use votes::{MAX_PROMPT, MAX_VOTES, Tally, Vote, Votes, Winner};

/// Why something was not kept or not found.
#[derive(Debug, thiserror::Error)]
pub enum JudgementError {
    /// There is no folder.
    #[error(
        "there is nowhere to keep votes and evaluations; set LORY_HOME to a folder and start the server again"
    )]
    Off,
    /// There is no such evaluation.
    #[error("there is no evaluation {0:?}; GET /v1/evaluations lists them")]
    Unknown(String),
    /// As many votes are kept as may be.
    #[error("{MAX_VOTES} votes are kept already, as many as may be; move {} away to begin anew", path.display())]
    Full {
        /// Where they lie.
        path: PathBuf,
    },
    /// A file is not as it must be.
    #[error("{}:{line}: {message}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The folder cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
