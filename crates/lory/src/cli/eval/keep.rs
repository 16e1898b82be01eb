//! Keeps what was measured under `LORY_HOME`, where a server shows it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::evaluation::Candidate;
use crate::evaluation::answers::{Answers, Question, Speaker};
use crate::home::Home;
use crate::judgements::Evaluations;

/// The most questions whose answers are kept.
const MAX_SAMPLES: usize = 24;

/// Keeps a result; where there is no home, or it cannot be written to, that is said and nothing else.
pub(super) fn keep(mut result: Value, candidates: &[Candidate], answers: &Answers) {
    let Ok(home) = Home::find() else {
        return;
    };
    result["samples"] = samples(candidates, answers);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let kept = Evaluations::new(&home.judgements()).keep(since.map_or(0, |s| s.as_secs()), result);
    if let Err(error) = kept {
        eprintln!("the result is not kept for the studio: {error}");
    }
}

/// Questions that all personas answered, with what each said; of one persona alone, its own.
fn samples(candidates: &[Candidate], answers: &Answers) -> Value {
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
            Some((candidate.persona.name.clone(), json!(text.trim())))
        });
        json!({
            "question": asked.input(),
            "base": base.map(|answered| answered.text.trim()),
            "answers": said.collect::<Map<_, _>>(),
        })
    };
    places.iter().take(MAX_SAMPLES).map(one).collect()
}
