//! Saves results in `LORY_HOME`, where the studio shows them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use base::home::Home;
use jobs::EvaluationResults;
use jobs::evaluation::answers::Answers;
use jobs::evaluation::{Candidate, summary};

/// Saves a result. Without a home folder it does nothing; an error is printed and does not fail the command.
pub(crate) fn save(mut measured: Value, candidates: &[Candidate], answers: &Answers) {
    let Ok(home) = Home::find() else {
        return;
    };
    measured["samples"] = summary::samples(candidates, answers);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let saved =
        EvaluationResults::new(&home.results()).store(since.map_or(0, |s| s.as_secs()), measured);
    if let Err(error) = saved {
        eprintln!("the result could not be saved for the studio: {error}");
    }
}
