//! `POST /v1/registry/verify` and `POST /v1/registry/gc`: maintenance of what the registry stores.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::responses::{Garbage, VerifiedList};
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::Body;
use crate::work::Work;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Collect {
    /// How many seconds ago an adapter must have been written, or last used, to be removed; by default a day.
    older_than: Option<u64>,
    /// Report what would be removed, and remove nothing.
    dry_run: Option<bool>,
}

/// The default of `older_than`.
const DEFAULT_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Read every stored adapter and compare its hash
#[utoipa::path(
    post,
    path = "/v1/registry/verify",
    responses((status = 200, description = "What was found", body = VerifiedList))
)]
pub(crate) async fn verify(
    State(state): State<AppState>,
    work: Work,
) -> Result<Json<VerifiedList>, ApiError> {
    let service = state.service()?;
    let verified = work.administration(move || service.change(registry::Registry::verify));
    Ok(Json(VerifiedList::new(&verified.await??)))
}

/// Remove adapters that no version uses
#[utoipa::path(
    post,
    path = "/v1/registry/gc",
    request_body = Collect,
    responses((status = 200, description = "What was removed, or would be", body = Garbage))
)]
pub(crate) async fn collect_garbage(
    State(state): State<AppState>,
    work: Work,
    Body(request): Body<Collect>,
) -> Result<Json<Garbage>, ApiError> {
    let service = state.service()?;
    let older_than = request.older_than.map_or(DEFAULT_AGE, Duration::from_secs);
    let dry_run = request.dry_run == Some(true);
    let collected = work.administration(move || {
        service.change(|registry| registry.collect_garbage(older_than, dry_run))
    });
    Ok(Json(Garbage::new(collected.await??, dry_run)))
}
