//! `GET /v1/personas...`: who is there, and how that came.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::answers::{History, PersonaList, PersonaVersion, VersionList};
use super::{named, unknown, whole, with_state};
use crate::app_state::AppState;
use crate::error::ApiError;
use service::catalog::shown;

/// Every persona, and the aliases
#[utoipa::path(
    get,
    path = "/v1/personas",
    responses((status = 200, description = "The list", body = PersonaList))
)]
pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    Ok(Json(shown::list(service.catalog())))
}

/// One persona, with its settings
#[utoipa::path(
    get,
    path = "/v1/personas/{name}",
    params(("name" = String, Path, description = "A persona's name, or name@version")),
    responses((status = 200, description = "The persona", body = PersonaVersion))
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (name, version) = named(&name)?;
    let service = state.service()?;
    let personas = service.personas();
    let in_folder = personas
        .get(&name)
        .filter(|persona| persona.published.is_none());
    if let Some(persona) = in_folder {
        return match version.is_none_or(|version| version == persona.version) {
            true => Ok(Json(shown::folder_version(persona))),
            false => Err(unknown(format!("{name}@{}", version.unwrap_or(0))).into()),
        };
    }
    let shown = with_state(service, move |_, state| {
        Ok(shown::version(state, &name, version)?)
    });
    shown.await.map(Json)
}

/// Every version of a persona, the newest first
#[utoipa::path(
    get,
    path = "/v1/personas/{name}/versions",
    params(("name" = String, Path, description = "A persona's name")),
    responses((status = 200, description = "The list", body = VersionList))
)]
pub(crate) async fn versions(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let name = whole(&name)?;
    let service = state.service()?;
    let personas = service.personas();
    if let Some(persona) = personas.get(&name).filter(|one| one.published.is_none()) {
        let data = [shown::folder_version(persona)];
        return Ok(Json(json!({"object": "list", "data": data})));
    }
    let shown = with_state(service, move |_, state| Ok(shown::versions(state, &name)?));
    shown.await.map(Json)
}

/// What happened to a persona
#[utoipa::path(
    get,
    path = "/v1/personas/{name}/history",
    params(("name" = String, Path, description = "A persona's name")),
    responses((status = 200, description = "Its entries in the log", body = History))
)]
pub(crate) async fn history(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let name = whole(&name)?;
    let shown = with_state(state.service()?, move |_, state| {
        let history = shown::history(state, Some(&name));
        match history["data"]
            .as_array()
            .is_some_and(|data| !data.is_empty())
        {
            true => Ok(history),
            false => Err(unknown(name)),
        }
    });
    shown.await.map(Json)
}
