//! Text and JSON files of a model's folder, read with a limit on their size.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file that could not be read. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file could not be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file beyond the limit.
    #[error("{}: {found} bytes; at most {limit} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A file that is not JSON.
    #[error("{}: not JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// A JSON file of at most `limit` bytes.
pub(crate) fn read_json(path: &Path, limit: u64) -> Result<Value, FileError> {
    let text = read_text(path, limit)?;
    serde_json::from_str(&text).map_err(|source| FileError::Json {
        path: path.to_owned(),
        source,
    })
}

/// A text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    let io = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = crate::git_lfs::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    let mut text = String::new();
    // One byte more than the limit, so that a file that grows while it is read is noticed.
    let read = file.take(limit + 1).read_to_string(&mut text).map_err(io)?;
    if found > limit || read as u64 > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            found: found.max(read as u64),
            limit,
        });
    }
    if text.starts_with('\u{feff}') {
        // A byte order mark, as editors on Windows write it.
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_mark_of_a_file_is_skipped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}{\"a\": 1}").unwrap();
        assert_eq!(read_json(file.path(), 100).unwrap()["a"], 1);
    }
}
