//! What can be wrong with a model's folder.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::safetensors::SafetensorsError;

/// A folder that could not be read, or is not run. Every message names the file, and the field or the tensor.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file could not be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
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
    /// A file that is no JSON.
    #[error("{}: not JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field that is wrong.
    #[error("{}: {field}: {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// No weights, or in another format only.
    #[error(
        "{}: {found}; weights are read from model.safetensors, or from shards with model.safetensors.index.json",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A weights file that is malformed.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SafetensorsError,
    },
    /// A tensor that is missing, or not wanted.
    #[error("{}: tensor {name:?}: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// `config.json` describes what is not run.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
