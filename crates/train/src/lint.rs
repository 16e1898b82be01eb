//! Checks data files before a training run: broken lines, duplicate rows, rows that leak into the evaluation set,
//! truncated answers, numbers that the input does not have, rows without trained tokens.
//!
//! [`lint`] works on the texts of rows alone; [`LintReport::add_tokens`] on what a base's template and tokenizer make of them.
//! Every finding names file and line. The work grows with the size of the files and not with the pairs of their rows, and ends when a flag
//! is set.

mod duplicates;
mod lengths;
mod near_duplicates;
mod report;
mod similarity;
mod single_row;
mod tokenized;

use std::sync::atomic::AtomicBool;

use crate::error::TrainError;
use dataset::DataRow;
use dataset::stop::check_stop;

pub use lengths::{LengthBucket, TokenLengths};
pub use report::{Finding, LintOptions, LintProblem, LintReport, MAX_FINDINGS, MAX_INTENTS};

/// Checks `rows`; `others` is the set that must not leak into them (the evaluation rows), or empty.
///
/// Of several similar rows, each except the first gets one finding, which names the first.
///
/// # Errors
/// [`TrainError::Stopped`] once `stop` is set.
pub fn lint(
    rows: &[DataRow],
    others: &[DataRow],
    options: &LintOptions,
    stop: &AtomicBool,
) -> Result<LintReport, TrainError> {
    let mut report = LintReport {
        rows: rows.len(),
        ..LintReport::default()
    };
    single_row::check_rows(rows, options, &mut report, stop)?;
    duplicates::find_duplicates(rows, options, &mut report, stop)?;
    duplicates::find_leaks(rows, others, options, &mut report, stop)?;
    check_stop(stop)?;
    for intent in rows.iter().filter_map(|row| row.intent.as_ref()) {
        report.count_intent(intent);
    }
    report.sort();
    Ok(report)
}
