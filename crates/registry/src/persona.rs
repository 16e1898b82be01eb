//! One persona, as plain data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::peft::{self, PeftError};

use sampling::SamplingParams;

use crate::blob::{self, BlobSource};
use crate::error::ReadError;
use crate::variables::{self, VariableError, Variables};

/// A tone of voice: a system prompt, sampling settings, and an adapter.
#[derive(Debug, Clone)]
pub struct Persona {
    /// The name in requests; also the name of its folder.
    pub name: String,
    /// Its version, from 1.
    pub version: u32,
    /// One line for people; may be empty.
    pub description: String,
    /// The system prompt of every conversation that does not bring one. Its variables are filled in by
    /// [`Persona::system_prompt_with`].
    pub system_prompt: Option<String>,
    /// The variables of the system prompt.
    pub variables: Variables,
    /// Sampling settings for requests that do not set them.
    pub sampling: SamplingParams,
    /// The most tokens of an answer, for requests that do not set it.
    pub max_new_tokens: Option<usize>,
    /// Texts that end an answer and are not part of it.
    pub stop: Vec<String>,
    /// Multiplies the adapter, in addition to the weight in a request.
    pub scale: f32,
    /// Its adapter; without one it is the base with its system prompt, or is not trained yet.
    pub adapter: Option<AdapterRef>,
    /// How it is trained; without it `lory train` does not train it.
    pub train: Option<TrainSpec>,
    /// How its answers are evaluated; without it `lory eval` measures only the loss.
    pub eval: Option<EvalSpec>,
    /// Its folder, or the location of its registry.
    pub dir: PathBuf,
    /// When it was published, in seconds since 1970; none if it comes from a folder.
    pub published: Option<u64>,
}

impl Persona {
    /// The system prompt with the `given` values of its variables, and the defaults of the others.
    ///
    /// # Errors
    /// [`VariableError::Missing`] for a required variable without a value.
    pub fn system_prompt_with(
        &self,
        given: &BTreeMap<String, String>,
    ) -> Result<Option<String>, VariableError> {
        let prompt = self.system_prompt.as_deref();
        prompt
            .map(|prompt| variables::fill(&self.name, prompt, &self.variables, given))
            .transpose()
    }

    /// The system prompt with every variable's default, for training and evaluation.
    ///
    /// # Errors
    /// [`VariableError::Missing`] for a required variable.
    pub fn system_prompt_by_default(&self) -> Result<Option<String>, VariableError> {
        self.system_prompt_with(&BTreeMap::new())
    }
}

/// A trained adapter: on disk, or in a registry from which it is copied when it is needed.
#[derive(Clone)]
pub struct AdapterRef {
    /// The PEFT folder. If the adapter is in a remote registry, its files are there only after [`AdapterRef::read`].
    pub path: PathBuf,
    /// The sha256 of its content (see [`formats::peft::content_hash`]).
    pub sha256: [u8; 32],
    /// The size of its weights file, which is about what it takes in memory; 0 if unknown.
    pub bytes: u64,
    pub(crate) source: Option<BlobSource>,
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
    /// The adapter in the PEFT folder `path`, hashed but not parsed. Its configuration is written last, so a folder without it
    /// has no adapter yet.
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

    /// Reads the adapter, after fetching it if necessary, and checks its hash.
    ///
    /// # Errors
    /// [`ReadError`], naming the file, and the hash that was found if it differs.
    pub fn read(&self) -> Result<peft::Adapter, ReadError> {
        self.read_with(peft::Adapter::read_hashed)
    }

    /// The pairs of the adapter without their values, after fetching and hashing its files.
    ///
    /// # Errors
    /// As [`AdapterRef::read`].
    pub fn shapes(&self) -> Result<Vec<peft::PairShape>, ReadError> {
        self.read_with(|folder| Ok((peft::read_shapes(folder)?, peft::content_hash(folder)?)))
    }

    /// [`AdapterRef::read`] with another reader: `read` gets the PEFT folder and returns what it read with the content hash of
    /// the bytes that it read.
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

/// The table `[train]`: the data files, and settings that only the trainer knows.
#[derive(Debug, Clone)]
pub struct TrainSpec {
    /// The training rows.
    pub data: PathBuf,
    /// The rows that choose the best checkpoint, and that `lory eval` uses.
    pub eval: Option<PathBuf>,
    /// The other keys of the table.
    pub settings: toml::Table,
    /// The path and text of `persona.toml`, to name the line of an invalid setting.
    pub(crate) source: Option<(PathBuf, Arc<str>)>,
}

impl TrainSpec {
    /// A table that does not come from a file.
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

/// The table `[eval]`: how to recognize the right tone, and the bounds of the measures. docs/evaluation.md describes each
/// measure; a bound that is not set is not checked.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSpec {
    /// Regular expressions; an answer in the right tone matches at least one. Empty: every answer does.
    pub any_of: Vec<String>,
    /// Regular expressions; an answer in the right tone matches none.
    pub none_of: Vec<String>,
    /// Share of answers, 0 to 1, that must have the right tone. Default: [`EvalSpec::TONE_AT_LEAST`].
    pub tone_at_least: f64,
    /// Share of answers, 0 to 1, that must copy their identifiers correctly. Default: [`EvalSpec::COPIED_AT_LEAST`].
    pub copied_at_least: f64,
    /// Share of answers, 0 to 1, that must leave no identifier out.
    pub complete_at_least: Option<f64>,
    /// The mean loss on the reference answers, in nats per token.
    pub loss_at_most: Option<f64>,
    /// Distinctness, 0 to 1, from the nearest of the other tones.
    pub distinct_at_least: Option<f64>,
    /// Share of answers, 0 to 1, that may pass the tone check of another persona.
    pub other_tone_at_most: Option<f64>,
    /// Drift from the base on neutral text, in nats per token.
    pub drift_at_most: Option<f64>,
    /// Share of repeated word 4-grams, 0 to 1.
    pub repetition_at_most: Option<f64>,
    /// Mean number of words of the answers, divided by that of the references.
    pub length_at_least: Option<f64>,
    /// Mean number of words of the answers, divided by that of the references.
    pub length_at_most: Option<f64>,
}

impl EvalSpec {
    /// The default of `tone_at_least`, in persona.toml and in a job's gate.
    pub const TONE_AT_LEAST: f64 = 0.95;
    /// The default of `copied_at_least`, in persona.toml and in a job's gate.
    pub const COPIED_AT_LEAST: f64 = 0.9;
}
