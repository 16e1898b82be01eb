//! Changes without a new version: rollback, removal, aliases, canaries and shadows. Most return the persona after the change.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use registry::{PersonaRef, Registry, RegistryError};
use serde::Deserialize;

use super::responses::{Alias, AliasRemoved, PersonaRemoved, PersonaVersion};
use super::{named, whole};
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::Body;
use crate::path::Path;
use crate::work::Work;
use service::{PublishError, Service};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    /// By default the version that was current before.
    version: Option<u32>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Part)]
pub(crate) struct TrafficPart {
    #[schema(minimum = 1)]
    version: u32,
    /// The percentage of requests: above 0, to 100.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    percent: f64,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Alias)]
pub(crate) struct NewAlias {
    /// `name`, or `name@version`.
    target: String,
}

/// Makes a change and returns the persona after it.
async fn changed(
    work: Work,
    service: Arc<Service>,
    name: String,
    change: impl FnOnce(&Registry) -> Result<(), RegistryError> + Send + 'static,
) -> Result<Json<PersonaVersion>, ApiError> {
    let done = work.administration(move || {
        service.change(change)?;
        let state = service.registry()?.state();
        Ok::<_, PublishError>(PersonaVersion::published(&state, &name, None)?)
    });
    Ok(Json(done.await??))
}

/// Make another version the current one
#[utoipa::path(
    post,
    path = "/v1/personas/{name}/rollback",
    params(("name" = String, Path, description = "A persona's name")),
    request_body = Rollback,
    responses((status = 200, description = "The persona after the change", body = PersonaVersion))
)]
pub(crate) async fn rollback(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
    Body(request): Body<Rollback>,
) -> Result<Json<PersonaVersion>, ApiError> {
    let name = whole(&name)?;
    let of = name.clone();
    let back = move |registry: &Registry| registry.rollback(&of, request.version).map(|_| ());
    changed(work, state.service()?, name, back).await
}

/// Remove a persona, or one version of it
#[utoipa::path(
    delete,
    path = "/v1/personas/{name}",
    params(("name" = String, Path, description = "A persona's name, or name@version")),
    responses((status = 200, description = "What was removed", body = PersonaRemoved))
)]
pub(crate) async fn remove(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
) -> Result<Json<PersonaRemoved>, ApiError> {
    let (name, version) = named(&name)?;
    let service = state.service()?;
    let of = name.clone();
    let removed = work.administration(move || match version {
        Some(_) => service.change(|registry| registry.remove(&of, version)),
        None => service.unpublish(&of),
    });
    removed.await??;
    Ok(Json(PersonaRemoved::new(name, version)))
}

/// Send a percentage of the requests to another version
#[utoipa::path(
    put,
    path = "/v1/personas/{name}/canary",
    params(("name" = String, Path, description = "A persona's name")),
    request_body = TrafficPart,
    responses((status = 200, description = "The persona after the change", body = PersonaVersion))
)]
pub(crate) async fn canary(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
    Body(part): Body<TrafficPart>,
) -> Result<Json<PersonaVersion>, ApiError> {
    split(work, state, &name, Some(part), Registry::canary).await
}

/// End a canary
#[utoipa::path(
    delete,
    path = "/v1/personas/{name}/canary",
    params(("name" = String, Path, description = "A persona's name")),
    responses((status = 200, description = "The persona after the change", body = PersonaVersion))
)]
pub(crate) async fn end_canary(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
) -> Result<Json<PersonaVersion>, ApiError> {
    split(work, state, &name, None, Registry::canary).await
}

/// Send a percentage of the requests to another version too, for comparison
#[utoipa::path(
    put,
    path = "/v1/personas/{name}/shadow",
    params(("name" = String, Path, description = "A persona's name")),
    request_body = TrafficPart,
    responses((status = 200, description = "The persona after the change", body = PersonaVersion))
)]
pub(crate) async fn shadow(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
    Body(part): Body<TrafficPart>,
) -> Result<Json<PersonaVersion>, ApiError> {
    split(work, state, &name, Some(part), Registry::shadow).await
}

/// End a shadow
#[utoipa::path(
    delete,
    path = "/v1/personas/{name}/shadow",
    params(("name" = String, Path, description = "A persona's name")),
    responses((status = 200, description = "The persona after the change", body = PersonaVersion))
)]
pub(crate) async fn end_shadow(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
) -> Result<Json<PersonaVersion>, ApiError> {
    split(work, state, &name, None, Registry::shadow).await
}

type SetSplit = fn(&Registry, &str, Option<(u32, f64)>) -> Result<(), RegistryError>;

async fn split(
    work: Work,
    state: AppState,
    name: &str,
    part: Option<TrafficPart>,
    set: SetSplit,
) -> Result<Json<PersonaVersion>, ApiError> {
    let name = whole(name)?;
    let of = name.clone();
    let part = part.map(|part| (part.version, part.percent));
    changed(work, state.service()?, name, move |registry| {
        set(registry, &of, part)
    })
    .await
}

/// Set an alias of a persona, or of a version of it
#[utoipa::path(
    put,
    path = "/v1/persona_aliases/{alias}",
    params(("alias" = String, Path, description = "The alias")),
    request_body = NewAlias,
    responses((status = 200, description = "The alias", body = Alias))
)]
pub(crate) async fn alias(
    State(state): State<AppState>,
    work: Work,
    Path(alias): Path<String>,
    Body(request): Body<NewAlias>,
) -> Result<Json<Alias>, ApiError> {
    let alias = whole(&alias)?;
    let (name, version) = named(&request.target)?;
    let target = PersonaRef { name, version };
    let response = Alias::new(&alias, &target);
    let service = state.service()?;
    work.administration(move || service.alias(&alias, &target))
        .await??;
    Ok(Json(response))
}

/// Remove an alias
#[utoipa::path(
    delete,
    path = "/v1/persona_aliases/{alias}",
    params(("alias" = String, Path, description = "The alias")),
    responses((status = 200, description = "What was removed", body = AliasRemoved))
)]
pub(crate) async fn remove_alias(
    State(state): State<AppState>,
    work: Work,
    Path(alias): Path<String>,
) -> Result<Json<AliasRemoved>, ApiError> {
    let alias = whole(&alias)?;
    let response = AliasRemoved::new(&alias);
    let service = state.service()?;
    work.administration(move || service.change(|registry| registry.remove_alias(&alias)))
        .await??;
    Ok(Json(response))
}
