//! Loads a task of supervised fine-tuning: reads the rows, splits and encodes them, and draws the initial parameters.

use formats::chat_template::ChatTemplate;
use formats::config::ModelConfig;
use formats::tokenizer::Tokenizer;

use super::{DataReport, TrainTask, TrainTaskSpec};
use crate::dataset::{DataRow, Dataset};
use crate::error::TrainError;
use crate::example::{Encoder, Example, Examples, TokenBudget};
use crate::lora_init::{lora_init, target_linears};
use crate::rng::Rng;
use crate::settings::TrainSettings;
use crate::stop::check_stop;
use crate::vary_identifiers::{IDENTIFIER_STREAM, vary_identifiers};

impl TrainTask {
    /// Reads, splits and encodes the data of `spec`, and draws the initial parameters. [`TrainTask::load_pairs`] loads a task of
    /// preference tuning.
    ///
    /// # Errors
    /// A setting is out of range, a file cannot be read, or a row is broken or too long (see [`crate::dataset`] and
    /// [`crate::example`]). [`TrainError::Stopped`] once the flag of `spec` is set.
    pub fn load(
        spec: TrainTaskSpec<'_>,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
    ) -> Result<Self, TrainError> {
        spec.settings.check()?;
        let mut settings = spec.settings.clone().for_base(config.hidden_size);
        settings.max_length = settings.max_length.min(config.context_length);
        let (mut rows, held_out, mut report) = read(&spec, &settings)?;
        for copy in 0..settings.vary_identifiers {
            for index in 0..rows.len() / (copy as usize + 1) {
                check_stop(spec.stop)?;
                let mut rng = Rng::new(settings.seed, &[IDENTIFIER_STREAM, copy, index as u64]);
                let again = vary_identifiers(&rows[index], &mut rng);
                rows.push(again.unwrap_or_else(|| rows[index].clone()));
            }
        }
        let encoder = Encoder {
            tokenizer,
            template,
            system: spec.system,
            mask: settings.mask,
            max_length: settings.max_length,
            too_long: settings.too_long,
        };
        let mut budget = TokenBudget::new(spec.max_tokens);
        let mut encode = |rows: Vec<DataRow>| -> Result<Vec<Example>, TrainError> {
            let Examples {
                examples,
                dropped,
                truncated,
            } = encoder.encode_until(rows, &mut budget, spec.stop)?;
            report.dropped += dropped;
            report.truncated += truncated;
            Ok(examples)
        };
        let (train, validation) = (encode(rows)?, encode(held_out)?);
        let init = lora_init(&target_linears(config, &settings.modules()?), &settings);
        Ok(Self {
            name: spec.name.to_owned(),
            settings,
            train,
            validation,
            init,
            metrics: spec.metrics,
            data: report,
            preference: None,
            initial_adapter: None,
        })
    }
}

/// The training rows and the validation rows.
fn read(
    spec: &TrainTaskSpec<'_>,
    settings: &TrainSettings,
) -> Result<(Vec<DataRow>, Vec<DataRow>, DataReport), TrainError> {
    let read = |path| Dataset::scan_until(path, &settings.columns, spec.stop)?.whole();
    let data = read(spec.train)?;
    let mut report = DataReport {
        train_file_hash: data.hash.clone(),
        ..DataReport::default()
    };
    let (rows, held_out) = match spec.validation {
        None => {
            let (rows, held_out) = data.split(settings.validation_fraction);
            report.held_out = held_out.len();
            (rows, held_out)
        }
        Some(path) => {
            let held_out = read(path)?;
            report.validation_file_hash = Some(held_out.hash);
            (data.rows, held_out.rows)
        }
    };
    Ok((rows, held_out, report))
}
