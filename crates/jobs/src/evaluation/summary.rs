//! The result of an evaluation as one JSON object, which is printed and stored.

use serde_json::{Map, Value, json};

use super::answers::{Answers, Question, Responder};
use super::candidate::Candidate;
use super::gate::Check;
use super::measures::Measures;

/// The most questions whose answers are stored.
const MAX_SAMPLES: usize = 24;

/// The measures, the threshold checks, and a message for each missed threshold.
pub fn result(measures: &Measures, checks: &[Check]) -> Value {
    let mut all = measures.as_json();
    all["gate"] = json!(checks);
    all["missed"] = json!(missed(checks));
    all
}

/// The threshold checks only.
pub fn gate(checks: &[Check]) -> Value {
    json!({"gate": checks, "missed": missed(checks)})
}

/// A message for each missed threshold.
pub fn missed(checks: &[Check]) -> Vec<String> {
    let missed = checks.iter().filter(|check| !check.passed);
    missed.map(Check::line).collect()
}

/// `result` without questions and answers; the measures stay.
pub(crate) fn without_samples(mut result: Value) -> Value {
    result["samples"] = json!([]);
    result
}

/// The common questions with the answer of each persona; for a single persona, its own rows.
pub fn samples(candidates: &[Candidate], answers: &Answers) -> Value {
    let own = (0..candidates.first().map_or(0, |one| one.rows.len())).map(|row| (0, row));
    let places: Vec<(usize, usize)> = match candidates.len() {
        1 => own.collect(),
        _ => answers.common.clone(),
    };
    let one = |&(of, row): &(usize, usize)| {
        let question = &candidates[of].rows[row];
        let base = answers.get(Question {
            candidate: of,
            row,
            responder: Responder::Base,
        });
        let texts = candidates
            .iter()
            .enumerate()
            .filter_map(|(persona, candidate)| {
                let text = answers.of_persona(candidates, persona, (of, row))?;
                Some((candidate.label.clone(), json!(text.trim())))
            });
        json!({
            "question": question.input(),
            "base": base.map(|answered| answered.text.trim()),
            "answers": texts.collect::<Map<_, _>>(),
        })
    };
    places.iter().take(MAX_SAMPLES).map(one).collect()
}
