//! `GET /v1/models`: the base and the personas that the caller may use, in OpenAI's shape with vLLM's `root` (where the adapter
//! lies, for admins; the base for others) and `parent` (the base).

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::answers::ModelList;
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::middleware::auth::ApiCaller;

/// The base and the personas that the key may use
#[utoipa::path(
    get,
    path = "/v1/models",
    responses((status = 200, description = "The list", body = ModelList))
)]
pub(super) async fn models(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    let base = &service.base().name;
    let model = |id: &str, created: u64, root: &str, parent: Option<&str>| {
        json!({
            "id": id,
            "object": "model",
            "created": created,
            "owned_by": "lory",
            "root": root,
            "parent": parent,
        })
    };
    let started = state.started_at();
    let mut data = Vec::new();
    if caller.check_base(base).is_ok() {
        data.push(model(base, started, base, None));
    }
    let personas = service.personas();
    for persona in personas
        .names()
        .into_iter()
        .filter(|name| caller.may_use(name))
        .filter_map(|name| personas.get(name))
    {
        let adapter = persona.adapter.as_ref();
        // Where files lie is for those who put them there.
        let adapter = adapter.filter(|_| caller.is_admin());
        let root = adapter.map_or_else(
            || base.clone(),
            |adapter| adapter.path.display().to_string(),
        );
        let created = persona.published.unwrap_or(started);
        let mut card = model(&persona.name, created, &root, Some(base));
        // What whoever asks it may or must give.
        if !persona.variables.is_empty() {
            card["variables"] = json!(persona.variables);
        }
        data.push(card);
    }
    Ok(Json(json!({"object": "list", "data": data})))
}
