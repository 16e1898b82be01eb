//! `GET /v1/models`: the base and the personas that the caller may use, in OpenAI's shape with vLLM's `root` and `parent`.

use axum::Json;
use axum::extract::State;
use registry::Variables;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::middleware::auth::ApiCaller;

/// The base and the personas that the key may use.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: &'static str,
    data: Vec<ModelCard>,
}

#[derive(Serialize, ToSchema)]
struct ModelCard {
    id: String,
    /// `model`.
    object: &'static str,
    /// A Unix time.
    created: u64,
    owned_by: &'static str,
    /// The path of the adapter, for keys with admin rights; for others the base.
    root: String,
    /// The base, for a persona.
    #[schema(required)]
    parent: Option<String>,
    /// The variables of its system prompt, if it has any: their defaults, or `{"required": true}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, serde_json::Value>>)]
    variables: Option<Variables>,
}

/// The base and the personas that the key may use
#[utoipa::path(
    get,
    path = "/v1/models",
    responses((status = 200, description = "The list", body = ModelList))
)]
pub(super) async fn models(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
) -> Result<Json<ModelList>, ApiError> {
    let service = state.service()?;
    let base = &service.base().name;
    let started_at = state.started_at();
    let card = |id: &str, created: u64| ModelCard {
        id: id.to_owned(),
        object: "model",
        created,
        owned_by: "lory",
        root: base.clone(),
        parent: None,
        variables: None,
    };
    let mut data = Vec::new();
    if caller.check_base(base).is_ok() {
        data.push(card(base, started_at));
    }
    let personas = service.personas();
    for persona in personas
        .names()
        .into_iter()
        .filter(|name| caller.may_use(name))
        .filter_map(|name| personas.get(name))
    {
        let mut card = card(&persona.name, persona.published.unwrap_or(started_at));
        card.parent = Some(base.clone());
        if let Some(adapter) = persona.adapter.as_ref().filter(|_| caller.is_admin()) {
            card.root = adapter.path.display().to_string();
        }
        if !persona.variables.is_empty() {
            card.variables = Some(persona.variables.clone());
        }
        data.push(card);
    }
    Ok(Json(ModelList {
        object: "list",
        data,
    }))
}
