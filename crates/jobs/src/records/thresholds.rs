//! The thresholds of a job's eval gate: the `[eval]` table of persona.toml as JSON.

use registry::EvalSpec;
use serde::{Deserialize, Serialize};
use train::TrainError;
use train::measures::ToneMarkers;

/// The largest threshold of a measure that is not a share.
const MAX_BOUND: f64 = 100.0;
/// The most patterns of a list.
const MAX_PATTERNS: usize = 64;
/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 1024;

/// Thresholds, by their names in the `[eval]` table of persona.toml (docs/evaluation.md). A threshold that is not set is
/// not checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Regular expressions; an answer in the right tone matches one of them. If empty, any answer does.
    pub any_of: Vec<String>,
    /// Regular expressions; an answer in the right tone matches none of them.
    pub none_of: Vec<String>,
    /// Share of answers, 0 to 1, that must have the right tone. Default: 0.95.
    pub tone_at_least: Option<f64>,
    /// Share of answers, 0 to 1, that must copy identifiers right. Default: 0.9.
    pub copied_at_least: Option<f64>,
    /// Share of answers, 0 to 1, that must leave no identifier out.
    pub complete_at_least: Option<f64>,
    /// Mean loss of the reference answers, in nats per token.
    pub loss_at_most: Option<f64>,
    /// Distinctness, 0 to 1, from the nearest baseline.
    pub distinct_at_least: Option<f64>,
    /// Highest share of answers, 0 to 1, that pass a baseline's tone check.
    pub other_tone_at_most: Option<f64>,
    /// The baselines of `distinct_at_least` and `other_tone_at_most`: 1 to 4 other personas, or versions of one. Default: the first four by
    /// name that have an adapter, those in the server's folder first.
    #[serde(rename = "beside")]
    pub baselines: Option<Vec<String>>,
    /// Drift from the base on neutral text, in nats per token.
    pub drift_at_most: Option<f64>,
    /// Share of repeated word 4-grams, 0 to 1.
    pub repetition_at_most: Option<f64>,
    /// Mean length of the answers, in words, divided by that of the references.
    pub length_at_least: Option<f64>,
    /// Mean length of the answers, in words, divided by that of the references.
    pub length_at_most: Option<f64>,
}

impl Thresholds {
    /// The thresholds of a persona's `[eval]` table.
    #[must_use]
    pub fn of(spec: &EvalSpec) -> Thresholds {
        Thresholds {
            any_of: spec.any_of.clone(),
            none_of: spec.none_of.clone(),
            tone_at_least: Some(spec.tone_at_least),
            copied_at_least: Some(spec.copied_at_least),
            complete_at_least: spec.complete_at_least,
            loss_at_most: spec.loss_at_most,
            distinct_at_least: spec.distinct_at_least,
            other_tone_at_most: spec.other_tone_at_most,
            baselines: None,
            drift_at_most: spec.drift_at_most,
            repetition_at_most: spec.repetition_at_most,
            length_at_least: spec.length_at_least,
            length_at_most: spec.length_at_most,
        }
    }

    /// These thresholds of a request together with those of the persona's own `[eval]` table: of each threshold the stricter one, and the
    /// patterns that both allow. A request can tighten a persona's gate and never loosen it.
    ///
    /// # Errors
    /// The name of a field that would loosen the gate, and what to do.
    pub(crate) fn tightening(&self, own: &Thresholds) -> Result<Thresholds, (String, String)> {
        let is_own = |pattern: &String| own.any_of.contains(pattern);
        if !own.any_of.is_empty() && !self.any_of.iter().all(is_own) {
            let message = "can only have patterns of the persona's own gate, since an answer in the right tone matches one of them; \
                           give some of these, or leave it out";
            return Err(("gate.any_of".to_owned(), message.to_owned()));
        }
        let any_of = match self.any_of.is_empty() {
            true => &own.any_of,
            false => &self.any_of,
        };
        let mut none_of = own.none_of.clone();
        none_of.extend(self.none_of.iter().cloned());
        none_of.dedup();
        let either = |a: Option<f64>, b: Option<f64>, stricter: fn(f64, f64) -> f64| match (a, b) {
            (Some(a), Some(b)) => Some(stricter(a, b)),
            _ => a.or(b),
        };
        let highest = |a, b| either(a, b, f64::max);
        let lowest = |a, b| either(a, b, f64::min);
        let both = Thresholds {
            any_of: any_of.clone(),
            none_of,
            tone_at_least: highest(self.tone_at_least, own.tone_at_least),
            copied_at_least: highest(self.copied_at_least, own.copied_at_least),
            complete_at_least: highest(self.complete_at_least, own.complete_at_least),
            loss_at_most: lowest(self.loss_at_most, own.loss_at_most),
            distinct_at_least: highest(self.distinct_at_least, own.distinct_at_least),
            other_tone_at_most: lowest(self.other_tone_at_most, own.other_tone_at_most),
            baselines: self.baselines.clone(),
            drift_at_most: lowest(self.drift_at_most, own.drift_at_most),
            repetition_at_most: lowest(self.repetition_at_most, own.repetition_at_most),
            length_at_least: highest(self.length_at_least, own.length_at_least),
            length_at_most: lowest(self.length_at_most, own.length_at_most),
        };
        both.check_patterns()?;
        Ok(both)
    }

    /// The thresholds as an `[eval]` table.
    #[must_use]
    pub fn spec(&self) -> EvalSpec {
        EvalSpec {
            any_of: self.any_of.clone(),
            none_of: self.none_of.clone(),
            tone_at_least: self.tone_at_least.unwrap_or(EvalSpec::TONE_AT_LEAST),
            copied_at_least: self.copied_at_least.unwrap_or(EvalSpec::COPIED_AT_LEAST),
            complete_at_least: self.complete_at_least,
            loss_at_most: self.loss_at_most,
            distinct_at_least: self.distinct_at_least,
            other_tone_at_most: self.other_tone_at_most,
            drift_at_most: self.drift_at_most,
            repetition_at_most: self.repetition_at_most,
            length_at_least: self.length_at_least,
            length_at_most: self.length_at_most,
        }
    }

    /// Checks the range of every number, and every pattern.
    ///
    /// # Errors
    /// The name of an invalid field, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        let shares = [
            ("tone_at_least", self.tone_at_least),
            ("copied_at_least", self.copied_at_least),
            ("complete_at_least", self.complete_at_least),
            ("repetition_at_most", self.repetition_at_most),
            ("distinct_at_least", self.distinct_at_least),
            ("other_tone_at_most", self.other_tone_at_most),
        ];
        let numbers = [
            ("loss_at_most", self.loss_at_most),
            ("drift_at_most", self.drift_at_most),
            ("length_at_least", self.length_at_least),
            ("length_at_most", self.length_at_most),
        ];
        let with =
            |most: f64| move |(name, value): (&'static str, Option<f64>)| (name, value, most);
        let all = shares
            .into_iter()
            .map(with(1.0))
            .chain(numbers.into_iter().map(with(MAX_BOUND)));
        for (name, value, most) in all {
            if let Some(value) = value.filter(|value| !(0.0..=most).contains(value)) {
                let message = format!("must be from 0 to {most}, not {value}");
                return Err((format!("gate.{name}"), message));
            }
        }
        for (name, patterns) in self.patterns() {
            let field = format!("gate.{name}");
            if patterns.len() > MAX_PATTERNS {
                let message = format!("has more than {MAX_PATTERNS} patterns");
                return Err((field, message));
            }
            if patterns.iter().any(|pattern| pattern.len() > MAX_PATTERN) {
                let message = format!("has a pattern of more than {MAX_PATTERN} bytes");
                return Err((field, message));
            }
        }
        self.check_patterns()
    }

    fn patterns(&self) -> [(&'static str, &Vec<String>); 2] {
        [("any_of", &self.any_of), ("none_of", &self.none_of)]
    }

    /// Checks that all patterns are regular expressions, and small enough together.
    fn check_patterns(&self) -> Result<(), (String, String)> {
        for (name, patterns) in self.patterns() {
            let error = |error: TrainError| (format!("gate.{name}"), error.to_string());
            ToneMarkers::new(patterns, &[]).map_err(error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Thresholds {
        Thresholds {
            any_of: vec!["a".to_owned(), "b".to_owned()],
            none_of: vec!["x".to_owned()],
            tone_at_least: Some(0.9),
            copied_at_least: Some(0.5),
            loss_at_most: Some(2.0),
            length_at_most: Some(1.5),
            ..Thresholds::default()
        }
    }

    #[test]
    fn looser_thresholds_of_a_request_change_nothing() {
        let loose = Thresholds {
            tone_at_least: Some(0.0),
            copied_at_least: Some(0.0),
            loss_at_most: Some(100.0),
            length_at_most: Some(100.0),
            ..Thresholds::default()
        };
        assert_eq!(loose.tightening(&own()).unwrap(), own());
        assert_eq!(Thresholds::default().tightening(&own()).unwrap(), own());
        let other = Thresholds {
            any_of: vec!["".to_owned()],
            ..Thresholds::default()
        };
        let (field, message) = other.tightening(&own()).unwrap_err();
        assert_eq!(field, "gate.any_of");
        assert!(message.contains("of the persona's own gate"), "{message}");
    }

    #[test]
    fn stricter_thresholds_and_further_ones_apply() {
        let strict = Thresholds {
            any_of: vec!["b".to_owned()],
            none_of: vec!["y".to_owned()],
            tone_at_least: Some(1.0),
            loss_at_most: Some(1.0),
            drift_at_most: Some(0.1),
            ..Thresholds::default()
        };
        let both = strict.tightening(&own()).unwrap();
        assert_eq!(both.any_of, ["b"]);
        assert_eq!(both.none_of, ["x", "y"]);
        assert_eq!(
            (both.tone_at_least, both.copied_at_least),
            (Some(1.0), Some(0.5))
        );
        assert_eq!(
            (both.loss_at_most, both.drift_at_most),
            (Some(1.0), Some(0.1))
        );
        assert_eq!(both.length_at_most, Some(1.5));
    }

    #[test]
    fn patterns_are_bounded_together() {
        let many = Thresholds {
            none_of: vec![r"\w{100}".to_owned(); MAX_PATTERNS],
            ..Thresholds::default()
        };
        let (field, message) = many.check().unwrap_err();
        assert_eq!(field, "gate.none_of");
        assert!(message.contains("1024 KiB together"), "{message}");
    }

    #[test]
    fn number_and_length_of_patterns_are_limited() {
        let none_of = |patterns: Vec<String>| Thresholds {
            none_of: patterns,
            ..Thresholds::default()
        };
        none_of(vec!["a".to_owned(); MAX_PATTERNS]).check().unwrap();
        none_of(vec!["a".repeat(MAX_PATTERN)]).check().unwrap();
        let many = vec!["a".to_owned(); MAX_PATTERNS + 1];
        let (field, message) = none_of(many).check().unwrap_err();
        assert_eq!(field, "gate.none_of");
        assert!(message.contains("more than 64 patterns"), "{message}");
        let long = vec!["a".repeat(MAX_PATTERN + 1)];
        let (_, message) = none_of(long).check().unwrap_err();
        assert!(message.contains("more than 1024 bytes"), "{message}");
    }
}
