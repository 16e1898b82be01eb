//! What can go wrong with files and jobs, one variant for each thing that someone can do something about.

use std::path::{Path, PathBuf};

use crate::evaluation_results::ResultError;
use auth::Denied;
use service::PublishError;

use crate::records::job::JobStatus;

/// Why a file or a job is refused, or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// There is no such file, or it is another key's.
    #[error("there is no file {id:?}; GET /v1/files lists those that there are")]
    NoFile {
        /// The id.
        id: String,
        /// The field that named it.
        field: &'static str,
    },
    /// There is no such job, or it is another key's.
    #[error("there is no job {id:?}; GET /v1/fine_tuning/jobs lists those that there are")]
    NoJob {
        /// The id.
        id: String,
    },
    /// A page that is to begin behind something that is not there.
    #[error("after: there is nothing with the id {id:?} here")]
    NoPage {
        /// The id.
        id: String,
    },
    /// A field's value cannot be used.
    #[error("{field}: {message}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The rows of a file are not what they should be.
    #[error("{0}")]
    Rows(String),
    /// The file is too large.
    #[error("the file is larger than {limit} bytes, which is the most; split it")]
    FileTooLarge {
        /// The limit.
        limit: u64,
    },
    /// There are too many files.
    #[error("there are {limit} files already, which is the most; delete some")]
    TooManyFiles {
        /// The limit.
        limit: usize,
    },
    /// The files take too much room together.
    #[error(
        "the files would take more than {limit} bytes together, which is the most; delete some"
    )]
    NoRoom {
        /// The limit.
        limit: u64,
    },
    /// A job or an evaluation that is not over reads the file.
    #[error("{by} still needs the file {id}; cancel that, or wait until it is over")]
    FileInUse {
        /// The file.
        id: String,
        /// The job, or the evaluation.
        by: String,
    },
    /// Too many jobs wait.
    #[error(
        "{limit} jobs are waiting or running, which is the most; cancel one, or try again when one is over"
    )]
    QueueFull {
        /// The limit.
        limit: usize,
    },
    /// Too many evaluations wait.
    #[error(
        "{limit} evaluations are waiting or running, which is the most; cancel one, or try again when one is over"
    )]
    EvaluationsFull {
        /// The limit.
        limit: usize,
    },
    /// An evaluation cannot be given up any more.
    #[error("evaluation {id} is over; only one that is queued or running can be cancelled")]
    EvaluationOver {
        /// The evaluation.
        id: String,
    },
    /// There is no such evaluation, or its result cannot be read or kept.
    #[error(transparent)]
    Results(#[from] ResultError),
    /// What was asked for does not fit the state of the job.
    #[error("job {id} is {status}, and {wanted}")]
    State {
        /// The job.
        id: String,
        /// Its status.
        status: JobStatus,
        /// What would have to be so.
        wanted: &'static str,
    },
    /// The job's adapter is being published, which is not broken off.
    #[error("job {id} is publishing its adapter at this moment, and will have succeeded next")]
    Publishing {
        /// The job.
        id: String,
    },
    /// The key may not do this.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// This server has no place to keep jobs.
    #[error("this server runs no jobs: {why}")]
    NoJobs {
        /// Why.
        why: String,
    },
    /// The job's adapter cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The job's plan or its rows cannot be made.
    #[error("{0}")]
    Plan(String),
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the queue cannot be read.
    #[error("{}: {message}; remove its folder to go on without it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        message: String,
    },
    /// The system has no random numbers to make an id of.
    #[error("cannot make an id: {0}")]
    Random(getrandom::Error),
}

impl JobError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> JobError + '_ {
        move |source| JobError::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> JobError {
        JobError::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    /// The field that it is about.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            JobError::NoFile { field, .. } => Some(field),
            JobError::Invalid { field, .. } => Some(field),
            JobError::NoPage { .. } => Some("after"),
            JobError::Rows(_) | JobError::FileTooLarge { .. } => Some("file"),
            _ => None,
        }
    }
}
