//! A model as Hugging Face's libraries save it: a folder of `config.json`, `tokenizer.json` and safetensors, in one file or in
//! shards with an index.
//!
//! The folder is untrusted: every file has a size limit, a shard must be a file of the folder itself, and a tensor that the
//! decoder would not use is refused by name rather than ignored.

mod description;
mod error;
mod names;
mod shards;

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, ModelConfig};
use crate::gguf::TensorView;

pub use description::{Description, description_files, is_folder};
pub use error::FolderError;
pub use shards::{Map, weight_files};

pub(crate) use names::gguf_name;

use shards::Shards;

/// A folder with its weights mapped.
pub struct Folder {
    description: Description,
    shards: Shards,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

impl Folder {
    /// Reads the description of the model and lists the tensors of its weights, whose files `map` opens.
    ///
    /// # Errors
    /// [`FolderError`], naming the file and the field or the tensor.
    pub fn open(path: &Path, map: Map<'_>) -> Result<Folder, FolderError> {
        let description = Description::read(path)?;
        let shards = Shards::open(path, map)?;
        shards.refuse_others(description.config())?;
        Ok(Folder {
            description,
            shards,
        })
    }

    /// The files that describe the model.
    pub fn description(&self) -> &Description {
        &self.description
    }
}

impl Checkpoint for Folder {
    fn config(&self) -> Result<ModelConfig, ConfigError> {
        Ok(self.description.config().clone())
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.shards.tensor(&names::hugging_face(name)?)
    }

    fn place(&self, name: &str) -> (String, String) {
        let own = names::hugging_face(name).unwrap_or_else(|| name.to_owned());
        (self.shards.file_of(&own), own)
    }

    fn types_are_chosen(&self) -> bool {
        false
    }
}
