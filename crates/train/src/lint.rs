//! Looks over data files before they cost a training run: rows that say the same, rows that leak, numbers from nowhere.
//!
//! Works on the texts of rows alone; knows no token. Every finding names file and line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::dataset::{Place, Row};

/// What is counted as alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Word-set Jaccard similarity, from 0 to 1, from which two rows are near-duplicates.
    pub near: f64,
    /// The same for questions of the training rows against those of the others.
    pub leak: f64,
    /// Digits in a row that make a number worth tracing back to the input.
    pub digits: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            near: 0.9,
            leak: 0.9,
            digits: 3,
        }
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Input and output are those of another row.
    Duplicate,
    /// Equal to another row once every token with a digit is masked: a template with the number swapped.
    DuplicateButNumbers,
    /// The words are almost those of another row.
    NearDuplicate,
    /// The output is that of another row, numbers aside, though the input is not.
    SameOutput,
    /// The input is that of another row, numbers aside, though the output is not.
    SameInput,
    /// The input is that of a row of the other set, numbers aside, or nearly so.
    Leak,
    /// The output is empty.
    EmptyOutput,
    /// The output has a number that the input does not have.
    NumberFromNowhere,
}

impl Problem {
    /// Every problem, in the order of reports.
    pub const ALL: [Problem; 8] = [
        Problem::Duplicate,
        Problem::DuplicateButNumbers,
        Problem::NearDuplicate,
        Problem::SameOutput,
        Problem::SameInput,
        Problem::Leak,
        Problem::EmptyOutput,
        Problem::NumberFromNowhere,
    ];

    fn words(self) -> &'static str {
        match self {
            Problem::Duplicate => "the same row as",
            Problem::DuplicateButNumbers => "the same but for its numbers as",
            Problem::NearDuplicate => "nearly the same as",
            Problem::SameOutput => "the same output, numbers aside, as",
            Problem::SameInput => "the same input, numbers aside, as",
            Problem::Leak => "its input also stands in",
            Problem::EmptyOutput => "the output is empty",
            Problem::NumberFromNowhere => "the output has a number that the input does not have:",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub problem: Problem,
    /// The data file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// The other row (`file:line`), or the number.
    pub about: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {} {}",
            self.file,
            self.line,
            self.problem.words(),
            self.about
        )?;
        Ok(())
    }
}

/// What the linter saw.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Report {
    /// Rows looked at.
    pub rows: usize,
    /// Findings in the order of the rows.
    pub findings: Vec<Finding>,
    /// Rows of each intent, where the data has that column.
    pub intents: BTreeMap<String, usize>,
}

impl Report {
    /// How many findings are of one kind.
    #[must_use]
    pub fn count(&self, problem: Problem) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.problem == problem)
            .count()
    }
}

/// Looks over `rows`; `others` is the set that must not leak into them (the evaluation rows), or empty.
///
/// Of several alike rows each but the first gets one finding, which names the first one alike.
#[must_use]
pub fn lint(rows: &[Row], others: &[Row], options: &Options) -> Report {
    let mut findings = Vec::new();
    alone(rows, options, &mut findings);
    alike(rows, options, &mut findings);
    leaks(rows, others, options, &mut findings);
    findings.sort_by(|a, b| {
        (&a.file, a.line, a.problem, &a.about).cmp(&(&b.file, b.line, b.problem, &b.about))
    });
    let mut intents = BTreeMap::new();
    for intent in rows.iter().filter_map(|row| row.intent.as_ref()) {
        *intents.entry(intent.clone()).or_insert(0) += 1;
    }
    Report {
        rows: rows.len(),
        findings,
        intents,
    }
}

fn finding(problem: Problem, place: &Place, about: impl Into<String>) -> Finding {
    Finding {
        problem,
        file: place.file.to_string(),
        line: place.line,
        about: about.into(),
    }
}

/// What a row shows by itself.
fn alone(rows: &[Row], options: &Options, findings: &mut Vec<Finding>) {
    for row in rows {
        if row.output().trim().is_empty() {
            findings.push(finding(Problem::EmptyOutput, &row.place, ""));
        }
        let input = row.input();
        if input.is_empty() {
            continue; // Plain text has no input that its numbers could come from.
        }
        let known = numbers(&input, options.digits);
        for number in numbers(row.output(), options.digits).difference(&known) {
            findings.push(finding(Problem::NumberFromNowhere, &row.place, number));
        }
    }
}

/// Rows against the rows before them.
fn alike(rows: &[Row], options: &Options, findings: &mut Vec<Finding>) {
    let inputs: Vec<String> = rows.iter().map(Row::input).collect();
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
            findings.push(finding(problem, &row.place, rows[other].place.to_string()));
        };
        if exact != i {
            say(Problem::Duplicate, exact);
        } else if template != i {
            say(Problem::DuplicateButNumbers, template);
        } else {
            if same_output != i {
                say(Problem::SameOutput, same_output);
            }
            if same_input != i && !input.is_empty() {
                say(Problem::SameInput, same_input);
            }
            if let Some(other) = near[i] {
                say(Problem::NearDuplicate, other);
            }
        }
    }
}

/// Rows whose question the other set asks too.
fn leaks(rows: &[Row], others: &[Row], options: &Options, findings: &mut Vec<Finding>) {
    // Plain text has no question: its text takes the place.
    let question = |row: &Row| {
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
            findings.push(finding(
                Problem::Leak,
                &row.place,
                others[other].place.to_string(),
            ));
        }
    }
}

/// `text` in lower case, its words parted by single spaces and bared of punctuation, each with a digit made `#`.
fn masked(text: &str) -> String {
    let word = |word: &str| {
        let bare: String = word
            .chars()
            .filter(|c| c.is_alphanumeric())
            .flat_map(char::to_lowercase)
            .collect();
        if bare.chars().any(char::is_numeric) {
            "#".to_owned()
        } else {
            bare
        }
    };
    let words: Vec<String> = text
        .split_whitespace()
        .map(word)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

/// Runs of at least `least` digits; separators inside a number ("1,299") are passed over.
fn numbers(text: &str, least: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut run = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() {
            run.push(c);
        } else if matches!(c, ',' | '\u{a0}' | '\u{202f}')
            && !run.is_empty()
            && chars.peek().is_some_and(char::is_ascii_digit)
        {
            // A separator of thousands: the number goes on.
        } else {
            found.insert(std::mem::take(&mut run));
        }
    }
    found.insert(run);
    found.retain(|run| run.len() >= least.max(1));
    found
}

/// For each set the first one before it whose Jaccard similarity is at least `threshold`.
fn near_duplicates(sets: &[BTreeSet<&str>], threshold: f64) -> Vec<Option<usize>> {
    near_among(sets, threshold, sets.len())
}

/// As [`near_duplicates`], but only the first `candidates` sets count as matches.
///
/// Prefix filter (Bayardo, Ma, Srikant 2007): with words sorted from rare to frequent, two sets of similarity t share a
/// word among the first |x| - ceil(t|x|) + 1 of each, so only those words are indexed and looked up.
fn near_among(sets: &[BTreeSet<&str>], threshold: f64, candidates: usize) -> Vec<Option<usize>> {
    let threshold = threshold.clamp(0.01, 1.0);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for word in sets.iter().flatten() {
        *counts.entry(word).or_insert(0) += 1;
    }
    let mut index: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut found = Vec::with_capacity(sets.len());
    for (i, set) in sets.iter().enumerate() {
        let mut words: Vec<&str> = set
            .iter()
            .copied()
            .filter(|word| !word.is_empty())
            .collect();
        words.sort_by_key(|word| (counts[word], *word));
        let needed = (threshold * words.len() as f64 - 1e-9).ceil() as usize;
        let prefix = if words.is_empty() {
            0
        } else {
            words.len() - needed.min(words.len()) + 1
        };
        let prefix = prefix.min(words.len());
        let alike: BTreeSet<usize> = words[..prefix]
            .iter()
            .flat_map(|word| index.get(word).into_iter().flatten())
            .copied()
            .collect();
        found.push(
            alike
                .into_iter()
                .find(|&other| jaccard(set, &sets[other]) >= threshold - 1e-12),
        );
        if i < candidates {
            for word in &words[..prefix] {
                index.entry(word).or_default().push(i);
            }
        }
    }
    found
}

fn jaccard(a: &BTreeSet<&str>, b: &BTreeSet<&str>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Content, Dataset};
    use crate::rng::Rng;

    fn rows(file: &str, pairs: &[(&str, &str)]) -> Vec<Row> {
        let row = |(i, (prompt, completion)): (usize, &(&str, &str))| Row {
            place: Place {
                file: file.into(),
                line: i + 1,
            },
            content: Content::Completion {
                prompt: (*prompt).into(),
                completion: (*completion).into(),
            },
            intent: None,
        };
        pairs.iter().enumerate().map(row).collect()
    }

    fn said(report: &Report) -> Vec<(Problem, usize, &str)> {
        report
            .findings
            .iter()
            .map(|f| (f.problem, f.line, f.about.as_str()))
            .collect()
    }

    #[test]
    fn alike_rows_are_found_each_once() {
        let rows = rows(
            "a.jsonl",
            &[
                ("Where is order #1234?", "It left us today: 1234"),
                ("Where is order #1234?", "It left us today: 1234 "),
                ("where is order #998-B", "It left us today: 998"),
                ("Has my parcel 55 gone?", "It left us today: 55"),
                ("Where is order #7?", "Let me have a look at 7."),
                (
                    "Do you sell red hats for dogs and cats?",
                    "Yes, we have red hats in three sizes.",
                ),
                (
                    "Do you sell red hats for dogs and cows?",
                    "Yes, we have red hats in three sizes!",
                ),
            ],
        );
        let report = lint(
            &rows,
            &[],
            &Options {
                near: 0.8,
                ..Options::default()
            },
        );
        assert_eq!(
            said(&report),
            [
                (Problem::Duplicate, 2, "a.jsonl:1"),
                (Problem::DuplicateButNumbers, 3, "a.jsonl:1"),
                (Problem::SameOutput, 4, "a.jsonl:1"),
                (Problem::SameInput, 5, "a.jsonl:1"),
                (Problem::NearDuplicate, 7, "a.jsonl:6"),
                (Problem::SameOutput, 7, "a.jsonl:6"),
            ]
        );
        assert_eq!(report.count(Problem::Duplicate), 1);
        assert_eq!(
            report.findings[0].to_string(),
            "a.jsonl:2: the same row as a.jsonl:1"
        );
    }

    #[test]
    fn questions_of_the_other_set_leak() {
        let train = rows(
            "t.jsonl",
            &[("Is 12 in stock?", "a"), ("What does shipping cost?", "b")],
        );
        let eval = rows(
            "e.jsonl",
            &[("May I return it?", "c"), ("is 99 in stock", "d")],
        );
        let report = lint(&train, &eval, &Options::default());
        assert_eq!(said(&report), [(Problem::Leak, 1, "e.jsonl:2")]);
    }

    #[test]
    fn numbers_must_come_from_the_input() {
        let rows = rows(
            "a.jsonl",
            &[
                (
                    "I paid 1,299 for ORD-4471x",
                    "1299 was paid for 4471, in 24 hours",
                ),
                ("Where is it?", "Call 5550 100, or 5550. Bye"),
                ("Empty?", " "),
            ],
        );
        let report = lint(&rows, &[], &Options::default());
        assert_eq!(
            said(&report),
            [
                (Problem::NumberFromNowhere, 2, "100"),
                (Problem::NumberFromNowhere, 2, "5550"),
                (Problem::EmptyOutput, 3, ""),
            ]
        );
    }

    #[test]
    fn intents_are_counted() {
        let text = "{\"prompt\":\"a\",\"completion\":\"x\",\"intent\":\"refund\"}\n{\"prompt\":\"b\",\"completion\":\"y\"}\n";
        let data = Dataset::parse(text.as_bytes(), "a.jsonl").unwrap();
        let report = lint(&data.rows, &[], &Options::default());
        assert_eq!(report.intents, BTreeMap::from([("refund".to_owned(), 1)]));
        assert_eq!(report.rows, 2);
    }

    /// The index must find what comparing all pairs finds.
    #[test]
    fn the_prefix_filter_misses_nothing() {
        let names: Vec<String> = (0..12).map(|i| format!("w{i}")).collect();
        let mut rng = Rng::new(5, &[]);
        for threshold in [0.3, 0.5, 0.75, 0.9, 1.0] {
            let sets: Vec<BTreeSet<&str>> = (0..60)
                .map(|_| {
                    (0..rng.below(9))
                        .map(|_| names[rng.below(12) as usize].as_str())
                        .collect()
                })
                .collect();
            let slow: Vec<Option<usize>> = (0..sets.len())
                .map(|i| {
                    (0..i)
                        .find(|&j| !sets[i].is_empty() && jaccard(&sets[i], &sets[j]) >= threshold)
                })
                .collect();
            assert_eq!(near_duplicates(&sets, threshold), slow, "{threshold}");
        }
    }
}
