//! The errors of a tokenizer.

use crate::file::FileError;
use crate::gguf::GgufError;

/// A tokenizer that could not be built, or a text that it could not encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The metadata could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A file of the folder could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key that is needed is absent.
    #[error("{origin}: metadata {key:?} is missing, so there is no tokenizer")]
    Missing {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
    },
    /// Another kind of tokenizer.
    #[error("{origin}: {key} {found:?} is not supported; {supported} are")]
    Unsupported {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is.
        supported: &'static str,
    },
    /// Metadata that contradicts itself.
    #[error("{origin}: {key}: {problem}")]
    Invalid {
        /// The file.
        origin: String,
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The text could not be encoded.
    #[error("the text could not be tokenized: {0}")]
    Encode(String),
}
