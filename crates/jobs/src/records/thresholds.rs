//! What a job's adapter must measure up to before it is published: the `[eval]` table of persona.toml, as JSON.

use registry::EvalSpec;
use serde::{Deserialize, Serialize};
use train::measures::ToneMarkers;

/// The share of answers in the right tone where nobody says, as in persona.toml.
const TONE: f64 = 0.95;
/// The share of copied identifiers where nobody says, as in persona.toml.
const COPIED: f64 = 0.9;
/// The largest bound of a measure that is no share.
const MAX_BOUND: f64 = 100.0;
/// The most patterns of a list.
const MAX_PATTERNS: usize = 64;
/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 1024;

/// Thresholds, by their names in the `[eval]` table of persona.toml (docs/evaluation.md). A bound that is not there is not
/// checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Regular expressions, one of which an answer in the right tone matches; empty: any answer will do.
    pub any_of: Vec<String>,
    /// Regular expressions, none of which it matches.
    pub none_of: Vec<String>,
    /// Share of answers, 0 to 1, that must have the right tone; 0.95 without.
    pub tone_at_least: Option<f64>,
    /// Share of answers, 0 to 1, that must copy their identifiers right; 0.9 without.
    pub copied_at_least: Option<f64>,
    /// Share of answers, 0 to 1, that must leave no identifier out.
    pub complete_at_least: Option<f64>,
    /// Mean loss of a token of the reference answers, in nats.
    pub loss_at_most: Option<f64>,
    /// Distinctness, 0 to 1, from the nearest of the personas beside.
    pub distinct_at_least: Option<f64>,
    /// Share of answers, 0 to 1, that pass the tone check of whichever persona beside they pass most.
    pub other_tone_at_most: Option<f64>,
    /// 1 to 4 other personas, or versions of one, that the two before this compare with; without, the first four by name that have an
    /// adapter, those in the server's folder first.
    pub beside: Option<Vec<String>>,
    /// Drift from the base on neutral text, in nats a token.
    pub drift_at_most: Option<f64>,
    /// Share of repeated word 4-grams, 0 to 1.
    pub repetition_at_most: Option<f64>,
    /// Mean words of the answers by those of the references.
    pub length_at_least: Option<f64>,
    /// Mean words of the answers by those of the references.
    pub length_at_most: Option<f64>,
}

impl Thresholds {
    /// Those of a persona's `[eval]` table.
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
            beside: None,
            drift_at_most: spec.drift_at_most,
            repetition_at_most: spec.repetition_at_most,
            length_at_least: spec.length_at_least,
            length_at_most: spec.length_at_most,
        }
    }

    /// As an evaluation takes them.
    #[must_use]
    pub fn spec(&self) -> EvalSpec {
        EvalSpec {
            any_of: self.any_of.clone(),
            none_of: self.none_of.clone(),
            tone_at_least: self.tone_at_least.unwrap_or(TONE),
            copied_at_least: self.copied_at_least.unwrap_or(COPIED),
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

    /// Holds every number to its range and every pattern to what a pattern may be.
    ///
    /// # Errors
    /// The name of the field that is wrong, and what is wrong with it.
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
