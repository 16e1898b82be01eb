//! Trains LoRA adapters on a frozen base, several in one run, and says what they are worth.
//!
//! [`sft`] is the loop, as a table of contents; start reading there. Synchronous, on the caller's thread. Knows no HTTP, no
//! screen and no registry; the model stands behind [`learner::Learner`].

pub mod batch;
pub mod checkpoint;
pub mod dataset;
pub mod dropout;
pub mod error;
pub mod evaluate;
pub mod example;
pub mod export;
pub mod forecast;
pub mod job;
mod layout;
pub mod learner;
pub mod learner_model;
pub mod lint;
pub mod lora_init;
pub mod lr_find;
pub mod metrics;
pub mod optimizer;
pub mod params;
pub mod plot;
pub mod preference;
pub mod progress;
pub mod rng;
pub mod schedule;
pub mod settings;
pub mod sft;
pub mod tensorboard;
pub mod vary;

mod backward;
mod durable;
mod kept;
mod run;
mod start;
mod yield_guard;

pub use dropout::DropoutMask;
pub use error::TrainError;
pub use example::Example;
pub use forecast::RunEstimate;
pub use job::Job;
pub use learner::{BatchItem, Learner, LossSum};
pub use learner_model::ModelLearner;
pub use params::{LoraGrads, LoraParams, PairGrads};
pub use preference::PreferenceSettings;
pub use settings::TrainSettings;
