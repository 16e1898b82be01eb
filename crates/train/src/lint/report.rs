//! The findings of the linter, and what it reports about the rows.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::lengths::TokenLengths;
use dataset::{DataRow, DatasetError, DatasetScan, EMPTY_ANSWER, FieldReport, RowLocation};

/// The most findings of a kind that a report lists; further ones are counted.
pub const MAX_FINDINGS: usize = 2000;
/// The most intents that a report lists.
pub const MAX_INTENTS: usize = 1000;

/// Thresholds of the checks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LintOptions {
    /// Word-set Jaccard similarity, from 0 to 1, from which two rows are near-duplicates.
    pub near: f64,
    /// The same for questions of the training rows against those of the others.
    pub leak: f64,
    /// Digits in a row that make a number worth tracing back to the input.
    pub digits: usize,
}

impl Default for LintOptions {
    fn default() -> Self {
        Self {
            near: 0.9,
            leak: 0.9,
            digits: 3,
        }
    }
}

/// A kind of problem with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LintProblem {
    /// The line is not a valid row.
    Broken,
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
    /// The output seems to stop in the middle.
    CutOff,
    /// The output has a number that the input does not have.
    NumberFromNowhere,
    /// A turn contains the text of one of the base's control tokens.
    ControlToken,
    /// The template or the tokenizer does not take the row.
    Refused,
    /// No token of the row would be trained.
    NothingTrained,
    /// The row has more tokens than a row may have.
    TooLong,
    /// The answer to prefer and the one to reject are the same.
    SameAnswers,
}

impl LintProblem {
    /// Every problem, in the order of reports.
    pub const ALL: [LintProblem; 15] = [
        LintProblem::Broken,
        LintProblem::Duplicate,
        LintProblem::DuplicateButNumbers,
        LintProblem::NearDuplicate,
        LintProblem::SameOutput,
        LintProblem::SameInput,
        LintProblem::Leak,
        LintProblem::EmptyOutput,
        LintProblem::CutOff,
        LintProblem::NumberFromNowhere,
        LintProblem::ControlToken,
        LintProblem::Refused,
        LintProblem::NothingTrained,
        LintProblem::TooLong,
        LintProblem::SameAnswers,
    ];

    /// Comes before what a finding is about.
    fn words(self) -> &'static str {
        match self {
            LintProblem::Broken | LintProblem::Refused => "",
            LintProblem::Duplicate => "the same row as ",
            LintProblem::DuplicateButNumbers => "the same, except for numbers, as ",
            LintProblem::NearDuplicate => "nearly the same as ",
            LintProblem::SameOutput => "the same output, except for numbers, as ",
            LintProblem::SameInput => "the same input, except for numbers, as ",
            LintProblem::Leak => "its input is also in ",
            LintProblem::EmptyOutput => "the output is empty",
            LintProblem::CutOff => "the output seems to be cut off: ",
            LintProblem::NumberFromNowhere => {
                "the output has a number that the input does not have: "
            }
            LintProblem::ControlToken => "has the text of a control token, which stays text: ",
            LintProblem::NothingTrained => "none of its tokens would be trained",
            LintProblem::TooLong => "too long: ",
            LintProblem::SameAnswers => {
                "its chosen and its rejected answer are the same; training leaves it out"
            }
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The kind of problem.
    pub problem: LintProblem,
    /// The data file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// The other row (`file:line`), the number, the end of the output, or a description of the problem. May be empty.
    pub about: String,
}

impl Finding {
    pub(super) fn new(
        problem: LintProblem,
        location: &RowLocation,
        about: impl Into<String>,
    ) -> Self {
        Self {
            problem,
            file: location.file.to_string(),
            line: location.line,
            about: about.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, line, about) = (&self.file, self.line, &self.about);
        write!(f, "{file}:{line}: {}{about}", self.problem.words())
    }
}

/// All findings of the linter, and statistics of the rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LintReport {
    /// Rows looked at.
    pub rows: usize,
    /// Lines that are not rows; only the first ones have a finding.
    pub broken_lines: usize,
    /// Findings, by file and line: the first [`MAX_FINDINGS`] of each kind.
    pub findings: Vec<Finding>,
    /// Number of further findings of each kind.
    pub more_findings: BTreeMap<LintProblem, usize>,
    /// Rows that were left out because the report was limited.
    pub unchecked_rows: usize,
    /// Rows of each intent, where the data has that column: the first [`MAX_INTENTS`] intents.
    pub intents: BTreeMap<String, usize>,
    /// How long the rows are; `None` if they were not tokenized.
    pub lengths: Option<TokenLengths>,
    /// What became of the rows' fields: which are honoured, which rows are left out, and what training does not use.
    pub fields: FieldReport,
    /// Rows that training would hold out for validation, if there are no other rows for that.
    pub held_out: Option<usize>,
    /// Number of listed findings of each kind.
    #[serde(skip)]
    pub(super) listed: BTreeMap<LintProblem, usize>,
}

impl LintReport {
    /// How many findings are of one kind.
    #[must_use]
    pub fn count(&self, problem: LintProblem) -> usize {
        let of_kind = |finding: &&Finding| finding.problem == problem;
        let more = self.more_findings.get(&problem).copied().unwrap_or(0);
        self.findings.iter().filter(of_kind).count() + more
    }

    /// Adds a finding, or counts it if there are [`MAX_FINDINGS`] of its kind.
    pub(super) fn push(&mut self, finding: Finding) {
        let listed = self.listed.entry(finding.problem).or_insert(0);
        if *listed < MAX_FINDINGS {
            *listed += 1;
            self.findings.push(finding);
        } else {
            *self.more_findings.entry(finding.problem).or_insert(0) += 1;
        }
    }

    pub(super) fn count_intent(&mut self, intent: &str) {
        if let Some(rows) = self.intents.get_mut(intent) {
            *rows += 1;
        } else if self.intents.len() < MAX_INTENTS {
            self.intents.insert(intent.to_owned(), 1);
        }
    }

    /// Adds the broken lines of a file, and what became of its fields.
    pub fn add_scan(&mut self, scan: &DatasetScan) {
        self.fields.add(&scan.fields);
        self.broken_lines += scan.broken_lines;
        for error in &scan.broken {
            let DatasetError::Row {
                file,
                line,
                field,
                message,
            } = error
            else {
                continue;
            };
            let location = RowLocation {
                file: file.as_str().into(),
                line: *line,
            };
            let field = field.as_ref().map(|field| format!("field `{field}`: "));
            self.push(if message == EMPTY_ANSWER {
                Finding::new(LintProblem::EmptyOutput, &location, "")
            } else {
                let about = format!("{}{message}", field.unwrap_or_default());
                Finding::new(LintProblem::Broken, &location, about)
            });
        }
        self.sort();
    }

    /// Adds findings about the rejected answers of `rows`.
    pub fn add_rejected(&mut self, rows: &[DataRow], rejected: &BTreeMap<RowLocation, DataRow>) {
        for row in rows {
            let same = |other: &DataRow| other.output().trim() == row.output().trim();
            if rejected.get(&row.location).is_some_and(same) {
                self.push(Finding::new(LintProblem::SameAnswers, &row.location, ""));
            }
        }
        self.sort();
    }

    pub(super) fn sort(&mut self) {
        self.findings.sort_by(|a, b| {
            (&a.file, a.line, a.problem, &a.about).cmp(&(&b.file, b.line, b.problem, &b.about))
        });
    }
}
