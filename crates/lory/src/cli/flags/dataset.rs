//! How dataset rows are read and tokenized: flags of `lory train` and `lory data`, and notes on rows that are held out or too long.

use dataset::Columns;
use train::example::{LossMask, TooLong};
use train::{TrainSettings, TrainTask};

use crate::cli::exit::UsageError;

/// Which columns of the data files hold which fields.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Rows")]
pub(crate) struct ColumnsArgs {
    /// Read a field from another column, such as instruction=question; may be given several times
    #[arg(long = "column", value_name = "FIELD=COLUMN", value_parser = column)]
    columns: Vec<(String, String)>,
}

/// The training settings that change a row, for commands that do not train.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Rows")]
pub(crate) struct DatasetArgs {
    #[command(flatten)]
    columns: ColumnsArgs,
    /// Which answers of a conversation are trained: the last one (completion) or all (assistant) [default: completion]
    #[arg(long, value_name = "MASK")]
    mask: Option<LossMask>,
    /// Maximum tokens of a row [default: 1024, at most the base's context]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// What happens to a longer row: it is left out (drop), loses its end (truncate) or its beginning (truncate_start), or is
    /// an error (refuse) [default: drop]
    #[arg(long, value_name = "WHAT")]
    too_long: Option<TooLong>,
    /// Share of the rows held out for validation, by a hash of their content, if there is no evaluation file [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    validation_fraction: Option<f64>,
}

/// Parses FIELD=COLUMN.
fn column(text: &str) -> Result<(String, String), String> {
    let (field, column) = text
        .split_once('=')
        .ok_or("must be FIELD=COLUMN, such as instruction=question")?;
    let known = Columns::default().set(field, column);
    known.map_err(|error| error.to_string())?;
    Ok((field.to_owned(), column.to_owned()))
}

impl ColumnsArgs {
    /// `settings` with the values of the flags.
    pub fn apply(&self, mut settings: TrainSettings) -> Result<TrainSettings, UsageError> {
        for (field, column) in &self.columns {
            let set = settings.columns.set(field, column);
            set.map_err(|error| UsageError(format!("--column {field}={column}: {error}")))?;
        }
        Ok(settings)
    }
}

impl DatasetArgs {
    /// `settings` with the values of the flags.
    pub fn apply(&self, settings: TrainSettings) -> Result<TrainSettings, UsageError> {
        let mut settings = self.columns.apply(settings)?;
        settings.mask = self.mask.unwrap_or(settings.mask);
        settings.max_length = self.max_length.unwrap_or(settings.max_length);
        settings.too_long = self.too_long.unwrap_or(settings.too_long);
        settings.validation_fraction = self
            .validation_fraction
            .unwrap_or(settings.validation_fraction);
        Ok(settings)
    }
}

/// Notes on rows that are held out, left out or cut.
pub(crate) fn notes(task: &TrainTask) -> Vec<String> {
    let (loaded, settings) = (&task.data, &task.settings);
    let mut notes = Vec::new();
    if loaded.held_out > 0 {
        notes.push(format!(
            "{}: no evaluation file, so {} rows are held out for validation by the hash of their content",
            task.name, loaded.held_out,
        ));
    }
    for line in loaded.fields.lines() {
        notes.push(format!("{}: {line}", task.name));
    }
    for (count, outcome) in [(loaded.dropped, "left out"), (loaded.truncated, "cut")] {
        if count > 0 {
            notes.push(format!(
                "{}: {count} rows are longer than max_length = {} tokens and are {outcome} (too_long = {})",
                task.name,
                settings.max_length,
                settings.too_long,
            ));
        }
    }
    notes
}
