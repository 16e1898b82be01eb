//! The errors of reading a model's folder.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::file::FileError;
use crate::safetensors::SafetensorsError;

/// A folder that could not be read or is not supported. Every message names the file, and the field or tensor.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
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
    /// A tensor that is missing, or that the decoder does not use.
    #[error("{}: tensor {name:?}: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// `config.json` describes a model that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
