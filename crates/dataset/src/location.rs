//! The file and line of a row, as data errors and lint findings name them.

use std::fmt;
use std::sync::Arc;

/// The location of a row in its data file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowLocation {
    /// Path of the data file, as the caller gave it.
    pub file: Arc<str>,
    /// Line number, from 1.
    pub line: usize,
}

impl fmt::Display for RowLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
