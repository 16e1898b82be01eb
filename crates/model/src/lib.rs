//! The decoder: one definition of the Llama family's forward, which serving and training both run.
//!
//! It knows weights, adapters, rows and pages. It does not know requests, schedulers or datasets: a batch is plain data.
//!
//! Read first: `decoder` ([`Model`], [`Batch`], [`Model::forward`], [`Model::layer`]). Then:
//!
//! - `load`: a checkpoint becomes a [`Model`]: tensors by name, checked, and packed for the device.
//! - `adapter` and `pack_adapter`: a PEFT adapter becomes an [`Adapter`] that the device runs.
//! - `precision`: float weights converted on load. `sizes`: what a model takes in memory, before it is loaded.
//! - `merge`: an adapter added to its base's weights.
//! - `source_type`: which GGUF types the kernels run. `error`: what can fail.
//! - `yield_point`: where a background client gives way.

mod adapter;
mod decoder;
mod error;
mod load;
mod merge;
mod pack_adapter;
mod precision;
mod sizes;
mod source_type;
mod yield_point;

pub use adapter::Adapter;
pub use decoder::{Activations, Batch, Buffers, Layer, Model, Step, linear_index};
pub use error::ModelError;
pub use load::Loading;
pub use merge::merge;
pub use precision::{Precision, QUANTIZER};
pub use sizes::ModelSizes;
pub use source_type::source_type;
pub use yield_point::YieldPoint;
