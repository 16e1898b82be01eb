//! `GET /health`: the server is alive. `GET /ready`: the base is loaded.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Slot;
use super::error::ApiError;

pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

pub(super) async fn ready(State(slot): State<Slot>) -> Result<Json<Value>, ApiError> {
    let service = slot.service()?;
    Ok(Json(json!({
        "status": "ready",
        "base": service.base().name,
        "personas": service.personas().names(),
    })))
}
