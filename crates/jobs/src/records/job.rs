//! The record of a job: the request, its state and its outcome. One JSON file, replaced whole.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use train::TrainSettings;

use crate::records::client_message::ClientMessage;
use crate::records::failure::Failure;
use crate::records::thresholds::Thresholds;

/// The prefix of a job's id.
pub const ID_PREFIX: &str = "ftjob-";
/// The file of a job's events, in its folder. It is the first file there; the record comes next.
pub(crate) const EVENTS_FILE: &str = "events.jsonl";

/// The status of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Status)]
pub enum JobStatus {
    /// Its files are being read and encoded.
    ValidatingFiles,
    /// It is in the queue.
    Queued,
    /// It is being trained, evaluated or published.
    Running,
    /// It waits until it is resumed.
    Paused,
    /// Its adapter is published, or kept until someone publishes it.
    Succeeded,
    /// It failed; its error has the reason.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl JobStatus {
    /// Every status.
    pub const ALL: [JobStatus; 7] = [
        JobStatus::ValidatingFiles,
        JobStatus::Queued,
        JobStatus::Running,
        JobStatus::Paused,
        JobStatus::Succeeded,
        JobStatus::Failed,
        JobStatus::Cancelled,
    ];

    /// OpenAI's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            JobStatus::ValidatingFiles => "validating_files",
            JobStatus::Queued => "queued",
            JobStatus::Running => "running",
            JobStatus::Paused => "paused",
            JobStatus::Succeeded => "succeeded",
            JobStatus::Failed => "failed",
            JobStatus::Cancelled => "cancelled",
        }
    }

    /// Whether the status is final.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(
            self,
            JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled
        )
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The training method of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// On one answer per row.
    Supervised,
    /// On pairs of a chosen and a rejected answer (DPO).
    Dpo,
}

/// The adapter that a job starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartAdapter {
    /// `name@version`.
    pub persona: String,
    /// The adapter's content hash.
    pub sha256: String,
}

/// The progress of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps in all.
    pub steps: u64,
    /// The mean loss of the last step's trained tokens, in nats.
    #[schema(required)]
    pub train_loss: Option<f64>,
    /// The lowest validation loss so far, in nats.
    #[schema(required)]
    pub best_validation_loss: Option<f64>,
    /// Tokens per second since the server started or resumed the job, including the time that it yielded to requests.
    #[schema(required)]
    pub tokens_per_s: Option<f64>,
    /// When training will finish at the current speed, as a Unix time in seconds.
    #[schema(required)]
    pub estimated_finish: Option<u64>,
    /// What it does other than training: `sampling`, `examining` or `publishing`.
    #[schema(required)]
    pub phase: Option<String>,
}

/// The result of a threshold of the eval gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Checked)]
pub struct ThresholdResult {
    /// The threshold's name.
    pub key: String,
    /// The measured value; null if it could not be measured, which counts as missed.
    #[schema(required)]
    pub value: Option<f64>,
    /// The threshold.
    pub wanted: f64,
    /// Whether the value meets the threshold.
    pub passed: bool,
    /// The result as a sentence.
    #[serde(rename = "said")]
    pub message: String,
}

/// A held-out question and the adapter's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Sample {
    /// The question.
    pub question: String,
    /// The row's answer.
    pub reference: String,
    /// The adapter's greedy answer.
    pub answer: String,
}

/// The record of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival, which is the order of the queue.
    pub number: u64,
    /// The API key that created it; `None` on a server without keys.
    pub owner: Option<String>,
    /// When it was created, as a Unix time in seconds.
    pub created_at: u64,
    /// When it finished.
    pub finished_at: Option<u64>,
    /// Its status.
    pub status: JobStatus,
    /// The requested `model`: the base, or a persona.
    pub model: String,
    /// The persona that it publishes.
    pub persona: String,
    /// Whether the client named the persona.
    pub named: bool,
    /// The id of the training file.
    pub training_file: String,
    /// The id of the validation file.
    pub validation_file: Option<String>,
    /// Its training method.
    pub method: Method,
    /// The learning rate divided by the base's default.
    pub learning_rate_multiplier: f64,
    /// All settings; the learning rate is set.
    pub settings: TrainSettings,
    /// The adapter that it starts from.
    pub start: Option<StartAdapter>,
    /// The system prompt of rows that have none, and of the persona.
    pub system_prompt: Option<String>,
    /// The thresholds of its eval gate.
    pub thresholds: Option<Thresholds>,
    /// The results of the thresholds.
    #[serde(rename = "checked")]
    pub threshold_results: Vec<ThresholdResult>,
    /// Whether it publishes an adapter that passed the gate.
    #[serde(default = "publish_by_default")]
    pub publish: bool,
    /// Whether an unpublished adapter is kept in its folder: publishing was off, or the gate refused it.
    #[serde(default, rename = "kept")]
    pub adapter_kept: bool,
    /// The number of the adapter's parameters; 0 in records of older versions.
    #[serde(default)]
    pub parameters: u64,
    /// Answers of the trained adapter.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// Questions that the adapter answers while it trains; `None` for held-out questions.
    #[serde(default)]
    pub sample_prompts: Option<Vec<String>>,
    /// The client's metadata.
    pub metadata: BTreeMap<String, String>,
    /// Its progress.
    pub progress: Progress,
    /// Trained tokens, once it succeeded.
    pub trained_tokens: Option<u64>,
    /// The plan of the run, once its files are read.
    pub plan: Option<Value>,
    /// The content hash that is being published. After a kill, the next process checks whether the registry has it already.
    pub publishing: Option<String>,
    /// `name@version`, once it is published.
    pub fine_tuned_model: Option<String>,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// Bytes of a parameter in an adapter's file, which is in bf16.
const STORED_BYTES: u64 = 2;
/// Bytes of a parameter in a checkpoint: its current and its best value and two moments of the optimizer, in f32.
const CHECKPOINT_BYTES: u64 = 16;

impl JobRecord {
    /// The bytes of disk that its checkpoint and its adapter take, or will take. A published adapter is in the registry.
    pub(crate) fn adapter_bytes(&self) -> u64 {
        let each = match (self.status.is_over(), self.adapter_kept) {
            (false, _) => CHECKPOINT_BYTES + STORED_BYTES,
            (true, true) => STORED_BYTES,
            (true, false) => 0,
        };
        self.parameters.saturating_mul(each)
    }
}

fn publish_by_default() -> bool {
    true
}

/// An event of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// When, as a Unix time in seconds.
    pub created_at: u64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// The message.
    pub message: ClientMessage,
    /// The metrics of a step or a validation; `None` for other events.
    pub data: Option<Metrics>,
}

/// The metrics of a step or a validation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Metrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// The epoch, from 1.
    pub epoch: u64,
    /// Mean loss of the step's trained tokens, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// The learning rate of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Global norm of the step's gradient before it was clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Mean loss of the validation rows' trained tokens, in nats; for pairs, the DPO objective.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
    /// Whether that is the lowest so far. The state with the lowest loss is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<bool>,
    /// The share of pairs whose chosen answer gained on the rejected one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference_accuracy: Option<f64>,
}
