//! Finds rows that duplicate other rows of their set, or leak into the evaluation set.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Finding, LintOptions, LintProblem};
use super::similarity::{masked, near_among, near_duplicates};
use crate::dataset::DataRow;

/// Rows against the rows before them.
pub(super) fn find_duplicates(
    rows: &[DataRow],
    options: &LintOptions,
    findings: &mut Vec<Finding>,
) {
    let inputs: Vec<String> = rows.iter().map(DataRow::input).collect();
    let masked_inputs: Vec<String> = inputs.iter().map(|text| masked(text)).collect();
    let masked_outputs: Vec<String> = rows.iter().map(|row| masked(row.output())).collect();
    let mut exact: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut templates: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut by_input: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_output: BTreeMap<&str, usize> = BTreeMap::new();
    let words: Vec<BTreeSet<&str>> = masked_inputs
        .iter()
        .zip(&masked_outputs)
        .map(|(i, o)| i.split(' ').chain(o.split(' ')).collect())
        .collect();
    let near = near_duplicates(&words, options.near);
    for (i, row) in rows.iter().enumerate() {
        let (input, output) = (masked_inputs[i].as_str(), masked_outputs[i].as_str());
        let exact = *exact
            .entry((inputs[i].trim(), row.output().trim()))
            .or_insert(i);
        let template = *templates.entry((input, output)).or_insert(i);
        let same_input = *by_input.entry(input).or_insert(i);
        let same_output = *by_output.entry(output).or_insert(i);
        let mut say = |problem, other: usize| {
            findings.push(Finding::new(
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
            if same_input != i && !input.is_empty() {
                say(LintProblem::SameInput, same_input);
            }
            if let Some(other) = near[i] {
                say(LintProblem::NearDuplicate, other);
            }
        }
    }
}

/// Rows whose question the other set asks too.
pub(super) fn find_leaks(
    rows: &[DataRow],
    others: &[DataRow],
    options: &LintOptions,
    findings: &mut Vec<Finding>,
) {
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
    let texts: Vec<String> = others.iter().chain(rows).map(question).collect();
    let words: Vec<BTreeSet<&str>> = texts.iter().map(|text| text.split(' ').collect()).collect();
    let near = near_among(&words, options.leak, others.len());
    for (row, other) in rows.iter().zip(&near[others.len()..]) {
        if let Some(other) = *other {
            findings.push(Finding::new(
                LintProblem::Leak,
                &row.location,
                others[other].location.to_string(),
            ));
        }
    }
}
