//! How rows are read and made into tokens: flags of training and of `lory data`, and notes on what became of the rows.

use train::dataset::Columns;
use train::example::{LossMask, TooLong};
use train::{Job, TrainSettings};

use super::Usage;

/// Which columns of the data files stand for which fields.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Rows")]
pub(super) struct ColumnsArgs {
    /// Read a field from another column, such as instruction=question; may stand several times
    #[arg(long = "column", value_name = "FIELD=COLUMN", value_parser = column)]
    columns: Vec<(String, String)>,
}

/// What of training's settings changes a row, for commands that do not train.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Rows")]
pub(super) struct RowsArgs {
    #[command(flatten)]
    columns: ColumnsArgs,
    /// What of a conversation is trained: its last answer (completion) or every answer (assistant) [default: completion]
    #[arg(long, value_name = "MASK")]
    mask: Option<LossMask>,
    /// Most tokens of a row [default: 1024, at most the base's context]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// A longer row is left out (drop), loses its end (truncate) or its beginning (truncate_start), or is an error (refuse)
    /// [default: drop]
    #[arg(long, value_name = "WHAT")]
    too_long: Option<TooLong>,
    /// Share of the rows held out by a hash of their content where there is no evaluation file [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    validation_fraction: Option<f64>,
}

/// A column that has a field's place.
fn column(text: &str) -> Result<(String, String), String> {
    let (field, column) = text
        .split_once('=')
        .ok_or("must be FIELD=COLUMN, such as instruction=question")?;
    let known = Columns::default().set(field, column);
    known.map_err(|error| error.to_string())?;
    Ok((field.to_owned(), column.to_owned()))
}

impl ColumnsArgs {
    /// `settings` with what the flags say.
    pub fn over(&self, mut settings: TrainSettings) -> Result<TrainSettings, Usage> {
        for (field, column) in &self.columns {
            let set = settings.columns.set(field, column);
            set.map_err(|error| Usage(format!("--column {field}={column}: {error}")))?;
        }
        Ok(settings)
    }
}

impl RowsArgs {
    /// `settings` with what the flags say.
    pub fn over(&self, settings: TrainSettings) -> Result<TrainSettings, Usage> {
        let mut settings = self.columns.over(settings)?;
        settings.mask = self.mask.unwrap_or(settings.mask);
        settings.max_length = self.max_length.unwrap_or(settings.max_length);
        settings.too_long = self.too_long.unwrap_or(settings.too_long);
        settings.validation_fraction = self
            .validation_fraction
            .unwrap_or(settings.validation_fraction);
        Ok(settings)
    }
}

/// What became of a job's rows, where it is not what one would think.
pub(super) fn notes(job: &Job) -> Vec<String> {
    let (loaded, settings) = (&job.data, &job.settings);
    let mut notes = Vec::new();
    if loaded.held_out > 0 {
        notes.push(format!(
            "{}: no evaluation file, so {} rows are held out for validation by the hash of their content",
            job.name, loaded.held_out,
        ));
    }
    for (count, became) in [(loaded.dropped, "left out"), (loaded.truncated, "cut")] {
        if count > 0 {
            notes.push(format!(
                "{}: {count} rows are longer than max_length = {} tokens and are {became} (too_long = {})",
                job.name,
                settings.max_length,
                settings.too_long,
            ));
        }
    }
    notes
}
