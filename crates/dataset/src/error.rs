//! The errors of this crate, one variant for each problem that a user can fix.
//!
//! Does not know exit codes or HTTP statuses; the command line and the server map each variant once.

use std::io;
use std::path::PathBuf;

use crate::data_file::DataFileError;
use crate::location::RowLocation;

/// Why rows cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
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
        /// What is wrong with the first of them, each a [`DatasetError::Row`].
        first: Vec<DatasetError>,
    },
    /// A data file as a whole is not usable.
    #[error("{file}: {message}")]
    File {
        /// The data file.
        file: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The names of the columns do not fit together.
    #[error("setting `columns`: {0}")]
    Columns(String),
    /// The flag was set that ends the work ([`crate::stop`]).
    #[error("stopped before it was done")]
    Stopped,
}

impl DatasetError {
    /// A row's error, at `location`, with no field named.
    #[must_use]
    pub fn row(location: &RowLocation, message: impl Into<String>) -> Self {
        DatasetError::Row {
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
        DatasetError::Row {
            file: location.file.to_string(),
            line: location.line,
            field: Some(field.into()),
            message: message.into(),
        }
    }
}

fn listed(first: &[DatasetError], count: usize) -> String {
    let mut lines: String = first.iter().map(|error| format!("\n  {error}")).collect();
    if count > first.len() {
        lines += &format!("\n  and {} more", count - first.len());
    }
    lines
}

impl From<DataFileError> for DatasetError {
    fn from(error: DataFileError) -> DatasetError {
        match error {
            DataFileError::Read { path, source } => DatasetError::Read { path, source },
            DataFileError::Unusable { file, reason } => DatasetError::File {
                file,
                message: reason.to_string(),
            },
        }
    }
}
