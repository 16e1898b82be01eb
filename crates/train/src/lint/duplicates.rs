//! Finds rows that duplicate other rows of their set, or leak into the evaluation set.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::AtomicBool;

use super::near_duplicates::{Vocabulary, WordSet, near_duplicates};
use super::report::{Finding, LintOptions, LintProblem, LintReport};
use super::similarity::masked;
use crate::error::TrainError;
use dataset::DataRow;
use dataset::stop::check_stop;

/// Hashes of a row's texts: equal texts have equal hashes. 64 bits with random keys, so that different texts practically never do; the texts
/// themselves would take as much memory as the file.
struct TextHashes {
    /// Question and answer as they are.
    exact: u64,
    /// Both, masked.
    template: u64,
    /// The question, masked; `None` if it is empty.
    input: Option<u64>,
    /// The answer, masked.
    output: u64,
}

/// Rows against the rows before them.
pub(super) fn find_duplicates(
    rows: &[DataRow],
    options: &LintOptions,
    report: &mut LintReport,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    let hasher = RandomState::new();
    let mut vocabulary = Vocabulary::default();
    let mut words: Vec<WordSet> = Vec::with_capacity(rows.len());
    let mut hashes = Vec::with_capacity(rows.len());
    for row in rows {
        check_stop(stop)?;
        let input = row.input();
        let (masked_input, masked_output) = (masked(&input), masked(row.output()));
        words.push(vocabulary.words([masked_input.as_str(), masked_output.as_str()]));
        hashes.push(TextHashes {
            exact: hasher.hash_one((input.trim(), row.output().trim())),
            template: hasher.hash_one((&masked_input, &masked_output)),
            input: (!masked_input.is_empty()).then(|| hasher.hash_one(&masked_input)),
            output: hasher.hash_one(&masked_output),
        });
    }
    let near = near_duplicates(&words, options.near, words.len(), stop)?;
    drop(words);
    let mut exact = HashMap::new();
    let mut templates = HashMap::new();
    let mut by_input = HashMap::new();
    let mut by_output = HashMap::new();
    for (i, (row, hashes)) in rows.iter().zip(&hashes).enumerate() {
        let exact = *exact.entry(hashes.exact).or_insert(i);
        let template = *templates.entry(hashes.template).or_insert(i);
        let same_input = hashes
            .input
            .map_or(i, |input| *by_input.entry(input).or_insert(i));
        let same_output = *by_output.entry(hashes.output).or_insert(i);
        let mut say = |problem, other: usize| {
            report.push(Finding::new(
                problem,
                &row.location,
                rows[other].location.to_string(),
            ));
        };
        if exact != i {
            say(LintProblem::Duplicate, exact);
        } else if template != i {
            say(LintProblem::DuplicateButNumbers, template);
        } else {
            if same_output != i {
                say(LintProblem::SameOutput, same_output);
            }
            if same_input != i {
                say(LintProblem::SameInput, same_input);
            }
            if let Some(other) = near[i] {
                say(LintProblem::NearDuplicate, other);
            }
        }
    }
    Ok(())
}

/// Rows whose question the other set asks too.
pub(super) fn find_leaks(
    rows: &[DataRow],
    others: &[DataRow],
    options: &LintOptions,
    report: &mut LintReport,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    if others.is_empty() {
        return Ok(());
    }
    // Plain text has no question: its text takes the place.
    let question = |row: &DataRow| {
        let input = row.input();
        masked(if input.is_empty() {
            row.output()
        } else {
            &input
        })
    };
    // The others first: a row that is near one of them has its match among their indices.
    let mut vocabulary = Vocabulary::default();
    let mut words: Vec<WordSet> = Vec::with_capacity(others.len() + rows.len());
    for row in others.iter().chain(rows) {
        check_stop(stop)?;
        words.push(vocabulary.words([question(row).as_str()]));
    }
    let near = near_duplicates(&words, options.leak, others.len(), stop)?;
    for (row, other) in rows.iter().zip(&near[others.len()..]) {
        if let Some(other) = *other {
            report.push(Finding::new(
                LintProblem::Leak,
                &row.location,
                others[other].location.to_string(),
            ));
        }
    }
    Ok(())
}
