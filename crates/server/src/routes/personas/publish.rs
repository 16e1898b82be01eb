//! `POST /v1/personas/{name}/versions`: a new version.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use registry::PersonaSettings;
use serde::Deserialize;

use super::responses::PersonaVersion;
use super::settings_schema::SettingsShape;
use super::whole;
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::Body;
use crate::path::Path;
use crate::work::Work;
use service::{NewVersion, PublishError};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Publish {
    /// A PEFT folder under `--adapter-root`; by default the version has no adapter.
    adapter_path: Option<String>,
    /// The hash of an adapter that was sent to `/v1/adapters`, instead of a path.
    upload: Option<String>,
    /// Publish the adapter and the settings that the folder of personas has under this name.
    from_folder: Option<bool>,
    /// By default those of the persona's current version.
    #[schema(value_type = Option<SettingsShape>)]
    settings: Option<PersonaSettings>,
    /// Whether the name alone means this version from now on; by default true.
    current: Option<bool>,
    /// Refuse a name that exists.
    only_new: Option<bool>,
}

/// Publish a new version
#[utoipa::path(
    post,
    path = "/v1/personas/{name}/versions",
    params(("name" = String, Path, description = "A persona's name")),
    request_body = Publish,
    responses((status = 201, description = "The version", body = PersonaVersion))
)]
pub(crate) async fn publish(
    State(state): State<AppState>,
    work: Work,
    Path(name): Path<String>,
    Body(request): Body<Publish>,
) -> Result<(StatusCode, Json<PersonaVersion>), ApiError> {
    let name = whole(&name)?;
    let service = state.service()?;
    let sources = [
        request.adapter_path.is_some(),
        request.upload.is_some(),
        request.from_folder == Some(true),
    ];
    let sources = sources.into_iter().filter(|given| *given).count();
    if sources > 1 {
        return Err(ApiError::bad_request(
            "invalid_value",
            "adapter_path, upload and from_folder each name an adapter; give one of them",
            Some("upload".to_owned()),
        ));
    }
    if sources == 0 && request.settings.is_none() {
        return Err(ApiError::bad_request(
            "missing_field",
            "adapter_path and settings are both missing; a version has one of them at least, or an upload",
            Some("adapter_path".to_owned()),
        ));
    }
    let published = work.administration(move || {
        let adapter = request.adapter_path.as_deref();
        let mut adapter = adapter
            .map(|path| service.under_adapter_root(path))
            .transpose()?;
        let mut settings = request.settings;
        if let Some(sha256) = &request.upload {
            adapter = Some(service.uploaded(sha256)?);
        }
        if request.from_folder == Some(true) {
            let (path, own) = service.in_folder(&name)?;
            adapter = path;
            settings = settings.or(Some(own));
        }
        let published = service.publish(&NewVersion {
            name: name.clone(),
            adapter,
            settings,
            current: request.current != Some(false),
            only_new: request.only_new == Some(true),
        })?;
        if let Some(sha256) = &request.upload {
            // The registry has it now. If this fails, the upload expires.
            let _ = service.forget_upload(sha256);
        }
        let state = service.registry()?.state();
        Ok::<_, PublishError>(PersonaVersion::published(
            &state,
            &name,
            Some(published.version),
        )?)
    });
    let shown = published
        .await?
        .map_err(|error| ApiError::from(error).about("name", "adapter_path"))?;
    Ok((StatusCode::CREATED, Json(shown)))
}
