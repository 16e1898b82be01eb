//! Fine-tuning jobs: `/v1/fine_tuning/jobs` without HTTP.
//!
//! - [`jobs`]: jobs as clients see them; `events`: what happened to a job
//! - `request`: checks a request and makes a record of it; `worker`: the threads that validate files and train
//! - `prepare`: the rows, prompt and start adapter of a run; `run`: one job, from its rows to its version; `run_observer`: events and progress of a run; `sample_generation`: the adapter's
//!   answers during the run, stored by `samples`
//! - `eval_gate`: evaluates the adapter and checks thresholds; `baselines`: the personas that it is compared with
//! - `publish`: the adapter becomes a version; `transitions`: cancel, pause, resume
//! - `preview`: plans, lint findings and rows, before a job is created

mod baselines;
mod eval_gate;
pub mod events;
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
