//! `POST /v1/adapters` and `DELETE /v1/adapters/{sha256}`: an adapter sent as an archive, looked at, to be published or forgotten.

use std::io::Write as _;
use std::pin::Pin;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::Stream as _;
use serde_json::{Value, json};

use super::answers::{UploadForgotten, UploadShown};
use crate::app_state::AppState;
use crate::blocking::run_blocking;
use crate::error::ApiError;
use service::MAX_ARCHIVE;
use service::uploads::{UploadError, Uploaded};

/// Pieces of an archive that may wait for the disk.
const AHEAD: usize = 4;

/// Send an adapter, and hear whether it would run here
///
/// The body is a zip archive of a PEFT folder, of at most 1 GiB. Nothing is published: publish it by its hash, as `upload`, within an
/// hour.
#[utoipa::path(
    post,
    path = "/v1/adapters",
    request_body(content = String, content_type = "application/zip"),
    responses((status = 201, description = "What it holds", body = UploadShown))
)]
pub(crate) async fn upload(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map_or("nothing", |kind| kind.to_str().unwrap_or("something else"));
    if !matches!(kind, "application/zip" | "application/x-zip-compressed") {
        return Err(ApiError::not_zip(kind));
    }
    let service = state.service()?;
    let (pieces, mut arriving) = tokio::sync::mpsc::channel::<axum::body::Bytes>(AHEAD);
    let received = tokio::task::spawn_blocking(move || {
        let mut archive = service.new_upload()?;
        let path = archive.path().to_owned();
        let mut bytes = 0;
        while let Some(piece) = arriving.blocking_recv() {
            bytes += piece.len() as u64;
            if bytes > MAX_ARCHIVE {
                return Err(UploadError::TooLarge {
                    name: "the archive".to_owned(),
                    limit: MAX_ARCHIVE,
                });
            }
            let io = |source| UploadError::Io {
                path: path.clone(),
                source,
            };
            archive.write_all(&piece).map_err(io)?;
        }
        service.receive(&archive)
    });
    let mut stream = body.into_data_stream();
    while let Some(piece) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        let piece = piece.map_err(|error| {
            ApiError::bad_request("invalid_body", format!("the body broke off: {error}"), None)
        })?;
        // Whoever does not take more says below why.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let received = received
        .await
        .map_err(|_| ApiError::internal("the work broke off; the log says why"))?;
    let uploaded = received.map_err(service::PublishError::from)?;
    Ok((StatusCode::CREATED, Json(shown(&uploaded))))
}

/// Forget an adapter that was sent
#[utoipa::path(
    delete,
    path = "/v1/adapters/{sha256}",
    params(("sha256" = String, Path, description = "Its content hash")),
    responses((status = 200, description = "It is gone", body = UploadForgotten))
)]
pub(crate) async fn forget(
    State(state): State<AppState>,
    Path(sha256): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    let gone = json!({"object": "adapter.upload.forgotten", "sha256": sha256, "forgotten": true});
    run_blocking(move || service.forget_upload(&sha256)).await??;
    Ok(Json(gone))
}

fn shown(uploaded: &Uploaded) -> Value {
    json!({
        "object": "adapter.upload",
        "sha256": uploaded.sha256,
        "bytes": uploaded.bytes,
        "dtype": format!("{:?}", uploaded.dtype).to_lowercase(),
        "rank": uploaded.rank,
        "alpha": uploaded.alpha,
        "modules": uploaded.modules,
        "layers": uploaded.layers,
        "pairs": uploaded.pairs,
        "parameters": uploaded.parameters,
        "base_name": uploaded.base_name,
        "base_sha256": uploaded.base_sha256,
        "fits": uploaded.problem.is_none(),
        "problem": uploaded.problem,
        "passed_over": uploaded.passed_over,
    })
}
