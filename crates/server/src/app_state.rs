//! The state that handlers share: the service, and the training jobs and evaluation results next to it.

use std::sync::{Arc, OnceLock};

use jobs::{EvaluationResults, JobError, Jobs, ResultError};
use serde::Serialize;
use service::Service;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::unix_time::unix_time;

/// The service once its base is loaded; the server can run before that. Clones share the state.
#[derive(Clone)]
pub struct AppState(Arc<Parts>);

struct Parts {
    service: OnceLock<Arc<Service>>,
    /// The training jobs, or why the server has none.
    jobs: OnceLock<Result<Arc<Jobs>, String>>,
    /// The stored results of evaluations, if the server keeps them.
    results: OnceLock<EvaluationResults>,
    /// When the server started, as a Unix time.
    started_at: u64,
}

impl AppState {
    /// The state before the base is loaded: `/health` answers, every other route reports that the base is loading.
    pub fn loading() -> AppState {
        AppState(Arc::new(Parts {
            service: OnceLock::new(),
            jobs: OnceLock::new(),
            results: OnceLock::new(),
            started_at: unix_time(),
        }))
    }

    /// Sets the service, after which the server is ready. Only the first call has an effect.
    pub fn set_service(&self, service: Arc<Service>) {
        let _ = self.0.service.set(service);
    }

    /// Sets the training jobs, or why there are none. Call it before [`AppState::set_service`], so that a ready server has them.
    /// Only the first call has an effect.
    pub fn set_jobs(&self, jobs: Result<Arc<Jobs>, String>) {
        let _ = self.0.jobs.set(jobs);
    }

    /// Sets where results of evaluations are stored. Call it before [`AppState::set_service`]. Only the first call has an effect.
    pub fn set_results(&self, results: EvaluationResults) {
        let _ = self.0.results.set(results);
    }

    pub(crate) fn results(&self) -> Result<EvaluationResults, ResultError> {
        self.0.results.get().cloned().ok_or(ResultError::Off)
    }

    pub(crate) fn jobs(&self) -> Result<Arc<Jobs>, ApiError> {
        self.service()?;
        let why = match self.0.jobs.get() {
            Some(Ok(jobs)) => return Ok(Arc::clone(jobs)),
            Some(Err(why)) => why.clone(),
            None => "it was started without a folder for them".to_owned(),
        };
        Err(JobError::NoJobs { why }.into())
    }

    pub(crate) fn jobs_availability(&self) -> JobsAvailability {
        match self.0.jobs.get() {
            Some(Ok(jobs)) if jobs.is_available() => JobsAvailability::Ready,
            Some(_) => JobsAvailability::Unavailable,
            None => JobsAvailability::Off,
        }
    }

    pub(crate) fn service(&self) -> Result<Arc<Service>, ApiError> {
        let service = self.0.service.get().cloned();
        service.ok_or_else(ApiError::loading)
    }

    pub(crate) fn started_at(&self) -> u64 {
        self.0.started_at
    }
}

/// Whether the server runs files and training jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobsAvailability {
    /// They work.
    Ready,
    /// Their folder cannot be used.
    Unavailable,
    /// The server was started without them.
    Off,
}

impl From<Arc<Service>> for AppState {
    fn from(service: Arc<Service>) -> AppState {
        let state = AppState::loading();
        state.set_service(service);
        state
    }
}
