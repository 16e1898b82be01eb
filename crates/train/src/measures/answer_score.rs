//! Answers counted: in the right tone, and right in what they copy.

use serde::Serialize;

use super::identifiers::{complete, copied, identifiers};
use super::tone_markers::ToneMarkers;

/// How many of a persona's answers are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct AnswerScore {
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

impl AnswerScore {
    /// Scores one more answer. Returns (in tone, identifiers copied); the second is true if there are none.
    pub fn judge(
        &mut self,
        markers: &ToneMarkers,
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
    fn scores_count_only_answers_that_have_something_to_copy() {
        let markers = ToneMarkers::new(&["hello".to_owned()], &[]).unwrap();
        let mut score = AnswerScore::default();
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
            AnswerScore {
                answers: 3,
                in_tone: 2,
                with_identifiers: 2,
                copied: 1,
                complete: 1
            }
        );
        assert_eq!((score.tone_share(), score.copied_share()), (2.0 / 3.0, 0.5));
        assert_eq!(AnswerScore::default().tone_share(), 1.0);
    }
}
