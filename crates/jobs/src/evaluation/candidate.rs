//! A persona to evaluate, and the rows that it is asked.

use std::path::{Path, PathBuf};

use registry::Persona;
use service::Service;
use train::TrainSettings;
use train::dataset::{Columns, DataRow, Dataset, RowContent};
use train::measures::ToneMarkers;

/// A persona under examination.
pub struct Candidate {
    /// The persona.
    pub persona: Persona,
    /// What it is called among the others: its name, with its version where another version of it is there too.
    pub called: String,
    /// The rows whose questions it answers.
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

/// `persona` with what is said of its name in the server's folder and was not published with it: how it is trained, and what its
/// answers are known by.
pub(crate) fn with_folder_settings(service: &Service, persona: &Persona) -> Persona {
    let mut persona = persona.clone();
    if let Some(in_folder) = service.catalog().folder().get(&persona.name) {
        persona.train = persona.train.or_else(|| in_folder.train.clone());
        persona.eval = persona.eval.or_else(|| in_folder.eval.clone());
    }
    persona
}

/// The file of a persona's own evaluation rows, if it has one.
pub(crate) fn own_rows(service: &Service, persona: &Persona) -> Option<PathBuf> {
    with_folder_settings(service, persona)
        .train
        .and_then(|train| train.eval)
}
