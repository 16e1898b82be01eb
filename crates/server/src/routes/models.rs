//! `/v1/models`: the base, aliases and the personas that the caller may use, in OpenAI's shape with vLLM's `root` and `parent`.

use axum::Json;
use axum::extract::State;
use registry::{Persona, Variables};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::middleware::auth::ApiCaller;
use crate::path::Path;
use service::{Caller, NamedModel, requested_name};

/// The base, aliases and the personas that the key may use.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: &'static str,
    data: Vec<ModelCard>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ModelCard {
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

/// Makes the cards of models.
struct Cards<'a> {
    base: &'a str,
    started_at: u64,
    /// Whether the caller may see where adapters are.
    is_admin: bool,
}

impl Cards<'_> {
    /// The card of `id`, which means the base, a blend, or this persona.
    fn card(&self, id: &str, parent: Option<&str>, persona: Option<&Persona>) -> ModelCard {
        let published = persona.and_then(|persona| persona.published);
        let adapter = persona.and_then(|persona| persona.adapter.as_ref());
        let adapter = adapter.filter(|_| self.is_admin);
        let variables = persona.map(|persona| &persona.variables);
        let variables = variables.filter(|variables| !variables.is_empty());
        ModelCard {
            id: id.to_owned(),
            object: "model",
            created: published.unwrap_or(self.started_at),
            owned_by: "lory",
            root: adapter.map_or_else(
                || self.base.to_owned(),
                |adapter| adapter.path.display().to_string(),
            ),
            parent: parent.map(str::to_owned),
            variables: variables.cloned(),
        }
    }

    /// The card of a name after its lookup.
    fn named(&self, id: &str, model: &NamedModel<'_>) -> ModelCard {
        match model {
            NamedModel::Base => self.card(id, None, None),
            NamedModel::Personas { parts, .. } => {
                let persona = match parts.as_slice() {
                    [only] => Some(only.persona),
                    _ => None,
                };
                self.card(id, Some(self.base), persona)
            }
        }
    }
}

/// The base, aliases and the personas that the key may use
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
    let personas = service.personas();
    let base = &service.base().name;
    let cards = Cards {
        base,
        started_at: state.started_at(),
        is_admin: caller.is_admin(),
    };
    let mut data = Vec::new();
    if caller.check_base(base).is_ok() {
        data.push(cards.card(base, None, None));
    }
    let aliases = service.model_aliases(&caller);
    for alias in &aliases {
        // The persona that an alias means may not be published yet.
        if let Ok(model) = service.find_model(&personas, &caller, alias) {
            data.push(cards.named(alias, &model));
        }
    }
    for persona in personas
        .names()
        .into_iter()
        .filter(|name| {
            caller.may_use(name) && !aliases.contains(name) && !service.base().is_named(name)
        })
        .filter_map(|name| personas.get(name))
    {
        data.push(cards.card(&persona.name, Some(base), Some(persona)));
    }
    Ok(Json(ModelList {
        object: "list",
        data,
    }))
}

/// One model: the base, an alias, a persona, a version of one, or a blend
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    params(("id" = String, Path, description = "The name that requests give as `model`")),
    responses((status = 200, description = "The model", body = ModelCard))
)]
pub(super) async fn retrieve(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    card_of(&state, &caller, requested_name(&id))
}

/// As [`retrieve`], for a name with a slash that the client did not escape, such as `openai/gpt-oss`.
pub(super) async fn retrieve_owned(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path((owner, name)): Path<(String, String)>,
) -> Result<Json<ModelCard>, ApiError> {
    card_of(&state, &caller, requested_name(&format!("{owner}/{name}")))
}

fn card_of(state: &AppState, caller: &Caller, id: &str) -> Result<Json<ModelCard>, ApiError> {
    let service = state.service()?;
    let personas = service.personas();
    let model = service.find_model(&personas, caller, id)?;
    let cards = Cards {
        base: &service.base().name,
        started_at: state.started_at(),
        is_admin: caller.is_admin(),
    };
    Ok(Json(cards.named(id, &model)))
}
