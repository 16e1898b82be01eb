//! Personas, their versions, aliases and adapters: the same operations as `lory persona`, for keys with admin rights.

pub(super) mod change;
pub(super) mod list;
pub(super) mod maintenance;
pub(super) mod publish;
pub mod responses;
mod settings_schema;
pub(super) mod uploads;

use std::sync::Arc;

use registry::spec;
use registry::{RegistryError, RegistryState};

use crate::error::ApiError;
use crate::work::Work;
use service::{PublishError, Service};

/// Runs blocking work with the newest state of the registry.
async fn with_state<T: Send + 'static>(
    service: Arc<Service>,
    pools: &Work,
    work: impl FnOnce(&Service, &RegistryState) -> Result<T, PublishError> + Send + 'static,
) -> Result<T, ApiError> {
    let worked = pools.administration(move || {
        service.catalog().refresh()?;
        let state = service.registry()?.state();
        work(&service, &state)
    });
    worked.await?.map_err(ApiError::from)
}

/// A persona's name in a path, with its version if it has one.
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

/// A persona's name in a path, without a version.
fn whole(text: &str) -> Result<String, ApiError> {
    match named(text)? {
        (name, None) => Ok(name),
        (name, Some(_)) => Err(ApiError::bad_request(
            "invalid_persona",
            format!("this applies to every version of {name}; leave the version out"),
            Some("name".to_owned()),
        )),
    }
}

/// The error for a published persona that does not exist.
fn unknown(name: String) -> PublishError {
    RegistryError::Unknown { name, alias: None }.into()
}
