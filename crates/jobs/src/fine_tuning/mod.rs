//! Fine-tuning jobs: the work behind `/v1/fine_tuning/jobs`. Must not know HTTP.
//!
//! - [`jobs`]: jobs as clients see them; `events`: the event log
//! - `request`: checks a request and makes a record of it, with `hyperparameters` and `baselines`
//! - `worker`: the threads that validate files and train; `transitions`: cancel, pause, resume
//! - `prepare`: rows, prompt and start adapter of a run; `run`: one job, from its rows to its version; `error`: why a run failed
//! - `run_observer`: events and progress of a run; `sample_generation`: the adapter's answers during the run, stored by `samples`
//! - `eval_gate`: evaluates the adapter and checks thresholds; `publish`: the adapter becomes a version
//! - `preview`: plans, lint findings and rows, before a job is created

mod baselines;
mod error;
mod eval_gate;
pub mod events;
mod hyperparameters;
pub mod jobs;
mod prepare;
pub mod preview;
mod publish;
pub mod request;
mod run;
mod run_observer;
mod sample_generation;
pub mod samples;
mod transitions;
mod worker;
