//! Trains LoRA adapters on a frozen base model, several in one run, and measures the results.
//!
//! Synchronous: everything runs on the caller's thread. Must not know HTTP, the terminal or the registry. The model is behind
//! [`learner::Learner`], and everyone who watches a run is behind [`progress::Observer`].
//!
//! Read [`sft`] first: it is the training loop, written as a table of contents. Then, in the order of a run:
//!
//! - **Data**: [`dataset`] reads the files, [`lint`] checks them, [`example`] turns rows into tokens and a loss mask,
//!   [`vary_identifiers`] adds copies of rows with other identifiers.
//! - **Job**: [`job`] is one adapter's data, initial parameters ([`lora_init`]) and [`settings`]; [`preference`] is what DPO
//!   adds; [`estimate`] computes memory and time before the run starts.
//! - **Step**: [`batch`] orders the rows, [`learner`] computes losses and gradients ([`learner_model`] with the decoder),
//!   [`dropout`] names the masks, [`optimizer`] and [`schedule`] update the [`params`].
//! - **State and results**: [`checkpoint`] resumes a run to the same bytes, [`metrics`], [`tensorboard`] and [`plot`] record
//!   it, [`outcome`] and [`export`] are the trained adapters.
//! - **Around a run**: [`lr_find`] searches a learning rate, [`measures`] are the evaluation measures.

pub mod batch;
pub mod checkpoint;
pub mod dataset;
pub mod dropout;
pub mod error;
pub mod estimate;
pub mod example;
pub mod export;
pub mod job;
mod layout;
pub mod learner;
pub mod learner_model;
pub mod lint;
pub mod lora_init;
pub mod lr_find;
pub mod measures;
pub mod metrics;
pub mod optimizer;
pub mod outcome;
pub mod params;
pub mod plot;
pub mod preference;
pub mod progress;
pub mod rng;
pub mod schedule;
pub mod settings;
pub mod sft;
pub mod tensorboard;
pub mod vary_identifiers;

mod activation_cache;
mod backward;
mod durable;
mod location;
mod run;
mod yield_guard;

pub use dropout::DropoutMask;
pub use error::TrainError;
pub use estimate::RunEstimate;
pub use example::Example;
pub use job::Job;
pub use learner::{BatchItem, Learner, LossSum};
pub use learner_model::ModelLearner;
pub use outcome::{Outcome, TrainedAdapter};
pub use params::{LoraGrads, LoraParams, PairGrads};
pub use settings::{PreferenceSettings, RunOptions, TrainSettings};
