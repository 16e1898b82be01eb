//! A persona to evaluate, and the rows whose questions it answers.

use std::path::{Path, PathBuf};

use super::error::EvaluationError;
use dataset::{Columns, DataRow, Dataset, RowContent};
use registry::Persona;
use service::Service;
use train::TrainSettings;
use train::measures::ToneMarkers;

/// A persona to evaluate.
pub struct Candidate {
    /// The persona.
    pub persona: Persona,
    /// Its label in tables: the name, with the version if another version of it is evaluated too.
    pub label: String,
    /// The rows whose questions it answers.
    pub rows: Vec<DataRow>,
    /// The patterns of its tone; `None` if it has none.
    pub markers: Option<ToneMarkers>,
    /// Whether it is only compared with: it answers the common questions and is not measured.
    pub is_baseline: bool,
}

impl Candidate {
    /// `persona` with at most `limit` of those `rows` that have a question.
    ///
    /// # Errors
    /// A pattern of its tone is not a regular expression.
    pub fn new(
        persona: Persona,
        mut rows: Vec<DataRow>,
        limit: usize,
    ) -> Result<Candidate, EvaluationError> {
        // Plain text has no question.
        rows.retain(|row| !matches!(row.content, RowContent::Text(_)));
        rows.truncate(limit);
        let markers = match &persona.eval {
            Some(eval) if eval.any_of.is_empty() && eval.none_of.is_empty() => None,
            Some(eval) => Some(ToneMarkers::new(&eval.any_of, &eval.none_of)?),
            None => None,
        };
        Ok(Candidate {
            label: persona.name.clone(),
            persona,
            rows,
            markers,
            is_baseline: false,
        })
    }

    /// `persona` as a baseline for the others, without thresholds.
    ///
    /// # Errors
    /// As [`Candidate::new`].
    pub fn baseline(persona: Persona) -> Result<Candidate, EvaluationError> {
        let mut candidate = Candidate::new(persona, Vec::new(), 0)?;
        candidate.persona.eval = None;
        candidate.is_baseline = true;
        Ok(candidate)
    }
}

/// Reads the rows of the file at `path`, with the column names of `persona`'s training settings.
///
/// # Errors
/// The settings or the file cannot be read.
pub fn rows(path: &Path, persona: &Persona) -> Result<Vec<DataRow>, EvaluationError> {
    let columns = match &persona.train {
        Some(train) => train.settings::<TrainSettings>()?.columns,
        None => Columns::default(),
    };
    Ok(Dataset::read_as(path, &columns)?.rows)
}

/// `persona` with the `[train]` and `[eval]` tables of the persona with its name in the server's folder, if it was published without
/// them.
pub(crate) fn with_folder_settings(service: &Service, persona: &Persona) -> Persona {
    let mut persona = persona.clone();
    if let Some(in_folder) = service.catalog().folder().get(&persona.name) {
        persona.train = persona.train.or_else(|| in_folder.train.clone());
        persona.eval = persona.eval.or_else(|| in_folder.eval.clone());
    }
    persona
}

/// The path of a persona's evaluation rows, if it has a file of them.
pub(crate) fn own_rows(service: &Service, persona: &Persona) -> Option<PathBuf> {
    with_folder_settings(service, persona)
        .train
        .and_then(|train| train.eval)
}
