//! The routes that change what is served: the same operations as `lory persona`, and vLLM's two. They are one router, so that
//! one layer can guard them all.
//!
//! ```text
//! GET    /v1/personas                              everyone, and the aliases
//! GET    /v1/personas/{name}                       one, with settings; {name} may be name@version
//! DELETE /v1/personas/{name}                       one, or with @version one version of it
//! GET    /v1/personas/{name}/history               what happened to it
//! GET    /v1/personas/{name}/versions              every version
//! POST   /v1/personas/{name}/versions              publish
//! POST   /v1/adapters, DELETE /v1/adapters/{sha256}  send an adapter to be published, or forget it
//! POST   /v1/personas/{name}/rollback              make another version the current one
//! PUT    /v1/personas/{name}/canary, DELETE        a part of its requests to another version
//! PUT    /v1/personas/{name}/shadow, DELETE        a part of its requests to another version too, for comparison
//! PUT    /v1/persona_aliases/{alias}, DELETE       other names
//! POST   /v1/registry/verify, /v1/registry/gc      look after what is stored
//! ```

mod answers;
pub(super) mod change;
pub(super) mod look;
pub(super) mod publish;
pub(super) mod tend;
pub(super) mod upload;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post, put};
use registry::spec;
use registry::{RegistryError, RegistryState};

use super::error::ApiError;
use super::{Slot, load_lora_adapter};
use service::{PublishError, Service};

/// Every route for those who may administer.
pub(super) fn router() -> Router<Slot> {
    Router::new()
        .route("/v1/personas", get(look::list))
        .route(
            "/v1/personas/{name}",
            get(look::show).delete(change::remove),
        )
        .route("/v1/personas/{name}/history", get(look::history))
        .route(
            "/v1/personas/{name}/versions",
            get(look::versions).post(publish::publish),
        )
        // Archives have a limit of their own.
        .route(
            "/v1/adapters",
            post(upload::upload).layer(DefaultBodyLimit::disable()),
        )
        .route("/v1/adapters/{sha256}", delete(upload::forget))
        .route("/v1/personas/{name}/rollback", post(change::rollback))
        .route(
            "/v1/personas/{name}/canary",
            put(change::canary).delete(change::end_canary),
        )
        .route(
            "/v1/personas/{name}/shadow",
            put(change::shadow).delete(change::end_shadow),
        )
        .route(
            "/v1/persona_aliases/{alias}",
            put(change::alias).delete(change::remove_alias),
        )
        .route("/v1/registry/verify", post(tend::verify))
        .route("/v1/registry/gc", post(tend::collect_garbage))
        .route("/v1/load_lora_adapter", post(load_lora_adapter::load))
        .route("/v1/unload_lora_adapter", post(load_lora_adapter::unload))
}

/// Runs what waits for the disk or a bucket off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|_| ApiError::internal("the work broke off; the log says why"))
}

/// [`blocking`] with the newest state of the registry.
async fn with_state<T: Send + 'static>(
    service: Arc<Service>,
    work: impl FnOnce(&Service, &RegistryState) -> Result<T, PublishError> + Send + 'static,
) -> Result<T, ApiError> {
    let worked = blocking(move || {
        service.catalog().refresh()?;
        let state = service.registry()?.state();
        work(&service, &state)
    });
    worked.await?.map_err(ApiError::from)
}

/// A name of the path, with a version if it has one.
fn named(text: &str) -> Result<(String, Option<u32>), ApiError> {
    let wrong = |message: String| {
        ApiError::bad_request("invalid_persona", message, Some("name".to_owned()))
    };
    let parts = spec::parse(text).map_err(|error| wrong(error.to_string()))?;
    match parts.as_slice() {
        [part] if part.scale.is_none() => Ok((part.name.clone(), part.version)),
        _ => Err(wrong(format!(
            "{text:?} is not one persona, such as customer or customer@3"
        ))),
    }
}

/// A name of the path that stands for the persona as a whole.
fn whole(text: &str) -> Result<String, ApiError> {
    match named(text)? {
        (name, None) => Ok(name),
        (name, Some(_)) => Err(ApiError::bad_request(
            "invalid_persona",
            format!("this is about {name} as a whole; leave the version out"),
            Some("name".to_owned()),
        )),
    }
}

/// What a published persona that is not there is refused with.
fn unknown(name: String) -> PublishError {
    RegistryError::Unknown { name, alias: None }.into()
}
