//! Looks at files and jobs before anything is trained: the plan of a run, what a linter finds, rows as training sees them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use train::dataset::{Columns, DataRow, Dataset, RowLocation, held_out};
use train::estimate::MeasuredStep;
use train::example::{Encoder, Fitted};
use train::lint::{self, LintOptions, LintReport};
use train::preference::scan_pairs;
use train::sft::{self, RunOptions};
use train::{Example, TrainError, TrainSettings};

use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::files::StoredFile;
use crate::files::called;
use crate::fine_tuning::prepare::BATCH_TOKENS;
use crate::fine_tuning::request::NewJob;
use crate::listing::Viewer;
use crate::records::job::JobRecord;
use crate::training;
use crate::training::plan::Plan;
use crate::yield_point::JobYieldPoint;
use base::memory;
use service::Caller;

/// The most rows that are shown at once.
pub const MAX_SHOWN: usize = 100;

/// How rows are looked at.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The system prompt of rows that bring none.
    pub system_prompt: Option<String>,
    /// Most tokens of a row; 1024 without.
    pub max_length: Option<usize>,
}

/// A row as training sees it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShownRow {
    /// Its number among the rows, from 1.
    row: usize,
    /// Its line in the file, from 1.
    line: usize,
    /// Whether it would be held out for validation, where there is no validation file.
    held_out: bool,
    /// The answer, or the one to prefer.
    answer: ShownAnswer,
    /// The answer to reject, of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<ShownAnswer>,
}

/// An answer behind its question.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShownAnswer {
    /// `whole`, `cut`, `left_out`, or `refused` with the reason.
    fate: String,
    /// Why it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Its tokens, before it was cut.
    tokens: usize,
    /// Those of them whose loss counts.
    trained_tokens: usize,
    /// Its text, in parts that are trained and parts that are not.
    parts: Vec<ShownPart>,
}

/// A part of a row's text.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShownPart {
    /// The text, control tokens included.
    text: String,
    /// Whether its loss counts.
    trained: bool,
}

impl BackgroundWork {
    /// What the job `new` would do and need; nothing is created. The time is estimated from the latest step of any job. Where
    /// there was none yet it is from one that is taken for it and thrown away, unless a job is at its first one just now: then
    /// there is none.
    ///
    /// # Errors
    /// As [`BackgroundWork::create`]; and what is wrong with its rows, or that it does not fit into memory.
    pub fn plan(&self, caller: &Caller, new: &NewJob) -> Result<impl Serialize + use<>, JobError> {
        let record = new.record(self, caller, &Viewer::of(caller))?;
        let pace = *self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let training = self.jobs.lock().running.is_some();
        let pace = (pace.is_some() || !training).then_some(pace);
        // One measurement at a time: of two side by side neither would say anything.
        let _measuring = self
            .measuring
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.plan_of(&record, pace)
    }

    /// The plan of `record`: without a time, or with one at the pace that is known or else measured.
    pub(crate) fn plan_of(
        &self,
        record: &JobRecord,
        pace: Option<Option<f64>>,
    ) -> Result<Plan, JobError> {
        let make = || -> anyhow::Result<Plan> {
            let ready = self.prepare(record)?;
            let options = RunOptions {
                batch_tokens: BATCH_TOKENS,
                ..RunOptions::default()
            };
            let prepared = sft::prepare(vec![ready.job], &options)?;
            let base = self.service.base();
            let forecast = prepared.estimate(base.model.config());
            let mut plan = Plan::new(forecast, memory::in_use(), memory::available());
            plan.check()?;
            match pace {
                None => {}
                Some(Some(tokens_per_s)) => {
                    plan.seconds = Some(plan.forecast.seconds(tokens_per_s));
                }
                Some(None) => {
                    let stop = Arc::new(AtomicBool::new(false));
                    let yield_point = JobYieldPoint::new(&self.service, &stop);
                    let mut learner = training::learner(base).yielding(yield_point);
                    learner.set_activation_cache(plan.keep);
                    if let Some(step) = prepared.measure(&mut learner, &stop)? {
                        self.learn(step);
                        plan.measured(step);
                    }
                }
            }
            Ok(plan)
        };
        make().map_err(|error| {
            JobError::Plan(self.with_client_file_names(record, &format!("{error:#}")))
        })
    }

    fn learn(&self, step: MeasuredStep) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.get_or_insert(step.tokens_per_s());
    }

    fn encoder<'a>(&'a self, reading: &'a Reading) -> Encoder<'a> {
        let base = self.service.base();
        let neutral = TrainSettings::default();
        Encoder {
            tokenizer: &base.tokenizer,
            template: &base.template,
            system: reading.system_prompt.as_deref(),
            mask: neutral.mask,
            max_length: reading
                .max_length
                .unwrap_or(neutral.max_length)
                .min(base.model.config().context_length),
            too_long: neutral.too_long,
        }
    }

    /// The rows of a file, of pairs those with the chosen answers; and those with the rejected ones, by their place.
    fn rows_of(
        &self,
        file: &StoredFile,
    ) -> Result<(Vec<DataRow>, BTreeMap<RowLocation, DataRow>), JobError> {
        let path = self.files.path(file);
        let named = |error: TrainError| JobError::Rows(called(&error, &path, &file.filename));
        if file.pairs {
            let pairs = scan_pairs(&path).map_err(named)?;
            return Ok((pairs.chosen.data.rows, pairs.rejected));
        }
        let scan = Dataset::scan(&path, &Columns::default()).map_err(named)?;
        Ok((scan.data.rows, BTreeMap::new()))
    }

    /// What a linter finds in a file's rows, and in the rows of another file that they must not leak into.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn lint(
        &self,
        file: &StoredFile,
        against: Option<&StoredFile>,
        reading: &Reading,
    ) -> Result<LintReport, JobError> {
        let (rows, rejected) = self.rows_of(file)?;
        let others = match against {
            None => Vec::new(),
            Some(file) => self.rows_of(file)?.0,
        };
        let mut report = lint::lint(&rows, &others, &LintOptions::default());
        report.add_rejected(&rows, &rejected);
        report.add_tokens(&rows, &rejected, &self.encoder(reading));
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

    /// The rows of a file from number `first` on, at most `limit` of them, as training sees them; and how many there are.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rows(
        &self,
        file: &StoredFile,
        first: usize,
        limit: usize,
        reading: &Reading,
    ) -> Result<(Vec<ShownRow>, usize), JobError> {
        let path = self.files.path(file);
        let (rows, rejected) = self.rows_of(file)?;
        let sides = held_out(&rows, TrainSettings::default().validation_fraction);
        let encoder = self.encoder(reading);
        let look =
            |row: &DataRow| look(&encoder, row, |error| called(&error, &path, &file.filename));
        let shown = rows
            .iter()
            .enumerate()
            .skip(first.saturating_sub(1))
            .take(limit)
            .map(|(index, row)| ShownRow {
                row: index + 1,
                line: row.location.line,
                held_out: sides[index],
                answer: look(row),
                rejected: rejected.get(&row.location).map(look),
            })
            .collect();
        Ok((shown, rows.len()))
    }
}

fn look(encoder: &Encoder<'_>, row: &DataRow, said: impl Fn(TrainError) -> String) -> ShownAnswer {
    let refused = |reason: String| ShownAnswer {
        fate: "refused".to_owned(),
        reason: Some(reason),
        tokens: 0,
        trained_tokens: 0,
        parts: Vec::new(),
    };
    let whole = match encoder.render(row) {
        Ok(whole) => whole,
        Err(error) => return refused(said(error)),
    };
    let tokens = whole.tokens.len();
    if whole.trained_tokens() == 0 {
        return refused("none of its tokens would be trained".to_owned());
    }
    let (example, fate) = match encoder.fit(whole.clone(), row) {
        Ok(Fitted::Whole(example)) => (example, "whole"),
        Ok(Fitted::Truncated(example)) => (example, "cut"),
        Ok(Fitted::Dropped) => (whole, "left_out"),
        Err(error) => return refused(said(error)),
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
