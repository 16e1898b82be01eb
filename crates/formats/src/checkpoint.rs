//! Where a decoder's weights come from, whatever the files: tensors under GGUF's names, and the configuration that they fit.

use crate::config::{ConfigError, ModelConfig};
use crate::gguf::{Gguf, TensorView};

/// A source of weights. [`Gguf`] and [`crate::folder::Folder`] are some.
pub trait Checkpoint: Sync {
    /// What the tensors make up, and in which order query and key rows lie.
    ///
    /// # Errors
    /// What is not understood or not supported.
    fn config(&self) -> Result<ModelConfig, ConfigError>;

    /// A tensor by the name that GGUF files have for it, such as `blk.0.attn_q.weight`; dimensions as there, the inner one
    /// first.
    fn tensor(&self, name: &str) -> Option<TensorView<'_>>;

    /// The file that holds (or would hold) a tensor, and its name there: for errors.
    fn place(&self, name: &str) -> (String, String);

    /// Whether whoever made the file chose its types for running, as with a GGUF: they are kept where nobody asks for others.
    fn types_are_chosen(&self) -> bool;
}

impl Checkpoint for Gguf {
    fn config(&self) -> Result<ModelConfig, ConfigError> {
        ModelConfig::from_gguf(self)
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        Gguf::tensor(self, name)
    }

    fn place(&self, name: &str) -> (String, String) {
        (self.origin().to_owned(), name.to_owned())
    }

    fn types_are_chosen(&self) -> bool {
        true
    }
}
