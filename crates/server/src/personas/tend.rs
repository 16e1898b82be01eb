//! `POST /v1/registry/verify` and `POST /v1/registry/gc`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;

use super::answers::{Garbage, VerifiedList};
use crate::app_state::AppState;
use crate::blocking::run_blocking;
use crate::error::ApiError;
use crate::json::Body;
use service::catalog::shown;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Collect {
    /// Seconds since an adapter was written, or last used, before it is garbage; a day without.
    older_than: Option<u64>,
    /// Only say what would be removed.
    dry_run: Option<bool>,
}

/// How old garbage must be where nobody says.
pub(crate) const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Read every stored adapter and compare its hash
#[utoipa::path(
    post,
    path = "/v1/registry/verify",
    responses((status = 200, description = "What was found", body = VerifiedList))
)]
pub(crate) async fn verify(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    let verified = run_blocking(move || service.change(registry::Registry::verify));
    Ok(Json(shown::verified(&verified.await??)))
}

/// Remove adapters that nothing names any more
#[utoipa::path(
    post,
    path = "/v1/registry/gc",
    request_body = Collect,
    responses((status = 200, description = "What was removed, or would be", body = Garbage))
)]
pub(crate) async fn collect_garbage(
    State(state): State<AppState>,
    Body(request): Body<Collect>,
) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    let older_than = request.older_than.map_or(A_DAY, Duration::from_secs);
    let dry_run = request.dry_run == Some(true);
    let collected = run_blocking(move || {
        service.change(|registry| registry.collect_garbage(older_than, dry_run))
    });
    Ok(Json(shown::collected(&collected.await??, dry_run)))
}
