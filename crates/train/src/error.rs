//! The errors of this crate, one variant for each problem that a user can fix.
//!
//! Does not know exit codes or HTTP statuses; the command line and the server map each variant once.

use std::io;
use std::path::{Path, PathBuf};

use formats::data_file::DataFileError;

use crate::location::RowLocation;

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
    /// A row of a data file is not what it should be.
    #[error("{file}:{line}: {}{message}", field.as_ref().map(|f| format!("field `{f}`: ")).unwrap_or_default())]
    Row {
        /// The data file.
        file: String,
        /// Its line, from 1.
        line: usize,
        /// The JSON field at fault, where one is.
        field: Option<String>,
        /// What is wrong and what to do.
        message: String,
    },
    /// Several rows of a data file are not what they should be.
    #[error("{file}: {count} lines are broken:{}", listed(first, *count))]
    Rows {
        /// The data file.
        file: String,
        /// How many lines are broken.
        count: usize,
        /// What is wrong with the first of them, each a [`TrainError::Row`].
        first: Vec<TrainError>,
    },
    /// A data file as a whole is not usable.
    #[error("{file}: {message}")]
    Data {
        /// The data file.
        file: String,
        /// What is wrong and what to do.
        message: String,
    },
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
    /// A yield point stopped the run ([`model::YieldPoint`]), which then ends as an interrupted one.
    #[error("stopped before it was done")]
    Stopped,
    /// The model that computes losses and gradients failed.
    #[error("the model failed: {0}")]
    Learner(String),
}

impl TrainError {
    /// A row's error, at `location`, with no field named.
    pub(crate) fn row(location: &RowLocation, message: impl Into<String>) -> Self {
        TrainError::Row {
            file: location.file.to_string(),
            line: location.line,
            field: None,
            message: message.into(),
        }
    }

    /// A row's error at one field.
    pub(crate) fn field(
        location: &RowLocation,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        TrainError::Row {
            file: location.file.to_string(),
            line: location.line,
            field: Some(field.into()),
            message: message.into(),
        }
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

fn listed(first: &[TrainError], count: usize) -> String {
    let mut lines: String = first.iter().map(|error| format!("\n  {error}")).collect();
    if count > first.len() {
        lines += &format!("\n  and {} more", count - first.len());
    }
    lines
}

impl From<DataFileError> for TrainError {
    fn from(error: DataFileError) -> TrainError {
        match error {
            DataFileError::Read { path, source } => TrainError::Read { path, source },
            DataFileError::Unusable { file, reason } => TrainError::Data {
                file,
                message: reason.to_string(),
            },
        }
    }
}
