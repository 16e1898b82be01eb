//! The eval gate: checks the thresholds of `[eval]` in persona.toml against measures. Must not know how these were computed.

use registry::EvalSpec;
use serde::Serialize;

use super::candidate::Candidate;
use super::measures::Measures;

/// The side of a threshold that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The value must not be lower.
    AtLeast,
    /// The value must not be higher.
    AtMost,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// In percent.
    Share,
    /// With four decimals.
    Number,
}

/// The check of one threshold.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The persona.
    pub persona: String,
    /// Its key in persona.toml.
    pub key: &'static str,
    /// The measure's name, for people.
    pub measure: &'static str,
    /// The side of the threshold that passes.
    pub bound: Bound,
    /// The threshold.
    pub wanted: f64,
    /// The measured value. `None` if it could not be measured, which fails the check: an adapter is not published on unknown quality.
    pub value: Option<f64>,
    /// Whether the value meets the threshold.
    pub passed: bool,
    #[serde(skip)]
    format: Format,
    /// How to make an unmeasured value measurable.
    #[serde(skip)]
    missing: &'static str,
}

impl Check {
    /// The measured value as text.
    pub fn value_text(&self) -> String {
        self.value
            .map_or_else(|| "not measured".to_owned(), |value| self.text(value))
    }

    /// The threshold as text, such as `at least 95.0%`.
    pub fn wanted_text(&self) -> String {
        let bound = match self.bound {
            Bound::AtLeast => "at least",
            Bound::AtMost => "at most",
        };
        format!("{bound} {}", self.text(self.wanted))
    }

    /// One line with the persona, the measure, its value and the threshold.
    pub fn line(&self) -> String {
        let found = match self.value {
            Some(value) => self.text(value),
            None => format!("not measured ({})", self.missing),
        };
        format!(
            "{}: {} is {found}, wanted is {} ({})",
            self.persona,
            self.measure,
            self.wanted_text(),
            self.key
        )
    }

    fn text(&self, value: f64) -> String {
        match self.format {
            Format::Share => format!("{:.1}%", value * 100.0),
            Format::Number => format!("{value:.4}"),
        }
    }
}

/// A key of `[eval]`: how its threshold and its measured value are found, and how they are written.
struct Threshold {
    /// Its key in persona.toml.
    key: &'static str,
    /// The measure's name, for people.
    measure: &'static str,
    bound: Bound,
    format: Format,
    wanted: fn(&EvalSpec) -> Option<f64>,
    /// The measured value for the persona with this index.
    value: fn(&Measures, usize) -> Option<f64>,
    /// How to make an unmeasured value measurable.
    missing: &'static str,
}

/// All thresholds, in the order of reports.
const THRESHOLDS: [Threshold; 10] = [
    Threshold {
        key: "tone_at_least",
        measure: "tone right",
        bound: Bound::AtLeast,
        format: Format::Share,
        wanted: |spec| Some(spec.tone_at_least),
        value: |measures, index| Some(measures.personas[index].own.score.tone_share()),
        missing: "",
    },
    Threshold {
        key: "copied_at_least",
        measure: "identifiers right",
        bound: Bound::AtLeast,
        format: Format::Share,
        wanted: |spec| Some(spec.copied_at_least),
        value: |measures, index| Some(measures.personas[index].own.score.copied_share()),
        missing: "",
    },
    Threshold {
        key: "complete_at_least",
        measure: "no identifier left out",
        bound: Bound::AtLeast,
        format: Format::Share,
        wanted: |spec| spec.complete_at_least,
        value: |measures, index| Some(measures.personas[index].own.score.complete_share()),
        missing: "",
    },
    Threshold {
        key: "loss_at_most",
        measure: "validation loss",
        bound: Bound::AtMost,
        format: Format::Number,
        wanted: |spec| spec.loss_at_most,
        value: Measures::own_loss,
        missing: "",
    },
    Threshold {
        key: "distinct_at_least",
        measure: "distinctness from the nearest tone",
        bound: Bound::AtLeast,
        format: Format::Share,
        wanted: |spec| spec.distinct_at_least,
        value: Measures::nearest_distinctness,
        missing: "name another persona too, so that there is one to compare with",
    },
    Threshold {
        key: "other_tone_at_most",
        measure: "answers in another tone",
        bound: Bound::AtMost,
        format: Format::Share,
        wanted: |spec| spec.other_tone_at_most,
        value: Measures::other_tone_share,
        missing: "name another persona too, one with tone markers",
    },
    Threshold {
        key: "drift_at_most",
        measure: "drift on neutral text",
        bound: Bound::AtMost,
        format: Format::Number,
        wanted: |spec| spec.drift_at_most,
        value: |measures, index| Some(measures.personas[index].drift.map_or(0.0, |drift| drift.kl)),
        missing: "",
    },
    Threshold {
        key: "repetition_at_most",
        measure: "repetition",
        bound: Bound::AtMost,
        format: Format::Share,
        wanted: |spec| spec.repetition_at_most,
        value: |measures, index| Some(measures.personas[index].own.repetition),
        missing: "",
    },
    Threshold {
        key: "length_at_least",
        measure: "length by the references'",
        bound: Bound::AtLeast,
        format: Format::Number,
        wanted: |spec| spec.length_at_least,
        value: |measures, index| Some(measures.personas[index].own.lengths.ratio()),
        missing: "",
    },
    Threshold {
        key: "length_at_most",
        measure: "length by the references'",
        bound: Bound::AtMost,
        format: Format::Number,
        wanted: |spec| spec.length_at_most,
        value: |measures, index| Some(measures.personas[index].own.lengths.ratio()),
        missing: "",
    },
];

/// Checks every threshold of every persona; a persona without `[eval]` has none.
pub fn check(candidates: &[Candidate], measures: &Measures) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        if let Some(spec) = &candidate.persona.eval {
            let of_persona = |threshold| check_one(threshold, spec, index, measures);
            checks.extend(THRESHOLDS.iter().filter_map(of_persona));
        }
    }
    checks
}

/// Checks one threshold of the persona with this index; `None` if `spec` does not set it.
fn check_one(
    threshold: &Threshold,
    spec: &EvalSpec,
    index: usize,
    measures: &Measures,
) -> Option<Check> {
    let wanted = (threshold.wanted)(spec)?;
    let value = (threshold.value)(measures, index);
    Some(Check {
        persona: measures.personas[index].label.clone(),
        key: threshold.key,
        measure: threshold.measure,
        bound: threshold.bound,
        wanted,
        value,
        passed: value.is_some_and(|value| match threshold.bound {
            Bound::AtLeast => value >= wanted,
            Bound::AtMost => value <= wanted,
        }),
        format: threshold.format,
        missing: threshold.missing,
    })
}
