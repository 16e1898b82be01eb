//! The errors of this crate, one variant for each problem that a user can fix.
//!
//! Does not know exit codes or HTTP statuses; the command line and the server map each variant once.

use std::io;
use std::path::{Path, PathBuf};

use dataset::{DatasetError, RowLocation};

/// Everything that a training run, a linter or an evaluation may refuse or fail at.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file could not be written; what was there before is untouched.
    #[error(
        "cannot write {path}: {source}; the file that was there before is unchanged: \
         make room, let it be written or choose another folder, then run the same command again"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Rows cannot be read, or cannot be trained on.
    #[error("{0}")]
    Dataset(DatasetError),
    /// A training setting is out of its range or not supported.
    #[error("setting `{name}`: {message}")]
    Setting {
        /// The setting, as it is written in `persona.toml`.
        name: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// A pattern of an evaluation's tone markers does not parse.
    #[error("tone marker `{pattern}`: {message}")]
    Marker {
        /// The pattern as written.
        pattern: String,
        /// The error of the regex parser.
        message: String,
    },
    /// The patterns of an evaluation's tone markers are too large together.
    #[error("tone markers: {0}")]
    Markers(String),
    /// A loss or a gradient is not a finite number: the run has diverged.
    #[error(
        "adapter `{adapter}`, step {step}: the {what} is not a finite number; \
         the run has diverged: lower the learning rate (`lr`) or look at the data of this step"
    )]
    NotFinite {
        /// The adapter's name.
        adapter: String,
        /// Its optimizer step, from 1.
        step: u64,
        /// Which number.
        what: &'static str,
    },
    /// The checkpoint cannot be parsed.
    #[error("{path}: the checkpoint is damaged ({message}); remove it to start over")]
    CheckpointBroken {
        /// The checkpoint file.
        path: PathBuf,
        /// Where it is wrong.
        message: String,
    },
    /// The checkpoint belongs to a run of other settings, data or base.
    #[error(
        "{path}: the checkpoint is of another run: {}; restore it to continue, or remove the checkpoint to start over",
        differences.join("; ")
    )]
    CheckpointDiffers {
        /// The checkpoint file.
        path: PathBuf,
        /// The differences, in words.
        differences: Vec<String>,
    },
    /// The tasks of a run do not fit together or lack something.
    #[error("cannot start the run: {0}")]
    Task(String),
    /// The run would not fit into memory.
    #[error(
        "the run needs {} MiB of memory in addition to what it holds already, and {} MiB are {whose}; {advice}",
        needed.div_ceil(1 << 20), available >> 20
    )]
    Memory {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that there are.
        available: u64,
        /// What limits them, as in "free on this machine".
        whose: &'static str,
        /// What to change.
        advice: String,
    },
    /// A yield point ([`model::YieldPoint`]) or the flag of [`dataset::stop`] stopped the work, and a run ends as an interrupted one.
    #[error("stopped before it was done")]
    Stopped,
    /// The model that computes losses and gradients failed.
    #[error("the model failed: {0}")]
    Learner(String),
}

impl TrainError {
    /// A row's error, at `location`, with no field named.
    pub(crate) fn row(location: &RowLocation, message: impl Into<String>) -> Self {
        TrainError::Dataset(DatasetError::row(location, message))
    }

    /// The error of a data file as a whole.
    pub(crate) fn data(file: impl Into<String>, message: impl Into<String>) -> Self {
        TrainError::Dataset(DatasetError::File {
            file: file.into(),
            message: message.into(),
        })
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| TrainError::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| TrainError::Write {
            path: path.to_owned(),
            source,
        }
    }
}

impl From<DatasetError> for TrainError {
    fn from(error: DatasetError) -> TrainError {
        match error {
            DatasetError::Stopped => TrainError::Stopped,
            error => TrainError::Dataset(error),
        }
    }
}
