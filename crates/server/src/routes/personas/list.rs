//! `GET /v1/personas...`: which personas and versions there are, and their history.

use axum::Json;
use axum::extract::State;

use super::responses::{History, PersonaList, PersonaVersion, VersionList};
use super::{named, unknown, whole, with_state};
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::path::Path;
use crate::work::Work;

/// List personas and aliases
#[utoipa::path(
    get,
    path = "/v1/personas",
    responses((status = 200, description = "The list", body = PersonaList))
)]
pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<PersonaList>, ApiError> {
    let service = state.service()?;
    Ok(Json(PersonaList::new(service.catalog())))
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
    work: Work,
    Path(name): Path<String>,
) -> Result<Json<PersonaVersion>, ApiError> {
    let (name, version) = named(&name)?;
    let service = state.service()?;
    let personas = service.personas();
    let in_folder = personas
        .get(&name)
        .filter(|persona| persona.published.is_none());
    if let Some(persona) = in_folder {
        return match version.is_none_or(|version| version == persona.version) {
            true => Ok(Json(PersonaVersion::in_folder(persona))),
            false => Err(unknown(format!("{name}@{}", version.unwrap_or(0))).into()),
        };
    }
    let shown = with_state(service, &work, move |_, state| {
        Ok(PersonaVersion::published(state, &name, version)?)
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
    work: Work,
    Path(name): Path<String>,
) -> Result<Json<VersionList>, ApiError> {
    let name = whole(&name)?;
    let service = state.service()?;
    let personas = service.personas();
    if let Some(persona) = personas.get(&name).filter(|one| one.published.is_none()) {
        return Ok(Json(VersionList::in_folder(persona)));
    }
    let listed = with_state(service, &work, move |_, state| {
        Ok(VersionList::published(state, &name)?)
    });
    listed.await.map(Json)
}

/// The history of a persona
#[utoipa::path(
    get,
    path = "/v1/personas/{name}/history",
    params(("name" = String, Path, description = "A persona's name")),
    responses((status = 200, description = "Its entries in the log", body = History))
)]
pub(crate) async fn history(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
) -> Result<Json<History>, ApiError> {
    let name = whole(&name)?;
    let history = with_state(state.service()?, &work, move |_, state| {
        let history = History::new(state, Some(&name));
        match history.data.is_empty() {
            false => Ok(history),
            true => Err(unknown(name)),
        }
    });
    history.await.map(Json)
}
