//! Files of rows: lines of JSON, JSON lists and tables, plain or compressed, and folders of them. Splits a file into records, in memory of a
//! fixed size; must not know what rows mean, except that a list of
//! turns on a line is one.

mod folder;
mod layout;
mod other_format;
mod records;
mod source;

use std::path::PathBuf;

pub use folder::{DataFiles, MAX_FOLDER_FILES, data_files};
pub use layout::{Layout, is_table};
pub use records::{MAX_COLUMNS, MAX_LINE, Record, Records};
pub use source::{ContentTooLarge, Counted, DataFile, MAX_ZSTD_WINDOW};

/// Why a file or a folder cannot be read as rows.
#[derive(Debug, thiserror::Error)]
pub enum DataFileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or the folder.
        path: PathBuf,
        /// The system's error, or that of the decompression.
        source: std::io::Error,
    },
    /// It is not a file of rows.
    #[error("{file}: {reason}")]
    Unusable {
        /// The name of the file or the folder.
        file: String,
        /// Why.
        reason: Unusable,
    },
}

/// Why something is not a file of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is in another encoding.
    #[error("the file is UTF-16; save it as UTF-8")]
    Utf16,
    /// It is in a format that is not read.
    #[error("the file is {name}, which is not read; {advice}")]
    Format {
        /// The format, with its article.
        name: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// It begins with an object that is not whole on its line.
    #[error(
        "a JSON object is on several lines; write each row on one line, or all rows as one list in [ and ] with nothing around it"
    )]
    SeveralLines,
    /// The folder has too many files.
    #[error("the folder has more than {MAX_FOLDER_FILES} data files; join some")]
    TooManyFiles,
    /// The folder has no data files.
    #[error(
        "the folder and the folders in it have no data files; their names end in .jsonl, .ndjson, .json, .csv or .tsv, and .gz or .zst behind it if they are compressed; convert other files, such as Parquet, to one of these"
    )]
    NoFiles,
}
