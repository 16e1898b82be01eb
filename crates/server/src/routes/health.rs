//! `GET /health`: the server is alive. `GET /ready`: the base is loaded and the server does not shut down.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::server_state::ServerState;

/// The server is alive.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// The server accepts requests.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    /// `ready`.
    status: &'static str,
    /// The base's name.
    base: String,
    /// Only on a server without keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    personas: Option<Vec<String>>,
}

/// Whether the server is alive
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "The server is alive", body = Health))
)]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the base is loaded and the server accepts requests
#[utoipa::path(
    get,
    path = "/ready",
    responses((status = 200, description = "The server accepts requests", body = Ready))
)]
pub(super) async fn ready(
    State(state): State<AppState>,
    Extension(server): Extension<Arc<ServerState>>,
) -> Result<Json<Ready>, ApiError> {
    if server.is_draining() {
        return Err(ApiError::draining(server.settings.drain_timeout));
    }
    let service = state.service()?;
    // Keys limit which personas a client may see, and this route needs no key.
    let personas = server.settings.keys.is_none().then(|| {
        let personas = service.personas();
        personas.names().into_iter().map(str::to_owned).collect()
    });
    Ok(Json(Ready {
        status: "ready",
        base: service.base().name.clone(),
        personas,
    }))
}
