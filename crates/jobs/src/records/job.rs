//! A job as it is kept: what was asked for, what became of it. One file a job, replaced whole.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use train::TrainSettings;

use crate::records::failure::Failure;
use crate::records::thresholds::Thresholds;

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Status)]
pub enum JobStatus {
    /// Its files are being read as its run will read them.
    ValidatingFiles,
    /// It waits for its turn.
    Queued,
    /// It is being trained, examined or published.
    Running,
    /// It rests until it is resumed.
    Paused,
    /// Its adapter is published, or kept for whoever publishes it.
    Succeeded,
    /// It came to nothing; its error says why.
    Failed,
    /// It was given up.
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

    /// As OpenAI calls it.
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

    /// Whether nothing more will come of it.
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

/// How a job trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// On answers.
    Supervised,
    /// On pairs of answers, one to prefer and one to reject.
    Dpo,
}

/// The adapter that a job starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// `name@version`.
    pub persona: String,
    /// The adapter's content hash.
    pub sha256: String,
}

/// How far a job is.
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
    /// Tokens a second since the server took the job up, with what it waited for answers.
    #[schema(required)]
    pub tokens_per_s: Option<f64>,
    /// When its training will be over at the pace so far, as a Unix time.
    #[schema(required)]
    pub estimated_finish: Option<u64>,
    /// What it does beside training: `sampling`, `examining` or `publishing`.
    #[schema(required)]
    pub phase: Option<String>,
}

/// A threshold, and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Checked)]
pub struct ThresholdResult {
    /// The threshold's name.
    pub key: String,
    /// What was measured; none where it could not be, which counts as missed.
    #[schema(required)]
    pub value: Option<f64>,
    /// What was wanted.
    pub wanted: f64,
    /// Whether that is enough.
    pub passed: bool,
    /// In words.
    pub said: String,
}

/// A question that training did not see, and what the adapter said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Sample {
    /// What was asked.
    pub question: String,
    /// What the row answers.
    pub reference: String,
    /// What the adapter answered, at temperature 0.
    pub answer: String,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: String,
    /// Its place in the order of arrival, which is the order of the queue.
    pub number: u64,
    /// The key that created it; none on a server without keys.
    pub owner: Option<String>,
    /// When it was created, in seconds since 1970.
    pub created_at: u64,
    /// When it was over.
    pub finished_at: Option<u64>,
    /// Where it is.
    pub status: JobStatus,
    /// What it was to start from, as it was asked for: the base, or a persona.
    pub model: String,
    /// The persona that it publishes.
    pub persona: String,
    /// Whether the client named the persona.
    pub named: bool,
    /// The training file.
    pub training_file: String,
    /// The validation file.
    pub validation_file: Option<String>,
    /// How it trains.
    pub method: Method,
    /// The learning rate by the default one.
    pub learning_rate_multiplier: f64,
    /// All settings; the learning rate is set.
    pub settings: TrainSettings,
    /// The adapter that it starts from.
    pub start: Option<Start>,
    /// The system prompt of rows that bring none, and of the persona.
    pub system_prompt: Option<String>,
    /// What it must measure up to before it is published.
    pub thresholds: Option<Thresholds>,
    /// What was measured of that.
    pub checked: Vec<ThresholdResult>,
    /// Whether it publishes its adapter by itself.
    #[serde(default = "by_itself")]
    pub publish: bool,
    /// Whether its adapter waits in its folder, not published: it was not to be, or its gate refused it.
    #[serde(default)]
    pub kept: bool,
    /// Some answers of the adapter.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// What the adapter is asked while it is trained; without, questions of the rows that training does not see.
    #[serde(default)]
    pub sample_prompts: Option<Vec<String>>,
    /// The client's own.
    pub metadata: BTreeMap<String, String>,
    /// How far it is.
    pub progress: Progress,
    /// Tokens that were trained on, once it is over.
    pub trained_tokens: Option<u64>,
    /// What the run will do and need, once its files were read.
    pub plan: Option<Value>,
    /// The content hash that is being published: a process that was killed then looks whether it is there already.
    pub publishing: Option<String>,
    /// `name@version`, once it is published.
    pub fine_tuned_model: Option<String>,
    /// Why it failed.
    pub error: Option<Failure>,
}

fn by_itself() -> bool {
    true
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// When, in seconds since 1970.
    pub created_at: u64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// In words.
    pub message: String,
    /// The numbers of a step or of a validation; none for a message.
    pub data: Option<Metrics>,
}

/// The numbers of a step, or of a validation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Metrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// The epoch, from 1.
    pub epoch: u64,
    /// Mean loss of a step's trained tokens, in nats.
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
    /// Mean loss of the validation rows' trained tokens, in nats; of pairs, their objective.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
    /// Whether that is the lowest so far: the state that will be published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<bool>,
    /// The share of pairs whose preferred answer has gained on the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference_accuracy: Option<f64>,
}
