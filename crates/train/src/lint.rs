//! Checks data files before a training run: broken lines, duplicate rows, rows that leak into the evaluation set,
//! truncated answers, numbers that the input does not have, rows without trained tokens.
//!
//! [`lint`] works on the texts of rows alone; [`LintReport::add_tokens`] on what a base's template and tokenizer make of them.
//! Every finding names file and line.

mod duplicates;
mod lengths;
mod report;
mod similarity;
mod single_row;
mod tokenized;

use std::collections::BTreeMap;

use crate::dataset::DataRow;

pub use lengths::{LengthBucket, TokenLengths};
pub use report::{Finding, LintOptions, LintProblem, LintReport};

/// Checks `rows`; `others` is the set that must not leak into them (the evaluation rows), or empty.
///
/// Of several similar rows, each except the first gets one finding, which names the first.
#[must_use]
pub fn lint(rows: &[DataRow], others: &[DataRow], options: &LintOptions) -> LintReport {
    let mut findings = Vec::new();
    single_row::check_rows(rows, options, &mut findings);
    duplicates::find_duplicates(rows, options, &mut findings);
    duplicates::find_leaks(rows, others, options, &mut findings);
    let mut intents = BTreeMap::new();
    for intent in rows.iter().filter_map(|row| row.intent.as_ref()) {
        *intents.entry(intent.clone()).or_insert(0) += 1;
    }
    let mut report = LintReport {
        rows: rows.len(),
        broken_lines: 0,
        findings,
        intents,
        lengths: None,
        held_out: None,
    };
    report.sort();
    report
}
