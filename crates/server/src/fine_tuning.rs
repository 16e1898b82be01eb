//! `/v1/fine_tuning`: training jobs, in OpenAI's shapes.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app_state::AppState;
use crate::blocking::run_blocking;
use crate::error::ApiError;
use crate::json::Body;
use crate::middleware::auth::ApiCaller;
use crate::query::Query;
use jobs::records::failure::Failure;
use jobs::records::job::{Method, Metrics, Progress, Sample, ThresholdResult};
use jobs::{BackgroundWork, Event, JobRecord, JobStatus, NewJob, SampledAnswer, Viewer};
use service::Caller;

/// What the id of an event begins with, and that of a state.
const EVENT: &str = "ftevent-";
const STATE: &str = "ftckpt-";

/// A training job.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct JobObject {
    id: String,
    /// `fine_tuning.job`.
    object: &'static str,
    /// What it was to start from, as it was asked for.
    model: String,
    /// A Unix time.
    created_at: u64,
    /// A Unix time.
    #[schema(required)]
    finished_at: Option<u64>,
    /// `name@version` of what was published.
    #[schema(required)]
    fine_tuned_model: Option<String>,
    /// Of no meaning here.
    organization_id: String,
    /// Always empty.
    result_files: Vec<String>,
    status: JobStatus,
    training_file: String,
    #[schema(required)]
    validation_file: Option<String>,
    hyperparameters: Hyperparameters,
    #[schema(required)]
    trained_tokens: Option<u64>,
    #[schema(required)]
    error: Option<Failure>,
    #[schema(required)]
    user_provided_suffix: Option<String>,
    seed: u64,
    /// A Unix time.
    #[schema(required)]
    estimated_finish: Option<u64>,
    /// Always empty.
    integrations: Vec<Value>,
    metadata: BTreeMap<String, String>,
    method: MethodObject,
    lory: Extras,
}

/// OpenAI's hyperparameters, as they came out.
#[derive(Clone, Serialize, utoipa::ToSchema)]
struct Hyperparameters {
    n_epochs: u64,
    batch_size: usize,
    learning_rate_multiplier: f64,
    /// Of `dpo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    beta: Option<f64>,
}

/// How a job trains.
#[derive(Serialize, utoipa::ToSchema)]
struct MethodObject {
    r#type: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    supervised: Option<MethodDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dpo: Option<MethodDetails>,
}

#[derive(Serialize, utoipa::ToSchema)]
struct MethodDetails {
    hyperparameters: Hyperparameters,
}

/// What is not OpenAI's.
#[derive(Serialize, utoipa::ToSchema)]
struct Extras {
    /// The persona that it publishes.
    persona: String,
    progress: Progress,
    /// All settings of the run, by their names in `lory train`.
    settings: Value,
    /// The run's steps, tokens and memory, once its files were read.
    #[schema(required)]
    plan: Option<Value>,
    /// The thresholds that its adapter was held to.
    gate: Vec<ThresholdResult>,
    /// Whether it publishes its adapter by itself.
    publish: bool,
    /// Whether its adapter is kept and not published, and can be.
    kept: bool,
    /// Up to three answers of its adapter to questions that training did not see.
    samples: Vec<Sample>,
    /// What its adapter is asked while it is trained, as it was asked for.
    #[schema(required)]
    sample_prompts: Option<Vec<String>>,
    /// The persona that it starts from, as `name@version`.
    #[schema(required)]
    started_from: Option<String>,
    #[schema(required)]
    system_prompt: Option<String>,
}

impl From<JobRecord> for JobObject {
    fn from(job: JobRecord) -> JobObject {
        let settings = &job.settings;
        let hyperparameters = Hyperparameters {
            n_epochs: settings.epochs,
            batch_size: settings.batch_rows,
            learning_rate_multiplier: job.learning_rate_multiplier,
            beta: settings.preference.as_ref().map(|pairs| pairs.beta),
        };
        let details = |of: Method| {
            (job.method == of).then(|| MethodDetails {
                hyperparameters: hyperparameters.clone(),
            })
        };
        JobObject {
            object: "fine_tuning.job",
            model: job.model.clone(),
            created_at: job.created_at,
            finished_at: job.finished_at,
            organization_id: "lory".to_owned(),
            result_files: Vec::new(),
            status: job.status,
            seed: settings.seed,
            estimated_finish: job.progress.estimated_finish,
            integrations: Vec::new(),
            method: MethodObject {
                r#type: job.method,
                supervised: details(Method::Supervised),
                dpo: details(Method::Dpo),
            },
            hyperparameters: hyperparameters.clone(),
            user_provided_suffix: job.named.then(|| job.persona.clone()),
            lory: Extras {
                persona: job.persona,
                progress: job.progress,
                settings: json!(job.settings),
                plan: job.plan,
                gate: job.checked,
                publish: job.publish,
                kept: job.kept,
                samples: job.samples,
                sample_prompts: job.sample_prompts,
                started_from: job.start.map(|start| start.persona),
                system_prompt: job.system_prompt,
            },
            id: job.id,
            fine_tuned_model: job.fine_tuned_model,
            training_file: job.training_file,
            validation_file: job.validation_file,
            trained_tokens: job.trained_tokens,
            error: job.error,
            metadata: job.metadata,
        }
    }
}

/// Jobs, a page of them, the newest first.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct JobList {
    /// `list`.
    object: &'static str,
    data: Vec<JobObject>,
    has_more: bool,
}

/// Something that happened to a job.
#[derive(Serialize, utoipa::ToSchema)]
struct EventObject {
    id: String,
    /// `fine_tuning.job.event`.
    object: &'static str,
    /// A Unix time.
    created_at: u64,
    /// `info`, `warn` or `error`.
    level: String,
    message: String,
    /// `message`, or `metrics` of a step or a validation.
    r#type: &'static str,
    #[schema(required)]
    data: Option<Metrics>,
}

impl From<Event> for EventObject {
    fn from(event: Event) -> EventObject {
        EventObject {
            id: event.id,
            object: "fine_tuning.job.event",
            created_at: event.created_at,
            level: event.level,
            message: event.message,
            r#type: match event.data {
                Some(_) => "metrics",
                None => "message",
            },
            data: event.data,
        }
    }
}

/// Events, a page of them, the newest first.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct EventList {
    /// `list`.
    object: &'static str,
    data: Vec<EventObject>,
    has_more: bool,
}

/// A state of a run that was validated. The best one is published; the others cannot be asked.
#[derive(Serialize, utoipa::ToSchema)]
struct CheckpointObject {
    id: String,
    /// `fine_tuning.job.checkpoint`.
    object: &'static str,
    /// A Unix time.
    created_at: u64,
    /// `name@version` of the best one, once it is published.
    #[schema(required)]
    fine_tuned_model_checkpoint: Option<String>,
    fine_tuning_job_id: String,
    metrics: Metrics,
    step_number: u64,
}

/// States that were validated, a page of them, the newest first.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct CheckpointList {
    /// `list`.
    object: &'static str,
    data: Vec<CheckpointObject>,
    #[schema(required)]
    first_id: Option<String>,
    #[schema(required)]
    last_id: Option<String>,
    has_more: bool,
}

/// A question to the adapter as it stood after some step, and what it said.
#[derive(Serialize, utoipa::ToSchema)]
struct SampleObject {
    /// `fine_tuning.job.sample`.
    object: &'static str,
    /// Optimizer steps done; 0 before the first.
    step: u64,
    /// What it was asked.
    prompt: String,
    /// What it said at temperature 0, at most 64 tokens.
    answer: String,
}

impl From<SampledAnswer> for SampleObject {
    fn from(said: SampledAnswer) -> SampleObject {
        SampleObject {
            object: "fine_tuning.job.sample",
            step: said.step,
            prompt: said.prompt,
            answer: said.answer,
        }
    }
}

/// What an adapter said on its way, by step and then as it was asked.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct SampleList {
    /// `list`.
    object: &'static str,
    data: Vec<SampleObject>,
    /// Always false: the list is whole.
    has_more: bool,
}

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
    Body(new): Body<NewJob>,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = state.jobs()?;
    let record = run_blocking(move || jobs.create(&caller, &new)).await??;
    Ok(Json(record.into()))
}

/// What a job would do and need
///
/// Takes what creating a job takes, reads the files, and creates nothing.
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/plan",
    request_body = NewJob,
    responses((status = 200, description = "As `lory train --plan --json`: steps, tokens, memory in bytes, and the seconds that it will take", body = serde_json::Value))
)]
pub(super) async fn plan(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Body(new): Body<NewJob>,
) -> Result<Json<Value>, ApiError> {
    let jobs = state.jobs()?;
    let plan = run_blocking(move || {
        let plan = jobs.plan(&caller, &new)?;
        Ok::<Value, ApiError>(json!(plan))
    });
    Ok(Json(plan.await??))
}

/// List training jobs
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs",
    params(
        ("after" = Option<String>, Query, description = "Those behind this id"),
        ("limit" = Option<usize>, Query, description = "At most so many, 1 to 100; 20 without"),
        ("metadata" = Option<String>, Query, description = "As metadata[key]=value: those that have it"),
    ),
    responses((status = 200, description = "Jobs", body = JobList))
)]
pub(super) async fn list(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    mut query: Query,
) -> Result<Json<JobList>, ApiError> {
    let jobs = state.jobs()?;
    let page = query.short_page()?;
    let with = query.metadata();
    query.end()?;
    let (records, has_more) = jobs.list(&Viewer::of(&caller), &page, &with)?;
    Ok(Json(JobList {
        object: "list",
        data: records.into_iter().map(JobObject::from).collect(),
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
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    let record = state.jobs()?.job(&Viewer::of(&caller), &id)?;
    Ok(Json(record.into()))
}

type Turning = fn(&BackgroundWork, &Viewer, &str) -> Result<JobRecord, jobs::JobError>;

async fn turned(
    state: &AppState,
    caller: Caller,
    id: String,
    turn: Turning,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = state.jobs()?;
    let record = run_blocking(move || turn(&jobs, &Viewer::of(&caller), &id)).await??;
    Ok(Json(record.into()))
}

/// Give a training job up
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs/{job_id}/cancel",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    turned(&state, caller, id, BackgroundWork::cancel).await
}

/// Let a training job rest
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs/{job_id}/pause",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn pause(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    turned(&state, caller, id, BackgroundWork::pause).await
}

/// Let a training job that rests go on
#[utoipa::path(
    post,
    path = "/v1/fine_tuning/jobs/{job_id}/resume",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobObject))
)]
pub(super) async fn resume(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    turned(&state, caller, id, BackgroundWork::resume).await
}

/// How a kept adapter is published.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishJob {
    /// Whether the persona's name alone means it from now on; it does unless this is false.
    current: Option<bool>,
}

/// Publish what a training job kept
///
/// Of a job that was created with `publish: false`, or, with admin rights, of one whose gate refused its adapter.
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
    Path(id): Path<String>,
    Body(how): Body<PublishJob>,
) -> Result<Json<JobObject>, ApiError> {
    let jobs = state.jobs()?;
    let current = how.current != Some(false);
    let record = run_blocking(move || jobs.publish(&caller, &id, current)).await??;
    Ok(Json(record.into()))
}

/// What happened to a training job
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs/{job_id}/events",
    params(
        ("job_id" = String, Path, description = "The job's id"),
        ("after" = Option<String>, Query, description = "Those behind this id"),
        ("limit" = Option<usize>, Query, description = "At most so many, 1 to 1000; 20 without"),
    ),
    responses((status = 200, description = "Events", body = EventList))
)]
pub(super) async fn events(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
    mut query: Query,
) -> Result<Json<EventList>, ApiError> {
    let jobs = state.jobs()?;
    // A page with a curve wants every step.
    let page = query.page(20, jobs::fine_tuning::events::MAX_EVENTS, false)?;
    query.end()?;
    let found = run_blocking(move || jobs.events(&Viewer::of(&caller), &id, &page));
    let (events, has_more) = found.await??;
    Ok(Json(EventList {
        object: "list",
        data: events.into_iter().map(EventObject::from).collect(),
        has_more,
    }))
}

/// The states of a training job that were validated
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs/{job_id}/checkpoints",
    params(
        ("job_id" = String, Path, description = "The job's id"),
        ("after" = Option<String>, Query, description = "Those behind this id"),
        ("limit" = Option<usize>, Query, description = "At most so many, 1 to 100; 10 without"),
    ),
    responses((status = 200, description = "States", body = CheckpointList))
)]
pub(super) async fn checkpoints(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
    mut query: Query,
) -> Result<Json<CheckpointList>, ApiError> {
    let jobs = state.jobs()?;
    let mut page = query.page(10, jobs::MAX_PAGE, false)?;
    query.end()?;
    // A state is known by the event that told of it.
    page.after = page.after.map(|after| after.replace(STATE, EVENT));
    let of = id.clone();
    let found = run_blocking(move || {
        let who = Viewer::of(&caller);
        let record = jobs.job(&who, &of)?;
        let (validations, has_more) = jobs.checkpoints(&who, &of, &page)?;
        Ok::<_, ApiError>((record, validations, has_more))
    });
    let (record, validations, has_more) = found.await??;
    let data: Vec<CheckpointObject> = validations
        .into_iter()
        .map(|validated| CheckpointObject {
            id: validated.id.replace(EVENT, STATE),
            object: "fine_tuning.job.checkpoint",
            created_at: validated.created_at,
            fine_tuned_model_checkpoint: record.fine_tuned_model.clone().filter(|_| validated.kept),
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

/// What the adapter of a training job said on its way
///
/// Asked before the first step, after validations and at the end; at most 17 times, up to four questions each.
#[utoipa::path(
    get,
    path = "/v1/fine_tuning/jobs/{job_id}/samples",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "All of them", body = SampleList))
)]
pub(super) async fn samples(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<SampleList>, ApiError> {
    query.end()?;
    let jobs = state.jobs()?;
    let said = run_blocking(move || jobs.samples(&Viewer::of(&caller), &id)).await??;
    Ok(Json(SampleList {
        object: "list",
        data: said.into_iter().map(SampleObject::from).collect(),
        has_more: false,
    }))
}
