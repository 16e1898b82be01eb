//! All that was measured as one JSON object: what is printed, and what is kept.

use serde_json::{Map, Value, json};

use super::answers::{Answers, Question, Speaker};
use super::candidate::Candidate;
use super::gate::Check;
use super::measures::Measures;

/// The most questions whose answers are kept.
const MAX_SAMPLES: usize = 24;

/// The measures, the thresholds, and those that were missed in words.
pub fn result(measures: &Measures, checks: &[Check]) -> Value {
    let mut all = measures.as_json();
    all["gate"] = json!(checks);
    all["missed"] = json!(missed(checks));
    all
}

/// The thresholds alone.
pub fn gate(checks: &[Check]) -> Value {
    json!({"gate": checks, "missed": missed(checks)})
}

/// The thresholds that were missed, a line each.
pub fn missed(checks: &[Check]) -> Vec<String> {
    let missed = checks.iter().filter(|check| !check.passed);
    missed.map(Check::line).collect()
}

/// Questions that all personas answered, with what each said; of one persona alone, its own.
pub fn samples(candidates: &[Candidate], answers: &Answers) -> Value {
    let own = (0..candidates.first().map_or(0, |one| one.rows.len())).map(|row| (0, row));
    let places: Vec<(usize, usize)> = match candidates.len() {
        1 => own.collect(),
        _ => answers.common.clone(),
    };
    let one = |&(of, row): &(usize, usize)| {
        let asked = &candidates[of].rows[row];
        let base = answers.get(Question {
            of,
            row,
            to: Speaker::Base,
        });
        let said = candidates.iter().enumerate().filter_map(|(at, candidate)| {
            let text = answers.of_persona(candidates, at, (of, row))?;
            Some((candidate.called.clone(), json!(text.trim())))
        });
        json!({
            "question": asked.input(),
            "base": base.map(|answered| answered.text.trim()),
            "answers": said.collect::<Map<_, _>>(),
        })
    };
    places.iter().take(MAX_SAMPLES).map(one).collect()
}
