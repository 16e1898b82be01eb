//! `GET /health`: the server is alive. `GET /ready`: the base is loaded and the server does not shut down; and whether it runs jobs.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app_state::{AppState, JobsAvailability};
use crate::error::ApiError;
use crate::server_state::ServerState;

/// How long `/ready` waits for the disk of the jobs; probes often wait for a second.
const DISK_TIMEOUT: Duration = Duration::from_millis(500);

/// The server is alive.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// The server accepts requests.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    /// `ready`.
    status: &'static str,
    /// The base's name.
    base: String,
    /// Whether files and training jobs work. The server answers requests either way; its log has the reason.
    jobs: JobsAvailability,
    /// What of the disk does not work, such as a folder that was removed while the server ran.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
    /// Only on a server without keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    personas: Option<Vec<String>>,
}

/// Whether the server is alive
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "The server is alive", body = Health))
)]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the base is loaded and the server accepts requests
#[utoipa::path(
    get,
    path = "/ready",
    responses((status = 200, description = "The server accepts requests", body = Ready))
)]
pub(super) async fn ready(
    State(state): State<AppState>,
    Extension(server): Extension<Arc<ServerState>>,
) -> Result<Json<Ready>, ApiError> {
    if server.is_draining() {
        return Err(ApiError::draining(server.settings.drain_timeout));
    }
    let service = state.service()?;
    service.check_device()?;
    // Keys limit which personas a client may see, and this route needs no key.
    let personas = server.settings.keys.is_none().then(|| {
        let personas = service.personas();
        personas.names().into_iter().map(str::to_owned).collect()
    });
    // Looks for files. A disk that does not answer must not make a server that serves look dead.
    let of_disk = Arc::clone(&service);
    let looked = server
        .pools
        .probe(move || (state.jobs_availability(), of_disk.disk_problems()));
    let (jobs, problems) = match tokio::time::timeout(DISK_TIMEOUT, looked).await {
        Ok(Ok(found)) => found,
        // The disk does not answer, or many others ask.
        Ok(Err(_)) | Err(_) => (JobsAvailability::Unavailable, Vec::new()),
    };
    Ok(Json(Ready {
        status: "ready",
        base: service.base().name.clone(),
        jobs,
        problems,
        personas,
    }))
}
