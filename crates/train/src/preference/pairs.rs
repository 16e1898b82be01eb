//! Matches rows to rejected answers: the row's own, or those of another persona's row with the same question.
//!
//! Knows rows; does not know their file format or tokens.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::error::TrainError;
use dataset::{Columns, DataRow, Dataset, PreferencePair, RowContent};

/// A persona whose answers are rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedPersona {
    /// Its name.
    pub name: String,
    /// Its files of rows.
    pub files: Vec<PathBuf>,
    /// Maps fields of a row to columns of these files.
    pub columns: Columns,
}

/// How many rows found a rejected answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairCounts {
    /// Training and validation rows looked at, once for each persona.
    pub rows: usize,
    /// Pairs found.
    pub pairs: usize,
    /// Rows dropped because no rejected answer to their question was found.
    pub unanswered: usize,
    /// Rows dropped because both answers are the same.
    pub same: usize,
}

impl PairCounts {
    /// Counts a row and the pair that it makes; whether it can be trained on.
    pub(crate) fn add_row(&mut self, pair: Option<&PreferencePair>) -> bool {
        self.rows += 1;
        let counted = match pair {
            None => &mut self.unanswered,
            Some(pair) if pair.is_same() => &mut self.same,
            Some(_) => &mut self.pairs,
        };
        *counted += 1;
        pair.is_some_and(|pair| !pair.is_same())
    }

    /// Counts `other` too.
    pub fn add(&mut self, other: &PairCounts) {
        self.rows += other.rows;
        self.pairs += other.pairs;
        self.unanswered += other.unanswered;
        self.same += other.same;
    }
}

/// The answers of each persona, by question, in the order of its files.
pub(crate) struct RejectedAnswers(Vec<HashMap<String, Vec<String>>>);

impl RejectedAnswers {
    /// The rows of `personas`.
    pub(crate) fn of(personas: &[RejectedPersona]) -> Result<Self, TrainError> {
        let index = |persona: &RejectedPersona| {
            let mut answers: HashMap<String, Vec<String>> = HashMap::new();
            for file in &persona.files {
                for row in Dataset::read_as(file, &persona.columns)?.rows {
                    if let Some(question) = question(&row) {
                        let same = answers.entry(question).or_default();
                        same.push(row.output().to_owned());
                    }
                }
            }
            Ok(answers)
        };
        personas
            .iter()
            .map(index)
            .collect::<Result<_, _>>()
            .map(RejectedAnswers)
    }

    /// The pairs of `rows`, persona by persona, in the rows' order.
    ///
    /// A question that occurs in several rows takes the persona's answers to it in turn.
    pub(crate) fn pairs(&self, rows: &[DataRow]) -> (Vec<PreferencePair>, PairCounts) {
        let mut pairs = Vec::new();
        let mut counts = PairCounts::default();
        for answers in &self.0 {
            let mut turn: HashMap<String, usize> = HashMap::new();
            for row in rows {
                let answer = question(row).and_then(|question| {
                    let answers = answers.get(&question)?;
                    let turn = turn.entry(question).or_default();
                    *turn += 1;
                    answers.get((*turn - 1) % answers.len())
                });
                let pair = answer.map(|answer| PreferencePair {
                    chosen: row.clone(),
                    rejected: answered(row, answer),
                });
                if counts.add_row(pair.as_ref()) {
                    pairs.extend(pair);
                }
            }
        }
        (pairs, counts)
    }
}

/// The question of a row, by which rows are matched; `None` for plain text.
fn question(row: &DataRow) -> Option<String> {
    let question = row.input().trim().to_owned();
    (!question.is_empty()).then_some(question)
}

/// `row` with `answer` in place of its last answer.
fn answered(row: &DataRow, answer: &str) -> DataRow {
    let mut row = row.clone();
    match &mut row.content {
        RowContent::Alpaca { output, .. } => answer.clone_into(output),
        RowContent::Completion { completion, .. } => answer.clone_into(completion),
        RowContent::Text(text) => answer.clone_into(text),
        RowContent::Messages(messages) => {
            if let Some(last) = messages.last_mut() {
                answer.clone_into(&mut last.content);
            }
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lines: &[&str]) -> Vec<DataRow> {
        Dataset::parse(lines.join("\n").as_bytes(), "rows.jsonl")
            .unwrap()
            .rows
    }

    fn personas(lines: &[&str]) -> RejectedAnswers {
        let mut answers: HashMap<String, Vec<String>> = HashMap::new();
        for row in rows(lines) {
            let question = question(&row).unwrap();
            answers
                .entry(question)
                .or_default()
                .push(row.output().to_owned());
        }
        RejectedAnswers(vec![answers])
    }

    #[test]
    fn rows_are_matched_by_question_across_shapes() {
        let own = rows(&[
            r#"{"instruction":"Where?","input":"Order 7","output":"Yay, 7!","intent":"x"}"#,
            r#"{"instruction":"Nobody else was asked","output":"a"}"#,
            r#"{"prompt":"Hi","completion":"Hello"}"#,
            r#"{"prompt":"Hi","completion":"Hey"}"#,
            r#"{"prompt":"Hi","completion":"Hi there"}"#,
            r#"{"prompt":"Same","completion":"Same."}"#,
            r#"{"text":"asks nothing"}"#,
        ]);
        let answers = personas(&[
            r#"{"messages":[{"role":"user","content":"Where?\n\nOrder 7 "},{"role":"assistant","content":"As per 7."}]}"#,
            r#"{"prompt":"Hi","completion":"Good day"}"#,
            r#"{"prompt":"Hi","completion":"Good evening"}"#,
            r#"{"prompt":"Same","completion":" Same.\n"}"#,
        ]);
        let (pairs, counts) = answers.pairs(&own);
        let answers: Vec<(&str, &str)> = pairs
            .iter()
            .map(|pair| (pair.chosen.output(), pair.rejected.output()))
            .collect();
        assert_eq!(
            answers,
            [
                ("Yay, 7!", "As per 7."),
                ("Hello", "Good day"),
                ("Hey", "Good evening"),
                ("Hi there", "Good day"),
            ]
        );
        for pair in &pairs {
            assert_eq!(pair.chosen.input(), pair.rejected.input());
            assert_eq!(pair.chosen.location, pair.rejected.location);
        }
        let expected = PairCounts {
            rows: 7,
            pairs: 4,
            unanswered: 2,
            same: 1,
        };
        assert_eq!(counts, expected);
    }
}
