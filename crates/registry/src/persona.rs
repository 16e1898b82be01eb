//! One persona, as plain data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::peft::{self, PeftError};
use serde::{Deserialize, Serialize};

use crate::blob::{self, Source};
use crate::error::ReadError;
use crate::variables::{self, VariableError, Variables};

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
    /// Where it declares variables, [`Persona::system_prompt_with`] is what is said.
    pub system_prompt: Option<String>,
    /// What `{{name}}` in the system prompt stands for.
    pub variables: Variables,
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
    /// Its folder, or the place of the registry that it comes from.
    pub dir: PathBuf,
    /// When it was published, in seconds since 1970; none for one that lies in a folder.
    pub published: Option<u64>,
}

impl Persona {
    /// The system prompt with these values in the place of its variables, and their defaults where none is given.
    ///
    /// # Errors
    /// [`VariableError::Missing`] for a required one that is not given.
    pub fn system_prompt_with(
        &self,
        given: &BTreeMap<String, String>,
    ) -> Result<Option<String>, VariableError> {
        let prompt = self.system_prompt.as_deref();
        prompt
            .map(|prompt| variables::fill(&self.name, prompt, &self.variables, given))
            .transpose()
    }

    /// The system prompt with every variable's default: what the persona is trained and measured with.
    ///
    /// # Errors
    /// [`VariableError::Missing`] for a required one.
    pub fn system_prompt_by_default(&self) -> Result<Option<String>, VariableError> {
        self.system_prompt_with(&BTreeMap::new())
    }
}

/// A trained adapter: on the disk, or in a registry that it is copied from when it is needed.
#[derive(Clone)]
pub struct AdapterRef {
    /// The PEFT folder. In one of a registry elsewhere the files are only after [`AdapterRef::read`].
    pub path: PathBuf,
    /// SHA-256 of its content (see [`formats::peft::content_hash`]).
    pub sha256: [u8; 32],
    /// Bytes of its weights' file, which is about what they take in memory; 0 where it is not known.
    pub bytes: u64,
    pub(crate) source: Option<Source>,
}

impl std::fmt::Debug for AdapterRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterRef")
            .field("path", &self.path)
            .field("sha256", &self.sha256_hex())
            .finish_non_exhaustive()
    }
}

impl PartialEq for AdapterRef {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.sha256) == (&other.path, other.sha256)
    }
}

impl Eq for AdapterRef {}

impl AdapterRef {
    /// The adapter in the PEFT folder `path`, hashed and not read. Its configuration is written last, so without it there is
    /// no adapter yet.
    ///
    /// # Errors
    /// Its files cannot be read.
    pub fn in_folder(path: &Path) -> Result<Option<AdapterRef>, PeftError> {
        if !path.join(peft::CONFIG_FILE).exists() {
            return Ok(None);
        }
        let hash = peft::content_hash(path)?;
        let weights = path.join(peft::WEIGHTS_FILE).metadata();
        Ok(Some(AdapterRef {
            path: path.to_owned(),
            sha256: blob::digest(&hash).unwrap_or_default(),
            bytes: weights.map_or(0, |weights| weights.len()),
            source: None,
        }))
    }

    /// Reads the adapter, from wherever it lies, and holds it to its hash.
    ///
    /// # Errors
    /// [`ReadError`], naming the file, and both hashes where they differ.
    pub fn read(&self) -> Result<peft::Adapter, ReadError> {
        self.read_with(peft::Adapter::read_hashed)
    }

    /// [`AdapterRef::read`] by other means: `read` gets the PEFT folder and returns what it read with the content hash of the
    /// very bytes.
    ///
    /// # Errors
    /// As [`AdapterRef::read`].
    pub fn read_with<T>(
        &self,
        read: impl Fn(&Path) -> Result<(T, String), PeftError>,
    ) -> Result<T, ReadError> {
        blob::read_adapter(&self.path, &self.sha256_hex(), self.source.as_ref(), read)
    }

    /// The hash as 64 hexadecimal digits.
    #[must_use]
    pub fn sha256_hex(&self) -> String {
        base16ct::lower::encode_string(&self.sha256)
    }
}

/// Sampling settings that a persona sets; `None` leaves them to the request or the server.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingDefaults {
    /// 0 to 2; 0 always takes the most probable token.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "formats::decimal::maybe"
    )]
    pub temperature: Option<f32>,
    /// Above 0, to 1.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "formats::decimal::maybe"
    )]
    pub top_p: Option<f32>,
    /// 0 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// 0 to 1.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "formats::decimal::maybe"
    )]
    pub min_p: Option<f32>,
    /// 0.01 to 10; 1 is neutral.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "formats::decimal::maybe"
    )]
    pub repetition_penalty: Option<f32>,
    /// Makes equal requests give equal answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SamplingDefaults {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == SamplingDefaults::default()
    }
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
