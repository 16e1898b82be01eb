//! `/v1/evaluations`: what was measured of personas, by `lory eval` or because a client asked for it.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::{Value, json};

use crate::answers::EvaluationList;
use crate::app_state::AppState;
use crate::blocking::run_blocking;
use crate::error::ApiError;
use crate::json::Body;
use crate::middleware::auth::ApiCaller;
use jobs::ResultError;
use jobs::records::evaluation::EvaluationProgress;
use jobs::records::failure::Failure;
use jobs::{Evaluation, EvaluationStatus, NewEvaluation, Viewer};

/// An evaluation that was asked for.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct EvaluationObject {
    id: String,
    /// `evaluation`.
    object: &'static str,
    status: EvaluationStatus,
    /// A Unix time.
    created_at: u64,
    /// A Unix time.
    #[schema(required)]
    finished_at: Option<u64>,
    /// Viewer is measured, each as `name@version`.
    personas: Vec<String>,
    /// The file whose rows they are asked; none for each one's own.
    #[schema(required)]
    file: Option<String>,
    /// The most rows of each.
    max_rows: usize,
    progress: EvaluationProgress,
    #[schema(required)]
    error: Option<Failure>,
    /// What was measured, as `lory eval --json` prints it, with the id that the list has it by.
    #[schema(required)]
    result: Option<Value>,
}

impl EvaluationObject {
    fn new(evaluation: Evaluation, result: Option<Value>) -> EvaluationObject {
        EvaluationObject {
            id: evaluation.id,
            object: "evaluation",
            status: evaluation.status,
            created_at: evaluation.created_at,
            finished_at: evaluation.finished_at,
            personas: evaluation.personas,
            file: evaluation.file,
            max_rows: evaluation.max_rows,
            progress: evaluation.progress,
            error: evaluation.error,
            result,
        }
    }
}

/// Every evaluation that is kept, the newest first
#[utoipa::path(
    get,
    path = "/v1/evaluations",
    responses((status = 200, description = "The list", body = EvaluationList))
)]
pub(super) async fn list(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    state.service()?;
    let listed = run_blocking(move || {
        let kept = state.results()?;
        let one = |id: String| {
            let found = kept.read(&id)?;
            let personas = found["personas"].as_array().into_iter().flatten();
            let personas: Vec<Value> = personas
                .map(|one| json!({"name": one["name"], "version": one["version"], "adapter": one["adapter"]}))
                .collect();
            Ok(json!({
                "object": "evaluation",
                "id": id,
                "time": found["time"],
                "base": found["base"],
                "personas": personas,
                "missed": found["missed"],
            }))
        };
        let data: Result<Vec<Value>, ResultError> = kept.ids()?.into_iter().map(one).collect();
        Ok::<Value, ResultError>(json!({"object": "list", "data": data?}))
    });
    Ok(Json(listed.await??))
}

/// Have personas measured
///
/// What `lory eval` does, one at a time in the background, beside the answers. The result joins the list.
#[utoipa::path(
    post,
    path = "/v1/evaluations",
    request_body = NewEvaluation,
    responses((status = 200, description = "The evaluation, which waits", body = EvaluationObject))
)]
pub(super) async fn create(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Body(new): Body<NewEvaluation>,
) -> Result<Json<EvaluationObject>, ApiError> {
    let jobs = state.jobs()?;
    let asked = run_blocking(move || jobs.evaluate(&caller, &new)).await??;
    Ok(Json(EvaluationObject::new(asked, None)))
}

/// One evaluation
///
/// By the id that asking for it gave: how far it is, and then what was measured, as the answer of the POST is. By an id of the list, for
/// admins: what was measured.
#[utoipa::path(
    get,
    path = "/v1/evaluations/{id}",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The evaluation; or its result, as `lory eval --json` prints it", body = serde_json::Value))
)]
pub(super) async fn retrieve(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if id.starts_with(jobs::evaluation::requests::ID) {
        let jobs = state.jobs()?;
        let found = run_blocking(move || jobs.evaluation(&Viewer::of(&caller), &id));
        let (evaluation, result) = found.await??;
        return Ok(Json(json!(EvaluationObject::new(evaluation, result))));
    }
    if let Some(key) = caller.key() {
        key.check_admin()?;
    }
    state.service()?;
    let read = run_blocking(move || state.results()?.read(&id));
    Ok(Json(read.await??))
}

/// Give an evaluation up
#[utoipa::path(
    post,
    path = "/v1/evaluations/{id}/cancel",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The evaluation", body = EvaluationObject))
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<EvaluationObject>, ApiError> {
    let jobs = state.jobs()?;
    let cancelled = run_blocking(move || jobs.cancel_evaluation(&Viewer::of(&caller), &id));
    Ok(Json(EvaluationObject::new(cancelled.await??, None)))
}
