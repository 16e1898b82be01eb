//! Trains LoRA adapters on a frozen base model, several in one run, and measures the results.
//!
//! Synchronous: everything runs on the caller's thread. Must not know HTTP, the terminal or the registry. The model is behind
//! [`learner::Learner`], and everyone who watches a run is behind [`progress::Observer`].
//!
//! Read [`trainer`] first: it is the training loop, written as a table of contents. Then, in the order of a run:
//!
//! - **Data**: the crate [`dataset`] reads the files, [`lint`] checks them, [`example`] turns rows into tokens and a loss mask,
//!   [`vary_identifiers`] adds copies of rows with other identifiers.
//! - **Task**: [`task`] is one adapter's data, initial parameters ([`initial_params`], [`lora_init`]) and [`settings`]; [`preference`] is what DPO
//!   adds; [`estimate`] computes memory and time before the run starts.
//! - **Step**: `run` has the steps that [`trainer`] calls; [`batch`] orders the rows, [`learner`] computes losses and gradients.
//!   [`learner_model`] does so with the decoder: `layout` lays the examples end to end, `backward` goes back through the layers,
//!   `activation_cache` keeps what it needs of the last ones, `yield_guard` stops between layers and within long ones. [`dropout`] names the masks,
//!   [`optimizer`] and [`schedule`] update the [`params`].
//! - **State and results**: [`progress`] has the calls to the observer; [`checkpoint`] resumes a run to the same bytes, and
//!   `replace_file` writes its file in one step; [`metrics`], [`tensorboard`] and [`plot`] record the run; [`outcome`] and
//!   [`export`] are the trained adapters.
//! - **Around a run**: [`lr_find`] searches a learning rate, [`measures`] are the evaluation measures.
//! - **Everywhere**: [`rng`] are the random streams, [`error`] is what can fail.

pub mod batch;
pub mod checkpoint;
pub mod dropout;
pub mod error;
pub mod estimate;
pub mod example;
pub mod export;
pub mod initial_params;
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
pub mod task;
pub mod tensorboard;
pub mod trainer;
pub mod vary_identifiers;

mod activation_cache;
mod backward;

mod replace_file;
mod run;
mod yield_guard;

pub use dropout::DropoutMask;
pub use error::TrainError;
pub use estimate::RunEstimate;
pub use example::Example;
pub use learner::{BatchItem, Learner, LossSum};
pub use learner_model::ModelLearner;
pub use outcome::{Outcome, TrainedAdapter};
pub use params::{LoraGrads, LoraParams, PairGrads};
pub use settings::{PreferenceSettings, RunOptions, TrainSettings};
pub use task::TrainTask;
