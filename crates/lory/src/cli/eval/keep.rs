//! Keeps what was measured under `LORY_HOME`, where a server shows it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use base::home::Home;
use jobs::EvaluationResults;
use jobs::evaluation::answers::Answers;
use jobs::evaluation::{Candidate, summary};

/// Keeps a result; where there is no home, or it cannot be written to, that is said and nothing else.
pub(super) fn keep(mut measured: Value, candidates: &[Candidate], answers: &Answers) {
    let Ok(home) = Home::find() else {
        return;
    };
    measured["samples"] = summary::samples(candidates, answers);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let kept =
        EvaluationResults::new(&home.judgements()).keep(since.map_or(0, |s| s.as_secs()), measured);
    if let Err(error) = kept {
        eprintln!("the result is not kept for the studio: {error}");
    }
}
