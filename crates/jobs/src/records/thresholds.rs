//! The thresholds of a job's eval gate: the `[eval]` table of persona.toml as JSON.

use registry::EvalSpec;
use serde::{Deserialize, Serialize};
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
        for (name, patterns) in [("any_of", &self.any_of), ("none_of", &self.none_of)] {
            let field = format!("gate.{name}");
            if patterns.len() > MAX_PATTERNS {
                let message = format!("has more than {MAX_PATTERNS} patterns");
                return Err((field, message));
            }
            if patterns.iter().any(|pattern| pattern.len() > MAX_PATTERN) {
                let message = format!("has a pattern of more than {MAX_PATTERN} bytes");
                return Err((field, message));
            }
            ToneMarkers::new(patterns, &[]).map_err(|error| (field, error.to_string()))?;
        }
        Ok(())
    }
}
