//! From trained numbers to what serves them: what `lory train` and a training job share. Knows no terminal and no HTTP.
//!
//! - `folder`: the adapter's PEFT folder, with its loss curve and its provenance
//! - `plan`: what a run will do and need

pub mod folder;
pub mod plan;

use kernels::Compute;
use train::ModelLearner;

pub use folder::Target;

use base::Base;

/// The decoder as the trainer drives it: forward in the arithmetic that serves, so that what is learnt is learnt on what the
/// adapter will meet, and backward in bf16 where the machine has it.
pub fn learner(base: &Base) -> ModelLearner {
    ModelLearner::new(base.model.clone(), Compute::Int8)
}
