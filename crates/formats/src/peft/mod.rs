//! PEFT adapter folders: `adapter_config.json`, `adapter_model.safetensors`, `README.md`, read and written.
//!
//! Features of PEFT that this decoder does not have (DoRA, trained embeddings, biases, ...) are refused by the name of their
//! field, so that an adapter always runs as it was trained. The rows of B are in Hugging
//! Face's order; see [`crate::config::RopeStyle`] for GGUF bases that store theirs in another order.

mod adapter;
mod config;
mod error;
mod fields;
mod gguf;
mod limits;
mod module;
mod other_format;
mod patterns;
mod read;
mod tensor_names;
mod write;

pub use adapter::{Adapter, BaseTensor, LoraPair, PairShape, ValuesHash};
pub use config::AdapterConfig;
pub use error::PeftError;
pub use limits::{CONFIG_FILE, MAX_RANK, WEIGHTS_FILE};
pub use module::Module;
pub use other_format::OtherFormat;
pub use patterns::TargetModules;
pub use read::{AdapterFile, content_hash, read_shapes, refuse_other_formats};

pub use crate::safetensors::Dtype;
