//! What personas are worth, on rows that training never saw: measured, and held to their thresholds. `lory eval` asks it for
//! people, a training job before it publishes, and whoever asks a server for it. Knows no terminal and no HTTP.
//!
//! Answers come from the engine, base and personas mixed in its batches, always the most probable token. The base is given
//! the persona's own system prompt, so that what differs is the adapter. Losses and drift run in the arithmetic that
//! serves, each adapter at its persona's scale.
//!
//! - `answers`: all questions, asked of everyone
//! - `measures`: what the answers, rows and adapters are worth, as plain data
//! - `gate`: the thresholds of `[eval]`
//! - `result`: all of it as it is kept

pub mod answers;
pub mod gate;
pub mod measures;
pub mod result;
pub mod results;

use std::path::Path;

use registry::Persona;
use train::TrainSettings;
use train::dataset::{Columns, DataRow, Dataset, RowContent};
use train::evaluate::ToneMarkers;

pub use measures::examples;

/// A persona under examination.
pub struct Candidate {
    pub persona: Persona,
    /// What it is called among the others: its name, with its version where another version of it is there too.
    pub called: String,
    pub rows: Vec<DataRow>,
    /// What its tone is known by; none where nobody says.
    pub markers: Option<ToneMarkers>,
    /// Whether it is there for comparison alone: it answers what all are asked, and is not measured itself.
    pub beside: bool,
}

impl Candidate {
    /// `persona` with those of `rows` that can be asked, at most `limit`.
    pub fn new(
        persona: Persona,
        mut rows: Vec<DataRow>,
        limit: usize,
    ) -> anyhow::Result<Candidate> {
        // Plain text has no question that could be asked.
        rows.retain(|row| !matches!(row.content, RowContent::Text(_)));
        rows.truncate(limit);
        let markers = match &persona.eval {
            Some(eval) if eval.any_of.is_empty() && eval.none_of.is_empty() => None,
            Some(eval) => Some(ToneMarkers::new(&eval.any_of, &eval.none_of)?),
            None => None,
        };
        Ok(Candidate {
            called: persona.name.clone(),
            persona,
            rows,
            markers,
            beside: false,
        })
    }

    /// `persona`, for others to be compared with; it has no thresholds to meet.
    pub fn beside(persona: Persona) -> anyhow::Result<Candidate> {
        let mut candidate = Candidate::new(persona, Vec::new(), 0)?;
        candidate.persona.eval = None;
        candidate.beside = true;
        Ok(candidate)
    }
}

/// The rows of the file at `path`, whose columns have the names that `persona` says.
pub fn rows(path: &Path, persona: &Persona) -> anyhow::Result<Vec<DataRow>> {
    let columns = match &persona.train {
        Some(train) => train.settings::<TrainSettings>()?.columns,
        None => Columns::default(),
    };
    Ok(Dataset::read_as(path, &columns)?.rows)
}
