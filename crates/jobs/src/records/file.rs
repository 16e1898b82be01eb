//! The record of an uploaded file: one JSON file next to the client's file.

use dataset::{FieldReport, HoldOut};
use serde::{Deserialize, Serialize};

/// The record of an uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival.
    pub number: u64,
    /// The API key that uploaded it; `None` on a server without keys.
    pub owner: Option<String>,
    /// When it was uploaded, as a Unix time in seconds.
    pub created_at: u64,
    /// The client's file name, without folders.
    pub filename: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// The size of its content, in bytes after decompression; `None` in records of older versions, which were not compressed.
    #[serde(default)]
    pub content_bytes: Option<u64>,
    /// The number of its rows.
    pub rows: usize,
    /// Whether each row has a chosen and a rejected answer.
    pub pairs: bool,
    /// What decides which of its rows are held out; `None` in records of older versions.
    #[serde(default)]
    pub hold_out: Option<HoldOut>,
    /// What became of the fields of its rows.
    #[serde(default, skip_serializing_if = "FieldReport::is_empty")]
    pub fields: FieldReport,
}

impl StoredFile {
    /// The size of its content, in bytes after decompression.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes.unwrap_or(self.bytes)
    }
}
