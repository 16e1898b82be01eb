//! Training that `lory train` and training jobs share. Must not know terminals or HTTP.
//!
//! - `folder`: writes the adapter's PEFT folder, with its loss curve and its card
//! - `plan`: what a run will do and need

pub mod folder;
pub mod plan;

use kernels::Compute;
use train::ModelLearner;

pub use folder::{LOSS_CURVE, Target};

use base::Base;

/// The learner on `base`: forward in the arithmetic that serves, so that the adapter is trained on the activations that it will be served
/// with, and backward in bf16 if the machine supports it.
pub fn learner(base: &Base) -> ModelLearner {
    ModelLearner::new(base.model.clone(), Compute::Int8)
}
