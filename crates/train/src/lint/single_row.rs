//! Checks of one row: an empty answer, a truncated answer, a number that the input does not have.

use std::sync::atomic::AtomicBool;

use super::report::{Finding, LintOptions, LintProblem, LintReport};
use super::similarity::numbers;
use crate::error::TrainError;
use dataset::DataRow;
use dataset::stop::check_stop;

/// Fewer words than this may be a label or a name, which needs no full stop.
const SENTENCE: usize = 6;
/// Number of sentences from which a habit can be inferred.
const HABIT: usize = 20;

pub(super) fn check_rows(
    rows: &[DataRow],
    options: &LintOptions,
    report: &mut LintReport,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    let habit = outputs_end_in_full_stops(rows);
    for row in rows {
        check_stop(stop)?;
        let output = row.output().trim();
        if output.is_empty() {
            report.push(Finding::new(LintProblem::EmptyOutput, &row.location, ""));
        } else if stops_inside(output) || habit && is_sentence(output) && !is_ended(output) {
            report.push(Finding::new(
                LintProblem::CutOff,
                &row.location,
                end_of(output),
            ));
        }
        let input = row.input();
        if input.is_empty() {
            continue; // Plain text has no input that its numbers could come from.
        }
        let known = numbers(&input, options.digits);
        for number in numbers(row.output(), options.digits).difference(&known) {
            report.push(Finding::new(
                LintProblem::NumberFromNowhere,
                &row.location,
                number,
            ));
        }
    }
    Ok(())
}

/// Whether the text ends where no text can end: after a comma or an opening bracket, or inside a block of code.
fn stops_inside(output: &str) -> bool {
    let open = |c: char| {
        matches!(
            c,
            ',' | ';' | ':' | '(' | '[' | '{' | '&' | '،' | '、' | '，'
        )
    };
    output.ends_with(open) || output.matches("```").count() % 2 == 1
}

/// Whether the outputs that are sentences, at least [`HABIT`] of them, end in something else than a letter or a digit, but
/// for one in twenty: only then does one without a full stop stand out.
fn outputs_end_in_full_stops(rows: &[DataRow]) -> bool {
    let sentences = || {
        let outputs = rows.iter().map(|row| row.output().trim());
        outputs.filter(|output| is_sentence(output))
    };
    let all = sentences().count();
    let ended = sentences().filter(|output| is_ended(output)).count();
    all >= HABIT && ended * 20 >= all * 19
}

fn is_sentence(output: &str) -> bool {
    output.split_whitespace().nth(SENTENCE - 1).is_some()
}

fn is_ended(output: &str) -> bool {
    !output.ends_with(char::is_alphanumeric)
}

/// The last words of a text, in one line.
fn end_of(output: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let mut end: Vec<char> = output.chars().rev().take(32).map(shown).collect();
    if output.chars().count() > end.len() {
        end.push('…');
    }
    end.into_iter().rev().collect()
}
