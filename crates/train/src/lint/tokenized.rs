//! Checks of the tokenized rows: their lengths, and which of their tokens would be trained.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use super::lengths::{TokenLengths, histogram};
use super::report::{Finding, LintProblem, LintReport};
use crate::error::TrainError;
use crate::example::{Encoder, Fitted};
use dataset::stop::check_stop;
use dataset::{DataRow, DatasetError, RowContent, RowLocation};

/// Suffix of findings about a rejected answer.
const REJECTED: &str = " (the rejected answer)";

impl LintReport {
    /// Tokenizes `rows` as training would, with the `rejected` answers of those that have one, and adds what that shows.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] once `stop` is set.
    pub fn add_tokens(
        &mut self,
        rows: &[DataRow],
        rejected: &BTreeMap<RowLocation, DataRow>,
        encoder: &Encoder<'_>,
        stop: &AtomicBool,
    ) -> Result<(), TrainError> {
        let mut seen = Seen {
            encoder,
            control_tokens: encoder.tokenizer.control_tokens(),
            lengths: Vec::with_capacity(rows.len() + rejected.len()),
            trained_tokens: 0,
            report: self,
        };
        let (mut left_out, mut cut) = (0, 0);
        for row in rows {
            check_stop(stop)?;
            let fates = [
                Some(seen.look(row, "")),
                rejected
                    .get(&row.location)
                    .map(|other| seen.look(other, REJECTED)),
            ];
            // A pair stays or goes as a whole.
            if fates.contains(&Some(Fate::LeftOut)) {
                left_out += 1;
            } else if fates.contains(&Some(Fate::Cut)) {
                cut += 1;
            }
        }
        let Seen {
            mut lengths,
            trained_tokens,
            ..
        } = seen;
        lengths.sort_unstable();
        let at =
            |share: usize| lengths.get((lengths.len() * share).div_ceil(100).saturating_sub(1));
        let at = |share| at(share).copied().unwrap_or(0);
        self.lengths = Some(TokenLengths {
            rows: lengths.len(),
            tokens: lengths.iter().sum(),
            trained_tokens,
            shortest: at(0),
            median: at(50),
            p95: at(95),
            longest: at(100),
            max_length: encoder.max_length,
            left_out,
            cut,
            histogram: histogram(&lengths),
        });
        self.sort();
        Ok(())
    }
}

/// State of the checks.
struct Seen<'a> {
    encoder: &'a Encoder<'a>,
    control_tokens: &'a [String],
    lengths: Vec<usize>,
    trained_tokens: usize,
    report: &'a mut LintReport,
}

/// What training does with an answer because of its length.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Cut,
    LeftOut,
    /// It is not too long, or nothing becomes of it for another reason.
    Other,
}

impl Seen<'_> {
    /// Tokenizes a row; `whose` is the suffix of its findings.
    fn look(&mut self, row: &DataRow, whose: &str) -> Fate {
        let report = &mut *self.report;
        let mut say = |problem, about: String| {
            let about = format!("{about}{whose}");
            report.push(Finding::new(problem, &row.location, about));
        };
        // Plain text may hold control tokens: that is how it says where its turns are.
        if !matches!(row.content, RowContent::Text(_)) {
            // What is asked is looked at once, with the chosen answer.
            let input = if whose.is_empty() {
                row.input()
            } else {
                String::new()
            };
            let output = row.output();
            let holds =
                |token: &&String| input.contains(token.as_str()) || output.contains(token.as_str());
            for token in self.control_tokens.iter().filter(holds) {
                say(LintProblem::ControlToken, token.clone());
            }
        }
        let example = match self.encoder.render(row) {
            Ok(example) => example,
            Err(TrainError::Dataset(DatasetError::Row { message, .. })) => {
                say(LintProblem::Refused, message);
                return Fate::Other;
            }
            Err(other) => {
                say(LintProblem::Refused, other.to_string());
                return Fate::Other;
            }
        };
        let length = example.tokens.len();
        self.lengths.push(length);
        self.trained_tokens += example.trained_tokens();
        if example.trained_tokens() == 0 {
            say(LintProblem::NothingTrained, String::new());
            return Fate::Other;
        }
        let (fate, becomes) = match self.encoder.fit(example, row) {
            Ok(Fitted::Whole(_)) => return Fate::Other,
            Ok(Fitted::Truncated(_)) => (Fate::Cut, "it would be cut"),
            Ok(Fitted::Dropped) => (Fate::LeftOut, "it would be left out"),
            Err(_) => (Fate::Other, "training would refuse it"),
        };
        let most = self.encoder.max_length;
        let about = format!("{length} tokens, more than {most}; {becomes}");
        say(LintProblem::TooLong, about);
        fate
    }
}
