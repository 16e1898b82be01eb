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
//! .lory-jobs                   marks the folder as Lory's
//! lock                         locked by the process that works on the queues
//! files/<id>/                  uploaded files
//! evaluations/<id>.json        requested evaluations; their results are stored with those of `lory eval`
//! jobs/<id>/job.json           the record, next to events.jsonl, samples.json, state/checkpoint.safetensors and adapter/
//! ```
//!
//! Start with `work_queue`, which keeps the records of both kinds of work, and its `queue_state`, then [`fine_tuning`] and [`evaluation`].
//!
//! - [`Jobs`]: the `worker_threads`; [`JobsState`]: the files and queues that they share with the API's calls
//! - [`records`]: what is on disk, as plain data; `record_file`: writes it in one step; `stored_records`: reads it at the start;
//!   `jobs_folder`: which folder is used, and what is left of a process that was killed
//! - [`files`]: uploads, and `file_reservation`: what they count for quotas; [`listing`]: pages, and what a key may see
//! - [`training`]: what `lory train` and jobs share; [`evaluation_results`]: stored results of evaluations
//! - `key_turns`: keys take turns; `train_memory`: the memory of training; `yield_point`: lets requests go first; [`metrics`]: counts of jobs for `/metrics`; [`error`]: what can fail
//!
//! Records, request bodies and previews derive `utoipa::ToSchema`, although this crate does not know HTTP: the server reads and returns
//! them as they are, and a second definition of each field there would have to be kept in step with this one.

pub mod error;
pub mod evaluation;
pub mod evaluation_results;
mod file_reservation;
pub mod files;
pub mod fine_tuning;
mod jobs_folder;
mod jobs_state;
mod key_turns;
pub mod listing;
pub mod metrics;
mod queue_state;
mod record_file;
pub mod records;
mod stored_records;
mod train_memory;
pub mod training;
mod work_queue;
mod worker_threads;
mod yield_point;

pub use error::JobError;
pub use evaluation::requests::NewEvaluation;
pub use evaluation_results::{EvaluationResults, ResultError};
pub use files::Upload;
pub use fine_tuning::jobs::JobCheckpoint;
pub use fine_tuning::request::NewJob;
pub use fine_tuning::samples::SampledAnswer;
pub use jobs_state::{JobSettings, JobsState, MAX_OPEN_EVALUATIONS, MAX_OPEN_JOBS};
pub use listing::{MAX_PAGE, Page, Viewer};
pub use records::evaluation::{Evaluation, EvaluationStatus};
pub use records::file::StoredFile;
pub use records::job::{Event, JobRecord, JobStatus};
pub use worker_threads::Jobs;
