//! Training and evaluation as background work next to serving, on the same base. Must not know HTTP.
//!
//! ```text
//! request -> a record, validating_files -> its rows are read (thread `lory-jobs`) -> queued
//!         -> running (thread `lory-trainer`): train -> adapter folder -> eval gate -> published -> succeeded
//! ```
//!
//! Everything is in one folder, and every change of state is on disk before anyone sees it. A process that is killed anywhere continues
//! where it was: a run continues from its checkpoint, to the same bytes.
//!
//! ```text
//! lock                         locked by the process that works on the queues
//! files/<id>/                  uploaded files
//! evaluations/<id>.json        requested evaluations; their results are stored with those of `lory eval`
//! jobs/<id>/job.json           the record, next to events.jsonl, samples.json, state/checkpoint.safetensors and adapter/
//! ```
//!
//! Start with `background_queue`, which both kinds of work share, then [`fine_tuning`] and [`evaluation`].
//!
//! - [`Jobs`]: the threads; [`BackgroundWork`]: files and queues
//! - [`records`]: what is on disk, as plain data; `record_file`: writes it in one step
//! - [`files`]: uploads; [`listing`]: pages, and what a key may see
//! - [`training`]: what `lory train` and jobs share; [`evaluation_results`]: stored results of evaluations
//! - `yield_point`: lets requests go first; [`meters`]: metrics
//!
//! Records, request bodies and previews derive `utoipa::ToSchema`, although this crate does not know HTTP: the server reads and returns
//! them as they are, and a second definition of each field there would have to be kept in step with this one.

mod background_queue;
mod background_work;
pub mod error;
pub mod evaluation;
pub mod evaluation_results;
pub mod files;
pub mod fine_tuning;
mod jobs;
pub mod listing;
pub mod meters;
mod record_file;
pub mod records;
pub mod training;
mod yield_point;

pub use background_work::{BackgroundWork, JobSettings, MAX_OPEN_EVALUATIONS, MAX_OPEN_JOBS};
pub use error::JobError;
pub use evaluation::requests::NewEvaluation;
pub use evaluation_results::{EvaluationResults, ResultError};
pub use files::{StoredFile, Upload};
pub use fine_tuning::jobs::JobCheckpoint;
pub use fine_tuning::request::NewJob;
pub use fine_tuning::samples::SampledAnswer;
pub use jobs::Jobs;
pub use listing::{MAX_PAGE, Page, Viewer};
pub use records::evaluation::{Evaluation, EvaluationStatus};
pub use records::job::{Event, JobRecord, JobStatus};
