//! `POST /v1/adapters` and `DELETE /v1/adapters/{sha256}`: uploads an adapter as an archive and checks it, to be published or discarded.

use std::pin::Pin;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::Stream as _;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::middleware::auth::ApiCaller;
use crate::path::Path;
use crate::work::Work;
use service::Caller;
use service::uploads::Uploaded;

/// An uploaded adapter that can be published.
#[derive(Serialize, ToSchema)]
#[schema(as = UploadShown)]
pub(crate) struct Upload {
    /// `adapter.upload`.
    object: &'static str,
    /// Its content hash, by which it is published.
    sha256: String,
    /// Bytes of its weights file.
    bytes: u64,
    /// The type of its weights: `f32`, `f16` or `bf16`.
    dtype: String,
    /// The largest rank of its pairs.
    rank: u64,
    alpha: f64,
    /// The linear layers that it changes.
    modules: Vec<&'static str>,
    /// How many layers of the model it changes.
    layers: u64,
    /// Pairs of A and B.
    pairs: u64,
    /// The numbers in them.
    parameters: u64,
    /// The base that its configuration names.
    #[schema(required)]
    base_name: Option<String>,
    /// The sha256 of the file of the base that it was trained on, if it records one.
    #[schema(required)]
    base_sha256: Option<String>,
    /// Whether this server's base can run it.
    fits: bool,
    /// Why not.
    #[schema(required)]
    problem: Option<String>,
    /// Files of the archive that were ignored.
    passed_over: Vec<String>,
    /// The name of the key that uploaded it; none on a server without keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

/// A discarded upload.
#[derive(Serialize, ToSchema)]
pub(crate) struct UploadForgotten {
    /// `adapter.upload.forgotten`.
    object: &'static str,
    sha256: String,
    /// True.
    forgotten: bool,
}

/// Upload an adapter, and learn whether this server can run it
///
/// The body is a zip archive of a PEFT folder, of at most 1 GiB. Nothing is published: publish it by its hash, as `upload`, within an
/// hour.
#[utoipa::path(
    post,
    path = "/v1/adapters",
    request_body(content = String, content_type = "application/zip"),
    responses((status = 201, description = "The adapter", body = Upload))
)]
pub(crate) async fn upload(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Upload>), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map_or("nothing", |kind| kind.to_str().unwrap_or("something else"));
    if !matches!(kind, "application/zip" | "application/x-zip-compressed") {
        return Err(ApiError::not_zip(kind));
    }
    let service = state.service()?;
    let receiver = std::sync::Arc::clone(&service);
    let owner = caller.owner();
    let created = work.administration(move || receiver.new_upload(owner));
    let mut archive = created.await?.map_err(service::PublishError::from)?;
    let mut stream = body.into_data_stream();
    while let Some(piece) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        let piece = piece.map_err(|error| {
            ApiError::bad_request(
                "invalid_body",
                format!("the body ended early: {error}"),
                None,
            )
        })?;
        // The disk may be slow; one piece after the other is written.
        let written = tokio::task::spawn_blocking(move || {
            let written = archive.write(&piece);
            (archive, written)
        });
        let (returned, written) = written
            .await
            .map_err(|_| ApiError::internal("the archive could not be written"))?;
        archive = returned;
        written.map_err(service::PublishError::from)?;
    }
    let received = work
        .administration({
            let owner = caller.owner();
            move || service.receive(archive, &owner)
        })
        .await?;
    let uploaded = received.map_err(service::PublishError::from)?;
    Ok((StatusCode::CREATED, Json(Upload::new(uploaded, &caller))))
}

/// Discard an uploaded adapter
#[utoipa::path(
    delete,
    path = "/v1/adapters/{sha256}",
    params(("sha256" = String, Path, description = "Its content hash")),
    responses((status = 200, description = "The upload was discarded", body = UploadForgotten))
)]
pub(crate) async fn forget(
    State(state): State<AppState>,
    work: Work,
    Path(sha256): Path<String>,
) -> Result<Json<UploadForgotten>, ApiError> {
    let service = state.service()?;
    let forgotten = UploadForgotten {
        object: "adapter.upload.forgotten",
        sha256: sha256.clone(),
        forgotten: true,
    };
    work.administration(move || service.forget_upload(&sha256))
        .await??;
    Ok(Json(forgotten))
}

impl Upload {
    fn new(uploaded: Uploaded, caller: &Caller) -> Upload {
        Upload {
            object: "adapter.upload",
            sha256: uploaded.sha256,
            bytes: uploaded.bytes,
            dtype: format!("{:?}", uploaded.dtype).to_lowercase(),
            rank: uploaded.rank as u64,
            alpha: uploaded.alpha,
            modules: uploaded.modules,
            layers: uploaded.layers as u64,
            pairs: uploaded.pairs as u64,
            parameters: uploaded.parameters as u64,
            base_name: uploaded.base_name,
            base_sha256: uploaded.base_sha256,
            fits: uploaded.problem.is_none(),
            problem: uploaded.problem,
            passed_over: uploaded.passed_over,
            owner: caller.shown_owner(caller.owner().name().map(str::to_owned)),
        }
    }
}
