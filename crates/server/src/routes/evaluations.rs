//! `/v1/evaluations`: measurements of personas, by `lory eval` or on a client's request.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::Body;
use crate::middleware::auth::ApiCaller;
use crate::path::Path;
use crate::work::Work;
use jobs::ResultError;
use jobs::records::evaluation::EvaluationProgress;
use jobs::records::failure::Failure;
use jobs::{Evaluation, EvaluationStatus, NewEvaluation, Viewer};
use service::Caller;

/// Evaluations, the newest first.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct EvaluationList {
    /// `list`.
    object: &'static str,
    data: Vec<EvaluationCard>,
}

/// A stored result, in short.
#[derive(Serialize, utoipa::ToSchema)]
struct EvaluationCard {
    /// `evaluation`.
    object: &'static str,
    id: String,
    /// A Unix time.
    #[schema(value_type = u64)]
    time: Value,
    #[schema(value_type = String)]
    base: Value,
    personas: Vec<Evaluated>,
    /// The thresholds that were missed, in words.
    #[schema(value_type = Vec<String>)]
    missed: Value,
}

#[derive(Serialize, utoipa::ToSchema)]
struct Evaluated {
    #[schema(value_type = String)]
    name: Value,
    #[schema(value_type = u32)]
    version: Value,
    /// The content hash.
    #[schema(required, value_type = Option<String>)]
    adapter: Value,
}

impl EvaluationCard {
    /// The fields of a stored result, which may be of an older version, as they are.
    fn new(id: String, result: &Value) -> EvaluationCard {
        let personas = result["personas"].as_array().into_iter().flatten();
        EvaluationCard {
            object: "evaluation",
            id,
            time: result["time"].clone(),
            base: result["base"].clone(),
            personas: personas
                .map(|persona| Evaluated {
                    name: persona["name"].clone(),
                    version: persona["version"].clone(),
                    adapter: persona["adapter"].clone(),
                })
                .collect(),
            missed: result["missed"].clone(),
        }
    }
}

/// An evaluation that a client requested.
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
    /// The personas to measure, each as `name@version`.
    personas: Vec<String>,
    /// The file whose rows are the prompts; if none, each persona's own rows.
    #[schema(required)]
    file: Option<String>,
    /// The most rows of each persona.
    max_rows: usize,
    progress: EvaluationProgress,
    #[schema(required)]
    error: Option<Failure>,
    /// The result, as `lory eval --json` prints it, with its id in the list of results.
    #[schema(required)]
    result: Option<Value>,
    /// The name of the key that owns it. Only keys with admin rights see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

/// An evaluation, or the result of one of `lory eval` as it is stored.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum EvaluationOrResult {
    Evaluation(Box<EvaluationObject>),
    Result(Value),
}

impl EvaluationObject {
    fn new(evaluation: Evaluation, result: Option<Value>, caller: &Caller) -> EvaluationObject {
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
            owner: caller.shown_owner(evaluation.owner),
        }
    }
}

/// List stored evaluations, the newest first
#[utoipa::path(
    get,
    path = "/v1/evaluations",
    responses((status = 200, description = "The list", body = EvaluationList))
)]
pub(super) async fn list(
    State(state): State<AppState>,
    work: Work,
) -> Result<Json<EvaluationList>, ApiError> {
    state.service()?;
    let listed = work.records(move || {
        let results = state.results()?;
        let ids = results.ids()?.into_iter();
        // A damaged result affects only itself.
        let cards = ids.filter_map(|id| match results.read(&id) {
            Ok(result) => Some(EvaluationCard::new(id, &result)),
            Err(error) => {
                tracing::error!("{error}; the result is skipped");
                None
            }
        });
        let data = cards.collect();
        Ok::<_, ResultError>(EvaluationList {
            object: "list",
            data,
        })
    });
    Ok(Json(listed.await??))
}

/// Start an evaluation of personas
///
/// Does what `lory eval` does, in the background. Evaluations run one at a time; the result is added to the list.
#[utoipa::path(
    post,
    path = "/v1/evaluations",
    request_body = NewEvaluation,
    responses((status = 200, description = "The queued evaluation", body = EvaluationObject))
)]
pub(super) async fn create(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Body(new): Body<NewEvaluation>,
) -> Result<Json<EvaluationObject>, ApiError> {
    let jobs = state.jobs()?;
    let creator = caller.clone();
    let evaluation = work
        .records(move || jobs.evaluate(&creator, &new))
        .await??;
    Ok(Json(EvaluationObject::new(evaluation, None, &caller)))
}

/// One evaluation
///
/// With the id that the POST returned: its progress, and its result once it has one. With an id of the list, for keys with admin rights:
/// the result.
#[utoipa::path(
    get,
    path = "/v1/evaluations/{id}",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The evaluation; or its result, as `lory eval --json` prints it", body = serde_json::Value))
)]
pub(super) async fn retrieve(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<EvaluationOrResult>, ApiError> {
    if id.starts_with(jobs::records::evaluation::ID_PREFIX) {
        let jobs = state.jobs()?;
        let who = Viewer::of(&caller);
        let found = work.records(move || jobs.evaluation(&who, &id));
        let (evaluation, result) = found.await??;
        let evaluation = EvaluationObject::new(evaluation, result, &caller);
        return Ok(Json(EvaluationOrResult::Evaluation(Box::new(evaluation))));
    }
    if let Some(key) = caller.key() {
        key.check_admin()?;
    }
    state.service()?;
    let read = work.records(move || state.results()?.read(&id));
    Ok(Json(EvaluationOrResult::Result(read.await??)))
}

/// Cancel an evaluation
#[utoipa::path(
    post,
    path = "/v1/evaluations/{id}/cancel",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The evaluation", body = EvaluationObject))
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<EvaluationObject>, ApiError> {
    let jobs = state.jobs()?;
    let who = Viewer::of(&caller);
    let cancelled = work.records(move || jobs.cancel_evaluation(&who, &id));
    Ok(Json(EvaluationObject::new(
        cancelled.await??,
        None,
        &caller,
    )))
}
