//! Loads a task of supervised fine-tuning: reads the rows, splits and encodes them, and draws the initial parameters.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use formats::chat_template::ChatTemplate;
use formats::config::ModelConfig;
use formats::tokenizer::Tokenizer;

use super::{DataReport, TrainTask, TrainTaskSpec};
use crate::error::TrainError;
use crate::example::{Encoder, Encoding, Example, ExampleBudget, Examples};
use crate::initial_params::InitialParams;
use crate::lora_init::target_linears;
use crate::rng::Rng;
use crate::settings::TrainSettings;
use crate::vary_identifiers::{IDENTIFIER_STREAM, vary_identifiers};
use dataset::{Columns, DataRow, Dataset, HoldOut, MAX_BYTES, each_row};

impl TrainTask {
    /// Reads, splits and encodes the data of `spec`, and draws the initial parameters. [`TrainTask::load_pairs`] loads a task of
    /// preference tuning.
    ///
    /// # Errors
    /// A setting is out of range, a file cannot be read, or a row is broken or too long (see [`dataset`] and
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
        let (rows, held_out, mut report) = check(&spec, &settings)?;
        let encoder = Encoder {
            tokenizer,
            template,
            system: spec.system,
            mask: settings.mask,
            max_length: settings.max_length,
            too_long: settings.too_long,
        };
        let mut budget = ExampleBudget::new(spec.max_bytes);
        let mut encode = |rows: &Rows<'_>, copies: u64| -> Result<Vec<Example>, TrainError> {
            let mut encoding = Encoding::new(&encoder, &mut budget);
            rows.for_each(spec.stop, &mut |_, row| encoding.add(&row))?;
            for copy in 0..copies {
                rows.for_each(spec.stop, &mut |index, row| {
                    let mut rng = Rng::new(settings.seed, &[IDENTIFIER_STREAM, copy, index]);
                    encoding.add(&vary_identifiers(&row, &mut rng).unwrap_or(row))
                })?;
            }
            let Examples {
                examples,
                dropped,
                truncated,
            } = encoding.finish()?;
            report.dropped += dropped;
            report.truncated += truncated;
            Ok(examples)
        };
        let train = encode(&rows, settings.vary_identifiers)?;
        let validation = encode(&held_out, 0)?;
        let init = InitialParams::drawn(&target_linears(config, &settings.modules()?), &settings);
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

/// Rows of a checked file, which is read again for each pass over them.
struct Rows<'a> {
    path: &'a Path,
    columns: &'a Columns,
    side: Side,
}

/// Which rows of a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    All,
    /// Those that are held out, or those that are not.
    Split {
        rule: HoldOut,
        fraction: f64,
        held_out: bool,
    },
}

impl Side {
    /// The rows to train on and the rows that are held out of them.
    pub fn split(rule: HoldOut, fraction: f64) -> (Side, Side) {
        let side = |held_out| Side::Split {
            rule,
            fraction,
            held_out,
        };
        (side(false), side(true))
    }

    pub fn has(&self, row: &DataRow) -> bool {
        match self {
            Side::All => true,
            Side::Split {
                rule,
                fraction,
                held_out,
            } => rule.is_held_out(row, *fraction) == *held_out,
        }
    }
}

impl Rows<'_> {
    /// Calls `visit` with the index of each row and the row.
    fn for_each(
        &self,
        stop: &AtomicBool,
        visit: &mut dyn FnMut(u64, DataRow) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let mut index = 0;
        each_row(self.path, self.columns, stop, &mut |row| {
            if !self.side.has(&row) {
                return Ok(());
            }
            index += 1;
            visit(index - 1, row)
        })
    }
}

/// Checks the files, and returns the training rows and the validation rows.
fn check<'a>(
    spec: &TrainTaskSpec<'a>,
    settings: &'a TrainSettings,
) -> Result<(Rows<'a>, Rows<'a>, DataReport), TrainError> {
    let columns = &settings.columns;
    let check = |path| Dataset::check(path, columns, MAX_BYTES, spec.stop);
    let rows = |path, side| Rows {
        path,
        columns,
        side,
    };
    let data = check(spec.train)?;
    let mut report = DataReport {
        train_file_hash: data.hash,
        fields: data.fields,
        ..DataReport::default()
    };
    let Some(path) = spec.validation else {
        let (train, held_out) = Side::split(data.hold_out, settings.validation_fraction);
        let held_out = rows(spec.train, held_out);
        held_out.for_each(spec.stop, &mut |_, _| {
            report.held_out += 1;
            Ok(())
        })?;
        return Ok((rows(spec.train, train), held_out, report));
    };
    let validation = check(path)?;
    report.validation_file_hash = Some(validation.hash);
    report.fields.add(&validation.fields);
    Ok((rows(spec.train, Side::All), rows(path, Side::All), report))
}
