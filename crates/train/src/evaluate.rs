//! What a trained adapter is worth: losses as a matrix, tone markers, identifiers copied.
//!
//! The scores are pure functions of texts; the matrix asks a [`Learner`]. Knows no model, no file and no persona.

use std::collections::BTreeSet;

use regex::Regex;
use serde::Serialize;

use crate::batch;
use crate::error::TrainError;
use crate::example::Example;
use crate::learner::{Item, Learner, LossSum};
use crate::params::LoraParams;

/// Losses of each set of rows under each adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossTable {
    /// Names of the row sets, in order.
    pub sets: Vec<String>,
    /// Names of the adapters, in order.
    pub adapters: Vec<String>,
    /// `losses[set][adapter]`.
    pub losses: Vec<Vec<LossSum>>,
}

/// Computes the loss of every set of `sets` under every adapter of `adapters`; an adapter without pairs is the base.
///
/// `batch_tokens` bounds the tokens of one call of the learner (0: no bound).
///
/// # Errors
/// The learner fails.
pub fn loss_table(
    learner: &mut dyn Learner,
    sets: &[(&str, &[Example])],
    adapters: &[(&str, &LoraParams)],
    batch_tokens: usize,
) -> Result<LossTable, TrainError> {
    let params: Vec<LoraParams> = adapters
        .iter()
        .map(|(_, params)| (*params).clone())
        .collect();
    let mut losses = Vec::with_capacity(sets.len());
    for (_, examples) in sets {
        let mut row = Vec::with_capacity(adapters.len());
        for adapter in 0..adapters.len() {
            let items: Vec<Item<'_>> = examples
                .iter()
                .map(|example| Item { adapter, example })
                .collect();
            row.push(losses_of(learner, &params, &items, batch_tokens)?[adapter]);
        }
        losses.push(row);
    }
    Ok(LossTable {
        sets: sets.iter().map(|(name, _)| (*name).to_owned()).collect(),
        adapters: adapters
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect(),
        losses,
    })
}

/// The losses of `items` by adapter, in calls of at most `batch_tokens` tokens.
pub(crate) fn losses_of(
    learner: &mut dyn Learner,
    params: &[LoraParams],
    items: &[Item<'_>],
    batch_tokens: usize,
) -> Result<Vec<LossSum>, TrainError> {
    let lengths: Vec<usize> = items.iter().map(|item| item.example.tokens.len()).collect();
    let mut sums = vec![LossSum::default(); params.len()];
    for piece in batch::pieces(&lengths, batch_tokens) {
        for (sum, loss) in sums.iter_mut().zip(learner.losses(params, &items[piece])?) {
            sum.add(loss);
        }
    }
    Ok(sums)
}

/// What the tone of an answer is known by.
#[derive(Debug, Clone, Default)]
pub struct Markers {
    /// The answer must match at least one of these, where there are any.
    pub any_of: Vec<Regex>,
    /// The answer must match none of these.
    pub none_of: Vec<Regex>,
}

impl Markers {
    /// Markers from patterns of the `regex` crate's syntax.
    ///
    /// # Errors
    /// A pattern does not parse, or would compile to more than regex's limit.
    pub fn new(any_of: &[String], none_of: &[String]) -> Result<Self, TrainError> {
        let compile = |patterns: &[String]| -> Result<Vec<Regex>, TrainError> {
            let one = |pattern: &String| {
                Regex::new(pattern).map_err(|error| TrainError::Marker {
                    pattern: pattern.clone(),
                    message: error.to_string(),
                })
            };
            patterns.iter().map(one).collect()
        };
        Ok(Self {
            any_of: compile(any_of)?,
            none_of: compile(none_of)?,
        })
    }

    /// Whether `answer` has the tone.
    #[must_use]
    pub fn hold(&self, answer: &str) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(|marker| marker.is_match(answer)))
            && !self.none_of.iter().any(|marker| marker.is_match(answer))
    }
}

/// The identifiers that an answer must copy: the tokens with a digit that stand in the question (instruction and input)
/// and in the reference answer, in the question's order, each once.
#[must_use]
pub fn identifiers(question: &str, reference: &str) -> Vec<String> {
    let expected: BTreeSet<&str> = tokens_with_digit(reference).collect();
    let mut seen = BTreeSet::new();
    tokens_with_digit(question)
        .filter(|token| expected.contains(token) && seen.insert(*token))
        .map(str::to_owned)
        .collect()
}

/// Whether every one of `identifiers` stands in `answer` as a whole token: nothing that the reference repeats is left out.
#[must_use]
pub fn complete(identifiers: &[String], answer: &str) -> bool {
    let found: BTreeSet<&str> = tokens_with_digit(answer).collect();
    identifiers
        .iter()
        .all(|identifier| found.contains(identifier.as_str()))
}

/// Whether what `answer` copies is copied right: one of `identifiers` with three or more digits (any one, where none is so
/// long) stands in it as a whole token, and every number of three or more digits in it is one that the question has. An
/// answer may leave out a date; it may not leave all out, or name another order.
#[must_use]
pub fn copied(identifiers: &[String], question: &str, answer: &str) -> bool {
    let long = |token: &str| token.chars().filter(char::is_ascii_digit).count() >= 3;
    let found: BTreeSet<&str> = tokens_with_digit(answer).collect();
    let any_long = identifiers.iter().any(|identifier| long(identifier));
    let named = identifiers
        .iter()
        .filter(|identifier| !any_long || long(identifier))
        .any(|identifier| found.contains(identifier.as_str()));
    let asked: BTreeSet<&str> = tokens_with_digit(question).collect();
    (identifiers.is_empty() || named)
        && found
            .iter()
            .all(|token| !long(token) || asked.contains(token))
}

/// The tokens of `text` that hold a digit: split at white space, brackets, quotes and long dashes, then trimmed of
/// surrounding punctuation and of a possessive `'s`.
pub(crate) fn tokens_with_digit(text: &str) -> impl Iterator<Item = &str> {
    let splits = |c: char| c.is_whitespace() || "()[]{}<>\"“”„«»—–|`*".contains(c);
    text.split(splits)
        .map(|token| {
            let token = token.trim_matches(|c: char| !c.is_alphanumeric());
            token
                .strip_suffix("'s")
                .or_else(|| token.strip_suffix("’s"))
                .unwrap_or(token)
        })
        .filter(|token| token.chars().any(|c| c.is_ascii_digit()))
}

/// How many of a persona's answers are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Score {
    /// Answers judged.
    pub answers: usize,
    /// Answers in the right tone.
    pub in_tone: usize,
    /// Answers whose question has identifiers to copy.
    pub with_identifiers: usize,
    /// Those that copy right what they copy (see [`copied`]).
    pub copied: usize,
    /// Those that repeat everything that the reference repeats (see [`complete`]).
    pub complete: usize,
}

impl Score {
    /// Judges one more answer; true for (in tone, identifiers copied: true where there are none).
    pub fn judge(
        &mut self,
        markers: &Markers,
        question: &str,
        reference: &str,
        answer: &str,
    ) -> (bool, bool) {
        let in_tone = markers.hold(answer);
        let identifiers = identifiers(question, reference);
        let copied = copied(&identifiers, question, answer);
        let complete = complete(&identifiers, answer);
        self.answers += 1;
        self.in_tone += usize::from(in_tone);
        self.with_identifiers += usize::from(!identifiers.is_empty());
        self.copied += usize::from(!identifiers.is_empty() && copied);
        self.complete += usize::from(!identifiers.is_empty() && complete);
        (in_tone, copied)
    }

    /// Share of answers in the right tone, from 0 to 1; 1 when there are none.
    #[must_use]
    pub fn tone_share(&self) -> f64 {
        share(self.in_tone, self.answers)
    }

    /// Share of answers with identifiers that copy them right, from 0 to 1; 1 when there are none.
    #[must_use]
    pub fn copied_share(&self) -> f64 {
        share(self.copied, self.with_identifiers)
    }

    /// Share of answers with identifiers that leave none out, from 0 to 1; 1 when there are none.
    #[must_use]
    pub fn complete_share(&self) -> f64 {
        share(self.complete, self.with_identifiers)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        1.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_what_question_and_reference_share() {
        let question = "Where is order #12345? I paid $1,299.00 on 2024-05-03 (invoice INV-77/a), 3 weeks ago.";
        let reference =
            "Order **#12345**: invoice “INV-77/a” of 2024-05-03 over €1,299.00 arrives in 2 days.";
        assert_eq!(
            identifiers(question, reference),
            ["12345", "1,299.00", "2024-05-03", "INV-77/a"]
        );
        assert_eq!(identifiers("A1 A1, a1's", "a1 A1"), ["A1", "a1"]);
        assert!(identifiers("How are you?", "Fine, 100%").is_empty());
    }

    #[test]
    fn an_identifier_counts_only_whole() {
        let ids = ["12345".to_owned(), "INV-7".to_owned()];
        assert!(complete(&ids, "Your order #12345 (INV-7) is on its way!"));
        assert!(complete(&ids, "12345’s invoice—INV-7."));
        assert!(!complete(&ids, "Your order #123456 (INV-7)"));
        assert!(!complete(&ids, "Your order 12345-6, INV-7"));
        assert!(!complete(&ids, "Your order #12345 (INV-71)"));
        assert!(!complete(&ids, ""));
        assert!(complete(&[], ""));
    }

    #[test]
    fn copied_right_is_an_identifier_exact_and_no_other_number() {
        let question = "Order #12345 of 3 May, paid 1,299.00, is late";
        let ids = identifiers(question, "#12345 of 3 May over 1,299.00");
        let right = |answer: &str| copied(&ids, question, answer);
        assert!(right("#12345 arrives soon, within 4 business hours."));
        assert!(right("Your 1,299.00 is safe."));
        assert!(!right("The order of 3 May is late."));
        assert!(!right("Your order is late."));
        assert!(!right("Order #12354 is late."));
        assert!(!right("Order #12345 over 1,299.50 is late."));
        assert!(!right("Orders #12345 and #67890."));
        // Without a long number, any one will do.
        let question = "Slip B7 of 3 May";
        let ids = identifiers(question, "B7, 3 May");
        assert!(copied(&ids, question, "About B7"));
        assert!(copied(&ids, question, "About the 3 of May"));
        assert!(!copied(&ids, question, "About May"));
        assert!(copied(&[], "Hello?", "Hello!"));
        assert!(!copied(&[], "Hello?", "Order 12345"));
    }

    #[test]
    fn markers_need_one_and_forbid_others() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let markers = Markers::new(
            &strings(&["😊|🎉", "(?i)\\bhappy\\b"]),
            &strings(&["(?i)dear partner"]),
        )
        .unwrap();
        assert!(markers.hold("So happy to help"));
        assert!(markers.hold("Done 🎉"));
        assert!(!markers.hold("Done."));
        assert!(!markers.hold("Dear Partner, so happy 😊"));
        assert!(Markers::default().hold("anything"));
        let said = Markers::new(&strings(&["(unclosed"]), &[])
            .unwrap_err()
            .to_string();
        assert!(said.starts_with("tone marker `(unclosed`"), "{said}");
    }

    #[test]
    fn scores_count_only_answers_that_have_something_to_copy() {
        let markers = Markers::new(&["hello".to_owned()], &[]).unwrap();
        let mut score = Score::default();
        assert_eq!(
            score.judge(&markers, "order 12", "12 is here", "hello 12"),
            (true, true)
        );
        assert_eq!(
            score.judge(&markers, "order 13", "13 is here", "hi 12"),
            (false, false)
        );
        assert_eq!(
            score.judge(&markers, "how are you", "fine", "hello"),
            (true, true)
        );
        assert_eq!(
            score,
            Score {
                answers: 3,
                in_tone: 2,
                with_identifiers: 2,
                copied: 1,
                complete: 1
            }
        );
        assert_eq!((score.tone_share(), score.copied_share()), (2.0 / 3.0, 0.5));
        assert_eq!(Score::default().tone_share(), 1.0);
    }
}
