//! Where the blocking work of a request runs, and which key pays for it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use service::Caller;

use crate::body_budget::ReservedBytes;
use crate::error::ApiError;
use crate::server_state::ServerState;
use crate::work_pool::{KeyName, PoolLimits, RunningWork, WorkPool};

/// The most requests of a key that wait to be prepared.
const MAX_WAITING_TO_PREPARE: usize = 256;
/// The most requests of a key that wait for records.
const MAX_WAITING_FOR_RECORDS: usize = 64;
/// The most plans, lints, previews and uploads of a key that wait.
const MAX_WAITING_IN_BACKGROUND: usize = 16;
/// The most changes of the registry of a key that wait.
const MAX_WAITING_TO_ADMINISTER: usize = 64;

/// The most probes that wait.
const MAX_WAITING_PROBES: usize = 64;

/// The pools of the server. Accepting connections, `/health`, authentication and the shutdown need none of them.
pub(crate) struct WorkPools {
    /// Reads bodies, renders templates, tokenizes and compiles grammars.
    prepare: Arc<WorkPool>,
    /// Short reads and changes of records: jobs, files, evaluations, votes.
    records: Arc<WorkPool>,
    /// Work that takes seconds: plans, lints, previews, checks of uploads.
    background: Arc<WorkPool>,
    /// Changes of the registry, for keys with admin rights.
    administration: Arc<WorkPool>,
    /// What `/ready` looks at, which needs no key.
    probes: Arc<WorkPool>,
}

impl WorkPools {
    /// Pools for a machine with this many cores.
    pub fn new(cores: usize) -> WorkPools {
        let prepare = cores.clamp(4, 32);
        WorkPools {
            prepare: WorkPool::new(PoolLimits {
                work: "requests to prepare",
                slots: prepare,
                slots_per_key: prepare / 4,
                queue_per_key: MAX_WAITING_TO_PREPARE,
                low_priority: false,
            }),
            records: WorkPool::new(PoolLimits {
                work: "requests for files, jobs or votes",
                slots: 16,
                slots_per_key: 4,
                queue_per_key: MAX_WAITING_FOR_RECORDS,
                low_priority: false,
            }),
            background: WorkPool::new(PoolLimits {
                work: "plans, lints, previews or uploads",
                slots: 4,
                slots_per_key: 1,
                queue_per_key: MAX_WAITING_IN_BACKGROUND,
                low_priority: true,
            }),
            administration: WorkPool::new(PoolLimits {
                work: "changes of the registry",
                slots: 4,
                slots_per_key: 2,
                queue_per_key: MAX_WAITING_TO_ADMINISTER,
                low_priority: false,
            }),
            probes: WorkPool::new(PoolLimits {
                work: "probes",
                slots: 2,
                slots_per_key: 2,
                queue_per_key: MAX_WAITING_PROBES,
                low_priority: false,
            }),
        }
    }

    /// Runs the work of a probe.
    pub async fn probe<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.probes.run(&None, |_| work()).await
    }
}

/// Extracts the pools, in the name of the request's key.
#[derive(Clone)]
pub(crate) struct Work {
    server: Arc<ServerState>,
    key: KeyName,
    /// The bytes of the body, until they are no longer needed.
    body: RequestBody,
}

/// The reserved bytes of a request's body.
#[derive(Clone, Default)]
pub(crate) struct RequestBody(Arc<Mutex<Option<ReservedBytes>>>);

impl RequestBody {
    /// Keeps the bytes reserved until the request ends or [`RequestBody::free`] is called.
    pub fn keep(&self, bytes: ReservedBytes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    pub fn free(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Work {
    /// The work of the request with these parts.
    pub fn of(extensions: &axum::http::Extensions) -> Result<Work, ApiError> {
        let server = extensions.get::<Arc<ServerState>>().cloned();
        let server = server.ok_or_else(|| ApiError::internal("the request has no server state"))?;
        let caller = extensions.get::<Caller>();
        let key = caller.and_then(Caller::key).map(|key| key.name().into());
        let body = extensions.get::<RequestBody>().cloned().unwrap_or_default();
        Ok(Work { server, key, body })
    }

    /// The server's state.
    pub fn server(&self) -> &Arc<ServerState> {
        &self.server
    }

    /// The key that pays.
    pub fn key(&self) -> &KeyName {
        &self.key
    }

    /// The reservation of the body's bytes.
    pub fn body(&self) -> &RequestBody {
        &self.body
    }

    /// Prepares a request: reads its body, renders its prompt, compiles its grammar.
    pub async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RunningWork) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.server.pools.prepare.run(&self.key, work).await
    }

    /// Reads or changes records.
    pub async fn records<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.server.pools.records.run(&self.key, |_| work()).await
    }

    /// Runs work that takes seconds.
    pub async fn background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RunningWork) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.server.pools.background.run(&self.key, work).await
    }

    /// Changes the registry.
    pub async fn administration<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let pool = &self.server.pools.administration;
        pool.run(&self.key, |_| work()).await
    }
}

impl<S: Sync> FromRequestParts<S> for Work {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Work, ApiError> {
        Work::of(&parts.extensions)
    }
}
