//! The source of a decoder's weights: tensors under GGUF's names and the matching configuration, for every file format.

use crate::config::{ConfigError, ModelConfig};
use crate::gguf::{Gguf, TensorView};

/// A source of weights: a [`Gguf`] or a [`crate::folder::Folder`].
pub trait Checkpoint: Sync {
    /// The dimensions of the model, and the order of its query and key rows.
    ///
    /// # Errors
    /// A configuration that is malformed or not supported.
    fn config(&self) -> Result<ModelConfig, ConfigError>;

    /// A tensor by its GGUF name, such as `blk.0.attn_q.weight`; dimensions in ggml's order, the inner one first.
    fn tensor(&self, name: &str) -> Option<TensorView<'_>>;

    /// The file that holds (or would hold) a tensor, and its name in that file; for error messages.
    fn place(&self, name: &str) -> (String, String);

    /// Whether the tensor types were chosen for inference, as in a GGUF. They are then kept unless another precision is requested.
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
