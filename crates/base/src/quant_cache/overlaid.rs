//! A checkpoint in which quantized tensors replace some of the source's.

use formats::checkpoint::Checkpoint;
use formats::config::{ConfigError, ModelConfig};
use formats::gguf::TensorView;

/// A checkpoint in which quantized tensors replace some of the source's.
pub struct OverlaidCheckpoint<'a> {
    /// The quantized tensors.
    pub quantized: &'a dyn Checkpoint,
    /// All tensors, and the config.
    pub source: &'a dyn Checkpoint,
}

impl Checkpoint for OverlaidCheckpoint<'_> {
    fn config(&self) -> Result<ModelConfig, ConfigError> {
        self.source.config()
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let quantized = self.quantized.tensor(name);
        quantized.or_else(|| self.source.tensor(name))
    }

    fn place(&self, name: &str) -> (String, String) {
        match self.quantized.tensor(name) {
            Some(_) => self.quantized.place(name),
            None => self.source.place(name),
        }
    }

    fn types_are_chosen(&self) -> bool {
        self.source.types_are_chosen()
    }
}
