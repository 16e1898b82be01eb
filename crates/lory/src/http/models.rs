//! `GET /v1/models`: the base and the personas, in OpenAI's shape.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Slot;
use super::error::ApiError;

pub(super) async fn models(State(slot): State<Slot>) -> Result<Json<Value>, ApiError> {
    let service = slot.service()?;
    let base = &service.base().name;
    let model = |id: &str, root: &str, parent: Option<&str>| {
        json!({
            "id": id,
            "object": "model",
            "created": slot.created(),
            "owned_by": "lory",
            "root": root,
            "parent": parent,
        })
    };
    let mut data = vec![model(base, base, None)];
    for name in service.personas().names() {
        data.push(model(name, base, Some(base)));
    }
    Ok(Json(json!({"object": "list", "data": data})))
}
