//! One persona, as plain data.

use std::path::PathBuf;
use std::sync::Arc;

/// A tone of voice: its words to the model, its way of drawing tokens, and its adapter.
#[derive(Debug, Clone)]
pub struct Persona {
    /// What requests call it; also the name of its folder.
    pub name: String,
    /// Its version, from 1.
    pub version: u32,
    /// A line for people; may be empty.
    pub description: String,
    /// Stands in front of every conversation that brings no system prompt of its own.
    pub system_prompt: Option<String>,
    /// How tokens are drawn where a request does not say.
    pub sampling: SamplingDefaults,
    /// The most tokens of an answer where a request does not say.
    pub max_new_tokens: Option<usize>,
    /// Texts that end an answer and are not shown.
    pub stop: Vec<String>,
    /// Multiplies the adapter, and the weight that a request gives it.
    pub scale: f32,
    /// Its adapter; without, it speaks through its system prompt alone, or is not trained yet.
    pub adapter: Option<AdapterRef>,
    /// How it is trained; without, `lory train` does not know it.
    pub train: Option<TrainSpec>,
    /// What its answers are known by; without, `lory eval` measures only its loss.
    pub eval: Option<EvalSpec>,
    /// Its folder.
    pub dir: PathBuf,
}

/// A trained adapter on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRef {
    /// The PEFT folder.
    pub path: PathBuf,
    /// SHA-256 of its content (see [`formats::peft::content_hash`]).
    pub sha256: [u8; 32],
}

impl AdapterRef {
    /// The hash as 64 hexadecimal digits.
    #[must_use]
    pub fn sha256_hex(&self) -> String {
        self.sha256
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Sampling settings that a persona sets; `None` leaves them to the request or the server.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SamplingDefaults {
    /// 0 to 2; 0 always takes the most probable token.
    pub temperature: Option<f32>,
    /// Above 0, to 1.
    pub top_p: Option<f32>,
    /// 0 for all.
    pub top_k: Option<usize>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// 0.01 to 10; 1 is neutral.
    pub repetition_penalty: Option<f32>,
    /// Makes equal requests give equal answers.
    pub seed: Option<u64>,
}

/// The table `[train]`: where the data lies, and settings that only the trainer understands.
#[derive(Debug, Clone)]
pub struct TrainSpec {
    /// The training rows.
    pub data: PathBuf,
    /// The rows that choose the best checkpoint and that `lory eval` asks.
    pub eval: Option<PathBuf>,
    /// The other keys of the table.
    pub settings: toml::Table,
    /// `persona.toml` and its text, to name the line of what is wrong in `settings`.
    pub(crate) source: Option<(PathBuf, Arc<str>)>,
}

impl TrainSpec {
    /// A table that came from no file.
    #[must_use]
    pub fn new(data: PathBuf, eval: Option<PathBuf>, settings: toml::Table) -> Self {
        Self {
            data,
            eval,
            settings,
            source: None,
        }
    }
}

/// The table `[eval]`: what the right tone is known by, and how much of what is measured is enough. What each measure
/// means is in docs/evaluation.md; a bound that is not set is not checked.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSpec {
    /// Regular expressions, one of which an answer in the right tone matches; empty: any answer will do.
    pub any_of: Vec<String>,
    /// Regular expressions, none of which it matches.
    pub none_of: Vec<String>,
    /// Share of answers, 0 to 1, that must have the right tone.
    pub tone_at_least: f64,
    /// Share of answers, 0 to 1, that must copy their identifiers right.
    pub copied_at_least: f64,
    /// Share of answers, 0 to 1, that must leave no identifier out.
    pub complete_at_least: Option<f64>,
    /// Mean loss of a token of the reference answers, in nats.
    pub loss_at_most: Option<f64>,
    /// Distinctness, 0 to 1, from the nearest of the other tones.
    pub distinct_at_least: Option<f64>,
    /// Share of answers, 0 to 1, that may pass the tone check of another persona.
    pub other_tone_at_most: Option<f64>,
    /// Drift from the base on neutral text, in nats a token.
    pub drift_at_most: Option<f64>,
    /// Share of repeated word 4-grams, 0 to 1.
    pub repetition_at_most: Option<f64>,
    /// Mean words of the answers by those of the references.
    pub length_at_least: Option<f64>,
    /// Mean words of the answers by those of the references.
    pub length_at_most: Option<f64>,
}
