//! The errors of reading and writing adapters.

use std::path::{Path, PathBuf};

use super::other_format::OtherFormat;
use crate::safetensors::SafetensorsError;

/// An adapter that could not be read, written or used. Every message names the file and the field or the tensor.
#[derive(Debug, thiserror::Error)]
pub enum PeftError {
    /// A file could not be opened, read or written.
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
    /// The folder has only weights in another format.
    #[error("{}: {found}", path.display())]
    OtherFormat {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: OtherFormat,
    },
    /// The configuration is not JSON.
    #[error("{}: not JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field of the configuration that is wrong.
    #[error("{}: {field}: {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// A field of the configuration that needs an unsupported feature.
    #[error("{}: {field} = {value} is not supported; {instead}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What is.
        instead: String,
    },
    /// The weights' container is malformed.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SafetensorsError,
    },
    /// A tensor that is invalid, missing, or not supported.
    #[error("{}: tensor {name}: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The weights hold no adapter at all.
    #[error("{}: no LoRA tensors", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The GGUF file of an adapter could not be written.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
}

impl PeftError {
    /// The file or folder that the message names.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            PeftError::Io { path, .. }
            | PeftError::TooLarge { path, .. }
            | PeftError::OtherFormat { path, .. }
            | PeftError::Json { path, .. }
            | PeftError::Field { path, .. }
            | PeftError::Unsupported { path, .. }
            | PeftError::Safetensors { path, .. }
            | PeftError::Tensor { path, .. }
            | PeftError::Empty { path } => Some(path),
            PeftError::Gguf(_) => None,
        }
    }
}
