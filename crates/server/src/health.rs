//! `GET /health`: the server is alive. `GET /ready`: the base is loaded, and the server does not stop.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::answers::{Health, Ready};
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::server_state::ServerState;

/// Whether the server is alive
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "It is", body = Health))
)]
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Whether the base is loaded, and the server takes requests
#[utoipa::path(
    get,
    path = "/ready",
    responses((status = 200, description = "It does", body = Ready))
)]
pub(super) async fn ready(
    State(state): State<AppState>,
    Extension(server): Extension<Arc<ServerState>>,
) -> Result<Json<Value>, ApiError> {
    if server.is_draining() {
        return Err(ApiError::draining(server.settings.drain_timeout));
    }
    let service = state.service()?;
    let mut ready = json!({"status": "ready", "base": service.base().name});
    // Where keys say who may use whom, nobody is told without one who is there.
    if server.settings.keys.is_none() {
        ready["personas"] = json!(service.personas().names());
    }
    Ok(Json(ready))
}
