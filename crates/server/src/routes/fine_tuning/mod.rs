//! `/v1/fine_tuning`: training jobs, in OpenAI's shapes.

mod responses;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::Body;
use crate::middleware::auth::ApiCaller;
use crate::path::Path;
use crate::query::Query;
use crate::work::Work;
use jobs::{JobRecord, JobsState, NewJob, Viewer};
use responses::{
    CheckpointList, CheckpointObject, EventList, EventObject, JobDeleted, JobList, JobObject,
    SampleList, SampleObject,
};
use service::Caller;

/// The prefixes of the ids of events and checkpoints.
const EVENT: &str = "ftevent-";
const CHECKPOINT: &str = "ftckpt-";

/// Create a training job
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs",
    request_body = NewJob,
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn create(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Body(new): Body<NewJob>,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = state.jobs()?;
    let creator = caller.clone();
    let record = work
        .records(move || jobs.create_job(&creator, &new))
        .await??;
    Ok(Json(JobObject::new(record, &caller)))
}

/// Plan a training job
///
/// Accepts the body that creates a job and reads the files, but creates nothing.
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/plan",
    request_body = NewJob,
    responses((status = 200, description = "As `lory train --plan --json`: steps, tokens, memory in bytes and the estimated seconds", body = serde_json::Value))
)]
pub(super) async fn plan(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Body(new): Body<NewJob>,
) -> Result<Json<Value>, ApiError> {
    let jobs = state.jobs()?;
    let plan = work.background(move |running| {
        let plan = jobs.plan(&caller, &new, running.cancelled())?;
        Ok::<Value, ApiError>(json!(plan))
    });
    Ok(Json(plan.await??))
}

/// List training jobs
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs",
    params(
        ("after" = Option<String>, Query, description = "Only items after this id"),
        ("limit" = Option<usize>, Query, description = "The most items, 1 to 100; by default 20"),
        ("metadata" = Option<String>, Query, description = "As metadata[key]=value: only jobs with this value"),
    ),
    responses((status = 200, description = "Jobs", body = JobList))
)]
pub(super) async fn list(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    mut query: Query,
) -> Result<Json<JobList>, ApiError> {
    let jobs = state.jobs()?;
    let page = query.short_page()?;
    let with = query.metadata();
    query.end()?;
    let who = Viewer::of(&caller);
    let listed = work.records(move || jobs.list_jobs(&who, &page, &with));
    let (records, has_more) = listed.await??;
    Ok(Json(JobList {
        object: "list",
        data: records
            .into_iter()
            .map(|record| JobObject::new(record, &caller))
            .collect(),
        has_more,
    }))
}

/// One training job
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs/{job_id}",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn retrieve(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = state.jobs()?;
    let who = Viewer::of(&caller);
    let record = work.records(move || jobs.job(&who, &id)).await??;
    Ok(Json(JobObject::new(record, &caller)))
}

type Transition = fn(&JobsState, &Viewer, &str) -> Result<JobRecord, jobs::JobError>;

async fn change_state(
    state: &AppState,
    caller: Caller,
    work: Work,
    id: String,
    transition: Transition,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = state.jobs()?;
    let who = Viewer::of(&caller);
    let record = work.records(move || transition(&jobs, &who, &id)).await??;
    Ok(Json(JobObject::new(record, &caller)))
}

/// Cancel a training job
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs/{job_id}/cancel",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    change_state(&state, caller, work, id, JobsState::cancel).await
}

/// Delete a finished training job, with its adapter if it was not published
#[utoipa::path(
    delete,
    path = "/v1/fine_tuning/jobs/{job_id}",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job was deleted", body = JobDeleted))
)]
pub(super) async fn delete(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<JobDeleted>, ApiError> {
    let jobs = state.jobs()?;
    let gone = id.clone();
    work.records(move || jobs.delete_job(&Viewer::of(&caller), &gone))
        .await??;
    Ok(Json(JobDeleted {
        id,
        object: "fine_tuning.job",
        deleted: true,
    }))
}

/// Pause a training job
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs/{job_id}/pause",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn pause(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    change_state(&state, caller, work, id, JobsState::pause).await
}

/// Resume a paused training job
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs/{job_id}/resume",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn resume(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    change_state(&state, caller, work, id, JobsState::resume).await
}

/// How a stored adapter is published.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishJob {
    /// Whether the persona's name alone means this version from now on; by default true.
    current: Option<bool>,
}

/// Publish the adapter of a training job
///
/// For a job that was created with `publish: false`, or, with admin rights, a job whose adapter missed its thresholds.
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs/{job_id}/publish",
    params(("job_id" = String, Path, description = "The job's id")),
    request_body = PublishJob,
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn publish(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
    Body(request): Body<PublishJob>,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = state.jobs()?;
    let current = request.current != Some(false);
    let publisher = caller.clone();
    let record = work
        .records(move || jobs.publish(&publisher, &id, current))
        .await??;
    Ok(Json(JobObject::new(record, &caller)))
}

/// List events of a training job
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs/{job_id}/events",
    params(
        ("job_id" = String, Path, description = "The job's id"),
        ("after" = Option<String>, Query, description = "Only items after this id"),
        ("limit" = Option<usize>, Query, description = "The most items, 1 to 1000; by default 20"),
    ),
    responses((status = 200, description = "Events", body = EventList))
)]
pub(super) async fn events(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
    mut query: Query,
) -> Result<Json<EventList>, ApiError> {
    let jobs = state.jobs()?;
    // A page of a loss curve has every step.
    let page = query.page(20, jobs::fine_tuning::events::MAX_EVENTS, false)?;
    query.end()?;
    let found = work.records(move || jobs.events(&Viewer::of(&caller), &id, &page));
    let (events, has_more) = found.await??;
    Ok(Json(EventList {
        object: "list",
        data: events.into_iter().map(EventObject::from).collect(),
        has_more,
    }))
}

/// List validated checkpoints of a training job
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs/{job_id}/checkpoints",
    params(
        ("job_id" = String, Path, description = "The job's id"),
        ("after" = Option<String>, Query, description = "Only items after this id"),
        ("limit" = Option<usize>, Query, description = "The most items, 1 to 100; by default 10"),
    ),
    responses((status = 200, description = "Checkpoints", body = CheckpointList))
)]
pub(super) async fn checkpoints(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
    mut query: Query,
) -> Result<Json<CheckpointList>, ApiError> {
    let jobs = state.jobs()?;
    let mut page = query.page(10, jobs::MAX_PAGE, false)?;
    query.end()?;
    // A checkpoint has the id of the event that reported it, with another prefix.
    page.after = page.after.map(|after| after.replace(CHECKPOINT, EVENT));
    let of = id.clone();
    let found = work.records(move || {
        let who = Viewer::of(&caller);
        let record = jobs.job(&who, &of)?;
        let (validations, has_more) = jobs.checkpoints(&who, &of, &page)?;
        Ok::<_, ApiError>((record, validations, has_more))
    });
    let (record, validations, has_more) = found.await??;
    let data: Vec<CheckpointObject> = validations
        .into_iter()
        .map(|validated| CheckpointObject {
            id: validated.id.replace(EVENT, CHECKPOINT),
            object: "fine_tuning.job.checkpoint",
            created_at: validated.created_at,
            fine_tuned_model_checkpoint: record
                .fine_tuned_model
                .clone()
                .filter(|_| validated.is_best),
            fine_tuning_job_id: id.clone(),
            step_number: validated.metrics.step,
            metrics: validated.metrics,
        })
        .collect();
    Ok(Json(CheckpointList {
        object: "list",
        first_id: data.first().map(|one| one.id.clone()),
        last_id: data.last().map(|one| one.id.clone()),
        data,
        has_more,
    }))
}

/// List answers of the adapter of a training job during training
///
/// The prompts are answered before the first step, after validations and at the end: up to four prompts, at most 17 times.
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs/{job_id}/samples",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "All of them", body = SampleList))
)]
pub(super) async fn samples(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<SampleList>, ApiError> {
    query.end()?;
    let jobs = state.jobs()?;
    let answers = work
        .records(move || jobs.samples(&Viewer::of(&caller), &id))
        .await??;
    Ok(Json(SampleList {
        object: "list",
        data: answers.into_iter().map(SampleObject::from).collect(),
        has_more: false,
    }))
}
