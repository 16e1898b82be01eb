//! A training task: one adapter's examples, initial parameters and settings.
//!
//! Reads and encodes the data files (`load`, `load_pairs`); does not know steps, batches or the model. A file is read several times, to
//! check it and for each copy of its rows, so that one row at a time is in memory as text.

mod initial_adapter;
mod load;
mod load_pairs;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::example::Example;
use crate::initial_params::InitialParams;
use crate::preference::PreferenceData;
use crate::settings::TrainSettings;
use dataset::FieldReport;

/// The data files and settings that a [`TrainTask`] is loaded from.
#[derive(Debug, Clone)]
pub struct TrainTaskSpec<'a> {
    /// The adapter's (or persona's) name.
    pub name: &'a str,
    /// Path of the training rows.
    pub train: &'a Path,
    /// Path of the validation rows. `None` holds out some training rows by their hash.
    pub validation: Option<&'a Path>,
    /// The persona's system prompt.
    pub system: Option<&'a str>,
    /// How the adapter is trained. Loading fills in a learning rate that is not set.
    pub settings: TrainSettings,
    /// Path of the metrics file; `None` writes none.
    pub metrics: Option<PathBuf>,
    /// The most bytes of memory of all examples, with copies and rejected answers: see [`crate::example::ExampleBudget`].
    pub max_bytes: usize,
    /// Ends the loading once it is set.
    pub stop: &'a AtomicBool,
}

/// One adapter, ready to be trained.
#[derive(Debug, Clone)]
pub struct TrainTask {
    /// The adapter's name.
    pub name: String,
    /// How the adapter is trained; the learning rate is set.
    pub settings: TrainSettings,
    /// The training examples.
    pub train: Vec<Example>,
    /// The validation examples, which select the best parameters. If empty, the last parameters are kept.
    pub validation: Vec<Example>,
    /// The initial parameters.
    pub init: InitialParams,
    /// Path of the metrics file; `None` writes none.
    pub metrics: Option<PathBuf>,
    /// Which files were read, and how many over-long rows were dropped or truncated.
    pub data: DataReport,
    /// The rejected answers to `train` and `validation`, for preference tuning.
    pub preference: Option<PreferenceData>,
    /// SHA-256 of the adapter that `init` was copied from; `None` for freshly drawn parameters.
    pub initial_adapter: Option<String>,
}

/// What loading an adapter's data found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataReport {
    /// SHA-256 of the training file.
    pub train_file_hash: String,
    /// SHA-256 of the validation file, if there is one.
    pub validation_file_hash: Option<String>,
    /// Number of training rows held out for validation, if there is no validation file.
    pub held_out: usize,
    /// Number of training and validation rows dropped because they are too long.
    pub dropped: usize,
    /// Number of training and validation rows that were truncated.
    pub truncated: usize,
    /// What became of the fields of the training and validation rows.
    pub fields: FieldReport,
}

impl TrainTask {
    /// The rejected answers to the training and to the validation rows; empty if there are none.
    pub(crate) fn rejected(&self) -> (&[Example], &[Example]) {
        self.preference.as_ref().map_or((&[], &[]), |preference| {
            (&preference.train.examples, &preference.validation.examples)
        })
    }

    /// Why its pairs cannot be trained, if they cannot.
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
