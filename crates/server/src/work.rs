//! Where the blocking work of a request runs, and which key pays for it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use service::Caller;

use crate::body_budget::ReservedBytes;
use crate::error::ApiError;
use crate::server_state::ServerState;
use crate::work_pool::{KeyName, RunningWork};

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
