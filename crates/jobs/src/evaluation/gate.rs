//! The thresholds of `[eval]` in persona.toml against what was measured.

use registry::EvalSpec;
use serde::Serialize;

use super::candidate::Candidate;
use super::measures::Measures;

/// Which side of a bound is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The measure must not be lower.
    AtLeast,
    /// The measure must not be higher.
    AtMost,
}

/// How a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Share,
    Number,
}

/// One threshold, checked.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The persona.
    pub persona: String,
    /// Its key in persona.toml.
    pub key: &'static str,
    /// What is measured, in words.
    pub measure: &'static str,
    /// The side of the threshold that passes.
    pub bound: Bound,
    /// The threshold.
    pub wanted: f64,
    /// None where it could not be measured, which fails: what is not known is not good enough to publish.
    pub value: Option<f64>,
    /// Whether the measure meets the threshold.
    pub passed: bool,
    #[serde(skip)]
    form: Form,
    #[serde(skip)]
    missing: &'static str,
}

impl Check {
    /// What was measured, in words.
    pub fn value_text(&self) -> String {
        self.value
            .map_or_else(|| "not measured".to_owned(), |value| self.text(value))
    }

    /// What is wanted, in words.
    pub fn wanted_text(&self) -> String {
        let bound = match self.bound {
            Bound::AtLeast => "at least",
            Bound::AtMost => "at most",
        };
        format!("{bound} {}", self.text(self.wanted))
    }

    /// The threshold as a line that says what was found and what is wanted.
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
        match self.form {
            Form::Share => format!("{:.1}%", value * 100.0),
            Form::Number => format!("{value:.4}"),
        }
    }
}

/// Checks every threshold of every persona; a persona without `[eval]` has none.
pub fn check(candidates: &[Candidate], measures: &Measures) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        if let Some(spec) = &candidate.persona.eval {
            checks.extend(of_persona(spec, index, measures));
        }
    }
    checks
}

fn of_persona(spec: &EvalSpec, index: usize, measures: &Measures) -> Vec<Check> {
    use Bound::{AtLeast, AtMost};
    use Form::{Number, Share};
    let persona = &measures.personas[index];
    let score = &persona.own.score;
    let ratio = Some(persona.own.lengths.ratio());
    let alone = "name another persona too, so that there is one to compare with";
    // (key, measure, bound, form, wanted, value, why there may be none)
    let all = [
        (
            "tone_at_least",
            "tone right",
            AtLeast,
            Share,
            Some(spec.tone_at_least),
            Some(score.tone_share()),
            "",
        ),
        (
            "copied_at_least",
            "identifiers right",
            AtLeast,
            Share,
            Some(spec.copied_at_least),
            Some(score.copied_share()),
            "",
        ),
        (
            "complete_at_least",
            "no identifier left out",
            AtLeast,
            Share,
            spec.complete_at_least,
            Some(score.complete_share()),
            "",
        ),
        (
            "loss_at_most",
            "validation loss",
            AtMost,
            Number,
            spec.loss_at_most,
            measures.own_loss(index),
            "",
        ),
        (
            "distinct_at_least",
            "distinctness from the nearest tone",
            AtLeast,
            Share,
            spec.distinct_at_least,
            measures.nearest(index),
            alone,
        ),
        (
            "other_tone_at_most",
            "answers in another tone",
            AtMost,
            Share,
            spec.other_tone_at_most,
            measures.other_tone(index),
            "name another persona too, one with tone markers",
        ),
        (
            "drift_at_most",
            "drift on neutral text",
            AtMost,
            Number,
            spec.drift_at_most,
            Some(persona.drift.map_or(0.0, |drift| drift.kl)),
            "",
        ),
        (
            "repetition_at_most",
            "repetition",
            AtMost,
            Share,
            spec.repetition_at_most,
            Some(persona.own.repetition),
            "",
        ),
        (
            "length_at_least",
            "length by the references'",
            AtLeast,
            Number,
            spec.length_at_least,
            ratio,
            "",
        ),
        (
            "length_at_most",
            "length by the references'",
            AtMost,
            Number,
            spec.length_at_most,
            ratio,
            "",
        ),
    ];
    all.into_iter()
        .filter_map(|(key, measure, bound, form, wanted, value, missing)| {
            let wanted = wanted?;
            Some(Check {
                persona: persona.called.clone(),
                key,
                measure,
                bound,
                wanted,
                value,
                passed: value.is_some_and(|value| match bound {
                    AtLeast => value >= wanted,
                    AtMost => value <= wanted,
                }),
                form,
                missing,
            })
        })
        .collect()
}
