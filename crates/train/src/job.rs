//! One adapter of a run: its rows as tokens, its first numbers, its settings.
//!
//! Reads the files and encodes them; knows nothing of steps.

use std::path::{Path, PathBuf};

use formats::config::ModelConfig;

use crate::dataset::{DataRow, Dataset};
use crate::error::TrainError;
use crate::example::{Encoder, Example, Examples};
use crate::lora_init::{lora_init, target_linears};
use crate::params::LoraParams;
use crate::preference::PreferenceData;
use crate::rng::Rng;
use crate::settings::TrainSettings;
use crate::vary::varied;
use formats::chat_template::ChatTemplate;
use formats::tokenizer::Tokenizer;

/// The label of the random numbers that vary identifiers.
pub(crate) const VARY: u64 = 0x7661_7279;

/// Where an adapter's data comes from, and how it is trained.
#[derive(Debug, Clone)]
pub struct JobSpec<'a> {
    /// The adapter's (or persona's) name.
    pub name: &'a str,
    /// The training rows.
    pub train: &'a Path,
    /// The validation rows; without, some training rows are held out by their hash.
    pub validation: Option<&'a Path>,
    /// The persona's system prompt.
    pub system: Option<&'a str>,
    /// How it is trained; the learning rate is filled in where it is not given.
    pub settings: TrainSettings,
    /// Where the metrics are written, if anywhere.
    pub metrics: Option<PathBuf>,
}

/// One adapter, ready to be trained.
#[derive(Debug, Clone)]
pub struct Job {
    /// The adapter's name.
    pub name: String,
    /// How it is trained. The learning rate is set.
    pub settings: TrainSettings,
    /// What it is trained on.
    pub train: Vec<Example>,
    /// What decides which of its states is the best; without any, the last one is kept.
    pub validation: Vec<Example>,
    /// The numbers it starts from.
    pub init: LoraParams,
    /// Where the metrics are written, if anywhere.
    pub metrics: Option<PathBuf>,
    /// What became of over-long rows, and which files were read.
    pub loaded: DataReport,
    /// The rejected answers beside `train` and `validation`, where the settings ask for preferences.
    pub preference: Option<PreferenceData>,
    /// SHA-256 of the adapter that `init` came from; none for fresh numbers.
    pub start: Option<String>,
}

/// What loading an adapter's data found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataReport {
    /// SHA-256 of the training file.
    pub train_file_hash: String,
    /// SHA-256 of the validation file, where there is one.
    pub validation_file_hash: Option<String>,
    /// Training rows held out for validation, where there is no validation file.
    pub held_out: usize,
    /// Training and validation rows left out for their length.
    pub dropped: usize,
    /// Training and validation rows that were cut.
    pub truncated: usize,
}

impl Job {
    /// Reads, splits and encodes the data of `source` and draws its first numbers. Jobs of preferences are read by
    /// [`crate::preference::load`].
    ///
    /// # Errors
    /// Settings out of range, a file that cannot be read, a broken or over-long row (see [`crate::dataset`] and
    /// [`crate::example`]).
    pub fn load(
        source: JobSpec<'_>,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
    ) -> Result<Self, TrainError> {
        source.settings.check()?;
        let mut settings = source.settings.for_base(config.hidden_size);
        settings.max_length = settings.max_length.min(config.context_length);
        let (mut rows, held_out, mut loaded) = read(source.train, source.validation, &settings)?;
        for copy in 0..settings.vary_identifiers {
            for index in 0..rows.len() / (copy as usize + 1) {
                let mut rng = Rng::new(settings.seed, &[VARY, copy, index as u64]);
                let again = varied(&rows[index], &mut rng);
                rows.push(again.unwrap_or_else(|| rows[index].clone()));
            }
        }
        let encoder = Encoder {
            tokenizer,
            template,
            system: source.system,
            mask: settings.mask,
            max_length: settings.max_length,
            too_long: settings.too_long,
        };
        let mut encode = |rows: &[DataRow]| -> Result<Vec<Example>, TrainError> {
            let Examples {
                examples,
                dropped,
                truncated,
            } = encoder.encode_all(rows)?;
            loaded.dropped += dropped;
            loaded.truncated += truncated;
            Ok(examples)
        };
        let (train, validation) = (encode(&rows)?, encode(&held_out)?);
        let init = lora_init(&target_linears(config, &settings.modules()?), &settings);
        Ok(Self {
            name: source.name.to_owned(),
            settings,
            train,
            validation,
            init,
            metrics: source.metrics,
            loaded,
            preference: None,
            start: None,
        })
    }
}

impl Job {
    /// The rejected answers beside the training and the validation rows; empty where there are none.
    pub(crate) fn rejected(&self) -> (&[Example], &[Example]) {
        self.preference.as_ref().map_or((&[], &[]), |preference| {
            (&preference.train.examples, &preference.validation.examples)
        })
    }

    /// What keeps its pairs from being trained, if anything does.
    pub(crate) fn preference_problem(&self) -> Option<String> {
        if self.settings.preference.is_some() != self.preference.is_some() {
            return Some(
                "its settings and its rows disagree on whether preferences are trained".to_owned(),
            );
        }
        self.preference.as_ref()?;
        let (train, validation) = self.rejected();
        let sides = [(&self.train, train), (&self.validation, validation)];
        for (chosen, rejected) in sides {
            if chosen.len() != rejected.len() {
                return Some(format!(
                    "{} chosen and {} rejected answers",
                    chosen.len(),
                    rejected.len()
                ));
            }
            if let Some(row) = rejected.iter().position(|row| row.trained_tokens() == 0) {
                return Some(format!(
                    "the rejected answer of row {} has no token",
                    row + 1
                ));
            }
        }
        None
    }
}

/// The training rows and the validation rows.
fn read(
    train: &Path,
    validation: Option<&Path>,
    settings: &TrainSettings,
) -> Result<(Vec<DataRow>, Vec<DataRow>, DataReport), TrainError> {
    let data = Dataset::read_as(train, &settings.columns)?;
    let mut loaded = DataReport {
        train_file_hash: data.hash.clone(),
        ..DataReport::default()
    };
    let (rows, held_out) = match validation {
        None => {
            let (rows, held_out) = data.split(settings.validation_fraction);
            loaded.held_out = held_out.len();
            (rows, held_out)
        }
        Some(path) => {
            let held_out = Dataset::read_as(path, &settings.columns)?;
            loaded.validation_file_hash = Some(held_out.hash);
            (data.rows, held_out.rows)
        }
    };
    Ok((rows, held_out, loaded))
}
