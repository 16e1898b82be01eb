//! What personas are worth, on rows that training never saw: measured, and held to their thresholds. `lory eval` asks it for
//! people, and a training job before it publishes. Knows no terminal and no HTTP.
//!
//! Answers come from the engine, base and personas mixed in its batches, always the most probable token. The base is given
//! the persona's own system prompt, so that what differs is the adapter. Losses and drift run in the arithmetic that
//! serves, each adapter at its persona's scale.
//!
//! - `answers`: all questions, asked of everyone
//! - `measures`: what the answers, rows and adapters are worth, as plain data
//! - `gate`: the thresholds of `[eval]`

pub(crate) mod answers;
pub(crate) mod gate;
pub(crate) mod measures;

use registry::Persona;
use train::dataset::{Content, Row};
use train::evaluate::Markers;

pub(crate) use measures::examples;

/// A persona under examination.
pub(crate) struct Candidate {
    pub persona: Persona,
    pub rows: Vec<Row>,
    /// What its tone is known by; none where nobody says.
    pub markers: Option<Markers>,
}

impl Candidate {
    /// `persona` with those of `rows` that can be asked, at most `limit`.
    pub fn new(persona: Persona, mut rows: Vec<Row>, limit: usize) -> anyhow::Result<Candidate> {
        // Plain text has no question that could be asked.
        rows.retain(|row| !matches!(row.content, Content::Text(_)));
        rows.truncate(limit);
        let markers = match &persona.eval {
            Some(eval) if eval.any_of.is_empty() && eval.none_of.is_empty() => None,
            Some(eval) => Some(Markers::new(&eval.any_of, &eval.none_of)?),
            None => None,
        };
        Ok(Candidate {
            persona,
            rows,
            markers,
        })
    }
}
