//! The error of files, jobs and evaluations: one variant for each cause that someone can act on.

use std::path::{Path, PathBuf};

use crate::evaluation_results::ResultError;
use auth::{AuthError, QuotaExceeded};
use service::{NameError, PublishError};
use train::TrainError;

use crate::records::job::JobStatus;

/// The message for clients about files that only the server knows.
pub(crate) const SERVER_FILES: &str =
    "the server cannot read or write its files; its log has the reason";

/// Why a request about files, jobs or evaluations fails.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The file does not exist, or belongs to another key.
    #[error("there is no file {id:?}; GET /v1/files lists the files")]
    NoFile {
        /// The id.
        id: String,
        /// The field that named it.
        field: &'static str,
    },
    /// The job does not exist, or belongs to another key.
    #[error("there is no job {id:?}; GET /v1/fine_tuning/jobs lists the jobs")]
    NoJob {
        /// The id.
        id: String,
    },
    /// The page's `after` is not in the list.
    #[error("after: the list has no id {id:?}")]
    NoPage {
        /// The id.
        id: String,
    },
    /// A field is invalid.
    #[error("{field}: {message}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Rows of a file are broken; the message has the lines.
    #[error("{0}")]
    Rows(String),
    /// The file is too large.
    #[error("the file is larger than the limit of {limit} bytes; split it")]
    FileTooLarge {
        /// The limit.
        limit: u64,
    },
    /// An unfinished job or evaluation needs the file.
    #[error("{by} still needs the file {id}; cancel {by}, or wait until it finishes")]
    FileInUse {
        /// The file.
        id: String,
        /// The job, or the evaluation.
        by: String,
    },
    /// The key's quota or the server's limit is reached.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// A finished evaluation cannot be cancelled.
    #[error("evaluation {id} is finished; only a queued or running evaluation can be cancelled")]
    EvaluationOver {
        /// The evaluation.
        id: String,
    },
    /// The evaluation does not exist, or its result cannot be read or stored.
    #[error(transparent)]
    Results(#[from] ResultError),
    /// The job's status does not allow the action.
    #[error("job {id} is {status}, and {wanted}")]
    State {
        /// The job.
        id: String,
        /// Its status.
        status: JobStatus,
        /// Which status allows it.
        wanted: &'static str,
    },
    /// The job is publishing its adapter, which cannot be interrupted.
    #[error(
        "job {id} is publishing its adapter, which cannot be interrupted; it will succeed shortly"
    )]
    Publishing {
        /// The job.
        id: String,
    },
    /// The key may not do this.
    #[error(transparent)]
    Denied(#[from] AuthError),
    /// This server runs no jobs.
    #[error("this server runs no jobs: {why}")]
    NoJobs {
        /// Why.
        why: String,
    },
    /// The job's adapter cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The rows of a job are invalid.
    #[error("{0}")]
    Plan(String),
    /// A job does not fit into the memory of training.
    #[error("{0}")]
    TrainMemory(String),
    /// The work was stopped, because its client is gone or the server shuts down.
    #[error("stopped before it was done: the client is gone, or the server shuts down")]
    Stopped,
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The folder of jobs is not the one that was opened.
    #[error(
        "the folder of jobs was removed or replaced while the server ran; restart the server to run jobs again"
    )]
    FolderRemoved,
    /// A record is damaged.
    #[error("{}: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// The system has no random numbers for an id.
    #[error("cannot create an id: {0}")]
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

    /// The error of a name of a model in `field`.
    pub(crate) fn name(field: impl Into<String>, error: NameError) -> JobError {
        match error {
            NameError::Denied(error) => JobError::Denied(error),
            NameError::Unusable(message) => JobError::invalid(field, message),
        }
    }

    /// The message for clients, without the folders of this machine.
    #[must_use]
    pub fn client_message(&self) -> String {
        match self {
            JobError::Io { .. }
            | JobError::Damaged { .. }
            | JobError::Results(ResultError::Io { .. } | ResultError::Broken { .. }) => {
                SERVER_FILES.to_owned()
            }
            JobError::Publish(error) => error.client_message(),
            _ => self.to_string(),
        }
    }

    /// The request field that it is about.
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

/// The message of a run's error for clients, who have no files of the run but the rows.
pub(crate) fn train_message(error: &TrainError) -> String {
    match error {
        TrainError::Write { .. } => SERVER_FILES.to_owned(),
        TrainError::CheckpointBroken { .. } => {
            "the job's checkpoint is damaged; create the job again".to_owned()
        }
        TrainError::CheckpointDiffers { differences, .. } => format!(
            "the job's checkpoint is of another run: {}; create the job again",
            differences.join("; ")
        ),
        error => error.to_string(),
    }
}

/// Why an evaluation's adapters have no memory.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationMemoryError {
    /// They need more than training has.
    #[error(
        "the adapters need {} MiB of memory, and {} MiB are {whose}; evaluate fewer personas at once, or personas with a smaller rank",
        needed.div_ceil(1 << 20), available >> 20
    )]
    TooLarge {
        /// Bytes that they need.
        needed: u64,
        /// Bytes that there are.
        available: u64,
        /// What limits them.
        whose: &'static str,
    },
    /// A training job has the memory.
    #[error(
        "the adapters need {} MiB of memory, which a training job has now; request the evaluation again when the job has ended",
        needed.div_ceil(1 << 20)
    )]
    InUse {
        /// Bytes that they need.
        needed: u64,
    },
}
