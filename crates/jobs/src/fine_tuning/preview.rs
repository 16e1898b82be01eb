//! Shows what a job would do before it is created: its plan, lint findings of its files, and rows as training sees them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

use dataset::{
    Columns, DataRow, DatasetError, PreferencePair, RowLocation, RowRange, held_out,
    read_pair_range, read_range,
};
use serde::Serialize;
use train::estimate::MeasuredStep;
use train::example::{Encoder, Fitted};
use train::lint::{self, LintOptions, LintReport};
use train::trainer::{self, RunOptions};
use train::{Example, TrainError, TrainSettings};

use crate::error::JobError;
use crate::files::with_client_name;
use crate::fine_tuning::error::RunError;
use crate::fine_tuning::prepare::BATCH_TOKENS;
use crate::fine_tuning::request::NewJob;
use crate::jobs_state::JobsState;
use crate::listing::Viewer;
use crate::records::file::StoredFile;
use crate::records::job::JobRecord;
use crate::training;
use crate::training::plan::Plan;
use crate::yield_point::job_yield_point;
use base::memory;
use service::Caller;

/// The most rows of one page.
pub const MAX_SHOWN: usize = 100;
/// The most bytes of a page's rows in the file; the first row is shown however long it is.
pub const MAX_SHOWN_BYTES: usize = 2 << 20;
/// The most rows of a file that the linter checks.
pub const MAX_LINT_ROWS: usize = 100_000;
/// The most bytes of a file that the linter checks.
pub const MAX_LINT_BYTES: usize = 64 << 20;

/// How a plan estimates the duration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum PlanTime {
    /// Not at all.
    None,
    /// From a speed in tokens per second.
    At(f64),
    /// From a step that is run and discarded, unless a job is training, which has the memory for it.
    Measured,
}

/// How rows are encoded for a preview.
#[derive(Debug, Clone, Default)]
pub struct RowOptions {
    /// The system prompt of rows that bring none.
    pub system_prompt: Option<String>,
    /// The most tokens of a row. Default: 1024.
    pub max_length: Option<usize>,
}

/// A row as training sees it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShownRow {
    /// Its index among the rows, from 1.
    row: usize,
    /// Its line in the file, from 1.
    line: usize,
    /// Whether it would be held out for validation if there is no validation file.
    held_out: bool,
    /// The answer; for pairs, the chosen one.
    answer: ShownAnswer,
    /// The rejected answer of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<ShownAnswer>,
}

/// An answer with its question, encoded.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShownAnswer {
    /// `whole`, `cut`, `left_out`, or `refused` with the reason.
    fate: String,
    /// Why it is refused, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The number of its tokens before it is cut.
    tokens: usize,
    /// The number of tokens that are trained.
    trained_tokens: usize,
    /// Its text, split into trained and untrained parts.
    parts: Vec<ShownPart>,
}

/// A part of a row's text.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShownPart {
    /// The text, with control tokens.
    text: String,
    /// Whether it is trained.
    trained: bool,
}

impl JobsState {
    /// The plan of the job `new`; nothing is created. The time is estimated from the latest step of any job. If there was none yet, one
    /// step is run and discarded, unless a job is training its first step: then the plan has no time.
    ///
    /// # Errors
    /// As [`JobsState::create_job`]; [`JobError::Plan`] if its rows are invalid; [`JobError::TrainMemory`] if it does not fit into memory; [`JobError::Stopped`] once
    /// `stop` is set.
    pub fn plan(
        &self,
        caller: &Caller,
        new: &NewJob,
        stop: &Arc<AtomicBool>,
    ) -> Result<impl Serialize + use<>, JobError> {
        let record = new.record(self, caller, &Viewer::of(caller))?;
        // One at a time: two measurements at once would slow each other down, and each plan has its encoded rows in memory.
        let _planning = self.planning.take(stop)?;
        let speed = *self
            .tokens_per_s
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let time = match speed {
            Some(tokens_per_s) => PlanTime::At(tokens_per_s),
            None => PlanTime::Measured,
        };
        self.make_plan(&record, time, stop)
    }

    /// The plan of `record`.
    pub(crate) fn make_plan(
        &self,
        record: &JobRecord,
        time: PlanTime,
        stop: &Arc<AtomicBool>,
    ) -> Result<Plan, JobError> {
        let make = || -> Result<Plan, RunError> {
            let ready = self.prepare(record, stop)?;
            let options = RunOptions {
                batch_tokens: BATCH_TOKENS,
                ..RunOptions::default()
            };
            let prepared = trainer::prepare(vec![ready.task], &options)?;
            let base = self.service.base();
            let forecast = prepared.estimate(base.model.config());
            let available = self.train_memory.available();
            let mut plan = Plan::new(forecast, memory::in_use(), Some(available));
            plan.check()?;
            let turn = match time {
                PlanTime::Measured => self.train_memory.turn.try_take(),
                PlanTime::None | PlanTime::At(_) => None,
            };
            if let PlanTime::At(tokens_per_s) = time {
                plan.seconds = Some(plan.forecast.seconds(tokens_per_s));
            } else if turn.is_some() {
                let yield_point = job_yield_point(&self.service, stop);
                let mut learner = training::learner(base).yielding(yield_point);
                learner.set_activation_cache(plan.keep);
                if let Some(step) = prepared.measure(&mut learner, stop)? {
                    self.record_speed(step);
                    plan.measured(step);
                }
            }
            Ok(plan)
        };
        make().map_err(|error| match error {
            RunError::Train(TrainError::Stopped) => JobError::Stopped,
            RunError::Train(error @ TrainError::Memory { .. }) => {
                JobError::TrainMemory(error.to_string())
            }
            RunError::Job(error @ JobError::Invalid { .. }) => error,
            error => {
                let message = self.with_client_file_names(record, &error.client_message());
                JobError::Plan(message.into())
            }
        })
    }

    fn record_speed(&self, step: MeasuredStep) {
        let mut speed = self
            .tokens_per_s
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        speed.get_or_insert(step.tokens_per_s());
    }

    fn encoder<'a>(&'a self, options: &'a RowOptions) -> Encoder<'a> {
        let base = self.service.base();
        let neutral = TrainSettings::default();
        Encoder {
            tokenizer: &base.tokenizer,
            template: &base.template,
            system: options.system_prompt.as_deref(),
            mask: neutral.mask,
            max_length: options
                .max_length
                .unwrap_or(neutral.max_length)
                .min(base.model.config().context_length),
            too_long: neutral.too_long,
        }
    }

    /// Rows of a file, for pairs with the chosen answers; and the rows with the rejected answers by their location.
    fn read_rows(
        &self,
        file: &StoredFile,
        range: RowRange,
        stop: &AtomicBool,
    ) -> Result<(Vec<DataRow>, BTreeMap<RowLocation, DataRow>), JobError> {
        let path = self.files.path(file);
        let named = |error| read_error::<DatasetError>(error, &path, file);
        if file.pairs {
            let pairs = read_pair_range(&path, range, stop).map_err(named)?;
            let split = |pair: PreferencePair| {
                (pair.chosen, (pair.rejected.location.clone(), pair.rejected))
            };
            return Ok(pairs.into_iter().map(split).unzip());
        }
        let rows = read_range(&path, &Columns::default(), range, stop).map_err(named)?;
        Ok((rows, BTreeMap::new()))
    }

    /// The linter's report on a file, and on rows that it shares with the validation file `against`: on their first [`MAX_LINT_ROWS`] rows
    /// and [`MAX_LINT_BYTES`] bytes each.
    ///
    /// # Errors
    /// A file cannot be read, or [`JobError::Stopped`] once `stop` is set.
    pub fn lint(
        &self,
        file: &StoredFile,
        against: Option<&StoredFile>,
        options: &RowOptions,
        stop: &AtomicBool,
    ) -> Result<LintReport, JobError> {
        let range = RowRange {
            first: 0,
            limit: MAX_LINT_ROWS,
            max_bytes: MAX_LINT_BYTES,
        };
        let (rows, rejected) = self.read_rows(file, range, stop)?;
        let others = match against {
            None => Vec::new(),
            Some(file) => self.read_rows(file, range, stop)?.0,
        };
        let stopped = |error| read_error::<TrainError>(error, &self.files.path(file), file);
        let mut report =
            lint::lint(&rows, &others, &LintOptions::default(), stop).map_err(stopped)?;
        let all = file.rows + against.map_or(0, |file| file.rows);
        report.unchecked_rows = all.saturating_sub(rows.len() + others.len());
        report.fields.add(&file.fields);
        report.add_rejected(&rows, &rejected);
        report
            .add_tokens(&rows, &rejected, &self.encoder(options), stop)
            .map_err(stopped)?;
        if against.is_none() {
            let sides = held_out(&rows, TrainSettings::default().validation_fraction);
            report.held_out = Some(sides.into_iter().filter(|held_out| *held_out).count());
        }
        for finding in &mut report.findings {
            for file in [Some(file), against].into_iter().flatten() {
                let path = self.files.path(file).display().to_string();
                finding.file = finding.file.replace(&path, &file.filename);
                finding.about = finding.about.replace(&path, &file.filename);
            }
        }
        Ok(report)
    }

    /// At most `limit` rows of a file from index `first` (from 1), as training sees them; and the number of all rows. Rows of more than
    /// [`MAX_SHOWN_BYTES`] bytes are followed by none.
    ///
    /// # Errors
    /// The file cannot be read, or [`JobError::Stopped`] once `stop` is set.
    pub fn rows(
        &self,
        file: &StoredFile,
        first: usize,
        limit: usize,
        options: &RowOptions,
        stop: &AtomicBool,
    ) -> Result<(Vec<ShownRow>, usize), JobError> {
        let path = self.files.path(file);
        let first = first.saturating_sub(1);
        let range = RowRange {
            first,
            limit,
            max_bytes: MAX_SHOWN_BYTES,
        };
        let (rows, rejected) = self.read_rows(file, range, stop)?;
        let hold_out = self.files.hold_out(file, stop)?;
        let fraction = TrainSettings::default().validation_fraction;
        let encoder = self.encoder(options);
        let preview = |row: &DataRow| {
            let message = |error: TrainError| with_client_name(&error, &path, &file.filename);
            preview_row(&encoder, row, message)
        };
        let shown = rows
            .iter()
            .enumerate()
            .map(|(index, row)| ShownRow {
                row: first + index + 1,
                line: row.location.line,
                held_out: hold_out.is_held_out(row, fraction),
                answer: preview(row),
                rejected: rejected.get(&row.location).map(preview),
            })
            .collect();
        Ok((shown, file.rows))
    }
}

/// The error of reading or checking rows of `file`, with the client's file name.
fn read_error<E: Into<TrainError>>(error: E, path: &Path, file: &StoredFile) -> JobError {
    match error.into() {
        TrainError::Stopped => JobError::Stopped,
        error => JobError::Rows(with_client_name(&error, path, &file.filename)),
    }
}

fn preview_row(
    encoder: &Encoder<'_>,
    row: &DataRow,
    message: impl Fn(TrainError) -> String,
) -> ShownAnswer {
    let refused = |reason: String| ShownAnswer {
        fate: "refused".to_owned(),
        reason: Some(reason),
        tokens: 0,
        trained_tokens: 0,
        parts: Vec::new(),
    };
    let full = match encoder.render(row) {
        Ok(full) => full,
        Err(error) => return refused(message(error)),
    };
    let tokens = full.tokens.len();
    if full.trained_tokens() == 0 {
        return refused("has no trained tokens".to_owned());
    }
    let (example, fate) = match encoder.fit(full.clone(), row) {
        Ok(Fitted::Whole(example)) => (example, "whole"),
        Ok(Fitted::Truncated(example)) => (example, "cut"),
        Ok(Fitted::Dropped) => (full, "left_out"),
        Err(error) => return refused(message(error)),
    };
    ShownAnswer {
        fate: fate.to_owned(),
        reason: None,
        tokens,
        trained_tokens: example.trained_tokens(),
        parts: parts(&example, encoder),
    }
}

fn parts(example: &Example, encoder: &Encoder<'_>) -> Vec<ShownPart> {
    let mut start = 0;
    let runs = example.loss_mask.chunk_by(|a, b| a == b);
    runs.map(|run| {
        let tokens = &example.tokens[start..start + run.len()];
        start += run.len();
        ShownPart {
            text: encoder.tokenizer.decode(tokens, false),
            trained: run[0],
        }
    })
    .collect()
}
