//! The responses of `/v1/fine_tuning`, in OpenAI's shapes with Lory's additions in `lory`.

use std::collections::BTreeMap;

use jobs::records::failure::Failure;
use jobs::records::job::{Method, Metrics, Progress, Sample, ThresholdResult};
use jobs::{Event, JobRecord, JobStatus, SampledAnswer};
use serde::Serialize;
use serde_json::{Value, json};
use service::Caller;

/// A training job.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct JobObject {
    id: String,
    /// `fine_tuning.job`.
    object: &'static str,
    /// The model to start from, as in the request.
    model: String,
    /// A Unix time.
    created_at: u64,
    /// A Unix time.
    #[schema(required)]
    finished_at: Option<u64>,
    /// `name@version` of what was published.
    #[schema(required)]
    fine_tuned_model: Option<String>,
    /// Always `lory`.
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

/// OpenAI's hyperparameters, as used.
#[derive(Clone, Serialize, utoipa::ToSchema)]
struct Hyperparameters {
    n_epochs: u64,
    batch_size: usize,
    learning_rate_multiplier: f64,
    /// Only of the method `dpo`.
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

/// Fields that OpenAI does not have.
#[derive(Serialize, utoipa::ToSchema)]
struct Extras {
    /// The persona that it publishes.
    persona: String,
    progress: Progress,
    /// All settings of the run, by their names in `lory train`.
    settings: Value,
    /// The run's steps, tokens and memory, once its files are read.
    #[schema(required)]
    plan: Option<Value>,
    /// The thresholds of its adapter, and what was measured.
    gate: Vec<ThresholdResult>,
    /// Whether it publishes its adapter when it succeeds.
    publish: bool,
    /// Whether its adapter is stored and can still be published.
    kept: bool,
    /// Up to three answers of its adapter to prompts that training did not see.
    samples: Vec<Sample>,
    /// The prompts that its adapter answers during training, as in the request.
    #[schema(required)]
    sample_prompts: Option<Vec<String>>,
    /// The persona that it starts from, as `name@version`.
    #[schema(required)]
    started_from: Option<String>,
    #[schema(required)]
    system_prompt: Option<String>,
    /// The name of the key that owns it. Only keys with admin rights see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

impl JobObject {
    pub fn new(job: JobRecord, caller: &Caller) -> JobObject {
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
                gate: job.threshold_results,
                publish: job.publish,
                kept: job.adapter_kept,
                samples: job.samples,
                sample_prompts: job.sample_prompts,
                started_from: job.start.map(|start| start.persona),
                system_prompt: job.system_prompt,
                owner: caller.shown_owner(job.owner),
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
pub(crate) struct JobList {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<JobObject>,
    pub has_more: bool,
}

/// An event of a job.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct EventObject {
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
            message: event.message.into(),
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
pub(crate) struct EventList {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<EventObject>,
    pub has_more: bool,
}

/// A checkpoint of a run that was validated. The best one is published; the others cannot be used.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct CheckpointObject {
    pub id: String,
    /// `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    /// A Unix time.
    pub created_at: u64,
    /// `name@version` of the best one, once it is published.
    #[schema(required)]
    pub fine_tuned_model_checkpoint: Option<String>,
    pub fine_tuning_job_id: String,
    pub metrics: Metrics,
    pub step_number: u64,
}

/// Validated checkpoints, a page of them, the newest first.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct CheckpointList {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<CheckpointObject>,
    #[schema(required)]
    pub first_id: Option<String>,
    #[schema(required)]
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// A prompt, and the answer of the adapter after a step.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct SampleObject {
    /// `fine_tuning.job.sample`.
    object: &'static str,
    /// Optimizer steps done; 0 before the first.
    step: u64,
    /// The prompt.
    prompt: String,
    /// The answer at temperature 0, at most 64 tokens.
    answer: String,
}

impl From<SampledAnswer> for SampleObject {
    fn from(sample: SampledAnswer) -> SampleObject {
        SampleObject {
            object: "fine_tuning.job.sample",
            step: sample.step,
            prompt: sample.prompt,
            answer: sample.answer,
        }
    }
}

/// The answers of an adapter during training, by step and then by prompt.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct SampleList {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<SampleObject>,
    /// Always false: the list is complete.
    pub has_more: bool,
}

/// A job that was deleted.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct JobDeleted {
    pub(super) id: String,
    /// `fine_tuning.job`.
    pub(super) object: &'static str,
    pub(super) deleted: bool,
}
