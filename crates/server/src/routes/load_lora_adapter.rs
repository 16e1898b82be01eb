//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter` with vLLM's bodies, statuses and texts, but the error shape of all
//! routes. Unlike in vLLM, a loaded adapter is published: it is still there after a restart.

use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::Body;
use crate::work::Work;
use registry::RegistryError;
use service::{NewVersion, PublishError};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    #[serde(default)]
    lora_name: String,
    #[serde(default)]
    lora_path: String,
    load_inplace: Option<bool>,
    // vLLM's, for a kind of adapter that is not supported.
    is_3d_lora_weight: Option<bool>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Unload {
    #[serde(default)]
    lora_name: String,
    // vLLM's; adapters have names only.
    #[serde(rename = "lora_int_id")]
    _lora_int_id: Option<Value>,
}

/// Publish an adapter, as vLLM loads one
#[utoipa::path(
    post,
    path = "/v1/load_lora_adapter",
    request_body = Load,
    responses((status = 200, description = "vLLM's text", body = String, content_type = "text/plain"))
)]
pub(super) async fn load(
    State(state): State<AppState>,
    work: Work,
    Body(load): Body<Load>,
) -> Result<String, ApiError> {
    let service = state.service()?;
    let Load {
        lora_name: name,
        lora_path: path,
        ..
    } = load;
    if name.is_empty() || path.is_empty() {
        let field = if name.is_empty() {
            "lora_name"
        } else {
            "lora_path"
        };
        return Err(ApiError::bad_request(
            "missing_field",
            "Both 'lora_name' and 'lora_path' must be provided.",
            Some(field.to_owned()),
        ));
    }
    if load.is_3d_lora_weight == Some(true) {
        return Err(ApiError::unsupported(
            "is_3d_lora_weight",
            "is_3d_lora_weight is not supported; leave it out",
        ));
    }
    let only_new = load.load_inplace != Some(true);
    let shown_name = name.clone();
    let published = work
        .administration(move || {
            let adapter = service.under_adapter_root(&path)?;
            service.publish(&NewVersion {
                name,
                adapter: Some(adapter),
                settings: None,
                current: true,
                only_new,
            })
        })
        .await?;
    match published {
        Ok(_) => Ok(format!(
            "Success: LoRA adapter '{shown_name}' added successfully."
        )),
        Err(PublishError::Registry(RegistryError::Exists { name })) => Err(ApiError::bad_request(
            "already_loaded",
            format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set \
                 'load_inplace' to True."
            ),
            Some("lora_name".to_owned()),
        )),
        Err(error) => Err(ApiError::from(error).about("lora_name", "lora_path")),
    }
}

/// Remove a persona, as vLLM unloads an adapter
#[utoipa::path(
    post,
    path = "/v1/unload_lora_adapter",
    request_body = Unload,
    responses((status = 200, description = "vLLM's text", body = String, content_type = "text/plain"))
)]
pub(super) async fn unload(
    State(state): State<AppState>,
    work: Work,
    Body(unload): Body<Unload>,
) -> Result<String, ApiError> {
    let service = state.service()?;
    let name = unload.lora_name;
    if name.is_empty() {
        return Err(ApiError::bad_request(
            "missing_field",
            "'lora_name' needs to be provided to unload a LoRA adapter.",
            Some("lora_name".to_owned()),
        ));
    }
    let shown_name = name.clone();
    match work
        .administration(move || service.unpublish(&name))
        .await?
    {
        Ok(()) => Ok(format!(
            "Success: LoRA adapter '{shown_name}' removed successfully."
        )),
        Err(PublishError::Registry(RegistryError::Unknown { alias: None, .. })) => {
            Err(ApiError::missing(
                "persona_not_found",
                format!("The lora adapter '{shown_name}' cannot be found."),
                "lora_name",
            ))
        }
        Err(error) => Err(ApiError::from(error).about("lora_name", "lora_path")),
    }
}
