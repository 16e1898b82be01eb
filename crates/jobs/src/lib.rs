//! Training as a service: a queue of jobs, run one at a time beside the answers, on the very base that serves. Knows no HTTP.
//!
//! ```text
//! request -> a record, validating_files -> its rows are read (thread `lory-jobs`) -> queued
//!         -> running (thread `lory-trainer`): train -> the adapter's folder -> examined -> published -> succeeded
//! ```
//!
//! Everything lies in one folder, and every change of a job's state is on the disk before it is told. A process that is killed
//! anywhere goes on with what it was at: the run from its checkpoint, to the same bytes.
//!
//! ```text
//! lock                         held by the process that runs the queue
//! files/<id>/                  uploaded files
//! evaluations/<id>.json        evaluations that were asked for; their results lie with those of `lory eval`
//! jobs/<id>/job.json           the record; events.jsonl, samples.json, state/checkpoint.safetensors, adapter/ beside it
//! ```
//!
//! - [`request`]: what is asked for, made into a record; [`record`]: a job as it is kept; [`thresholds`]: its gate
//! - [`files`]: uploads; `events`: what happened; [`samples`]: what its adapter said on the way
//! - `asking`: who asks, and for which part of a list; `workers`: the two threads of jobs
//! - `turn`: cancelled, paused, resumed
//! - `run`: one job, from its rows to its version; `watch`: what it tells on the way; `sampling`: what it is asked there;
//!   `examine`: its gate; `beside`: whom that compares it with; `rehearse`: how an adapter answers that nobody else can ask
//! - [`evaluations`]: what clients want measured, one at a time; `measure`: one of them
//! - `publish`: its adapter becomes a version
//! - `look`: plans, findings and rows, for those who want to see first
//! - [`meters`]: what is counted

mod asking;
mod beside;
mod disk;
pub mod error;
pub mod evaluation;
pub mod evaluations;
mod events;
mod examine;
pub mod files;
pub mod look;
mod measure;
pub mod meters;
mod publish;
mod queue;
pub mod record;
mod rehearse;
pub mod request;
mod run;
pub mod samples;
mod sampling;
pub mod thresholds;
pub mod training;
mod turn;
mod watch;
mod workers;

pub use asking::{Page, Who};
pub use error::JobError;
pub use evaluation::results::{EvaluationResults, ResultError};
pub use evaluations::{Evaluation, EvaluationStatus, NewEvaluation};
pub use files::{StoredFile, Upload};
pub use queue::{JobSettings, Jobs, Queue, Validated};
pub use record::{Event, Record, Status};
pub use request::NewJob;
pub use samples::Said;

/// The most jobs that are not over.
pub const MAX_OPEN: usize = 64;
/// The most jobs that are kept; the oldest that are over make room.
pub const MAX_KEPT: usize = 1000;
/// The longest page of a list.
pub const MAX_PAGE: usize = 100;
/// The longest page of events.
pub const MAX_EVENTS: usize = 1000;
