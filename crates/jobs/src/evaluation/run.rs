//! Runs one requested evaluation, from its rows to its stored result, on the offline engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use base::progress::Progress;
use dataset::{Columns, DataRow, RowContent, read_first};
use registry::spec;

use super::candidate::{self, Candidate, own_rows, with_folder_settings};
use super::error::EvaluationError;
use super::{answers, gate, measures, offline_engine, summary};
use crate::files;
use crate::jobs_state::JobsState;
use crate::listing::Viewer;
use crate::record_file::now;
use crate::records::client_message::ClientMessage;
use crate::records::evaluation::Evaluation;
use crate::records::failure::Failure;
use crate::training;
use crate::yield_point::job_yield_point;

/// Runs `evaluation` and returns the id of its stored result. `done` counts finished parts.
pub(crate) fn run(
    queue: &JobsState,
    evaluation: &Evaluation,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> Result<String, Failure> {
    let failed = |code: &str, message: ClientMessage| Failure {
        code: code.to_owned(),
        message,
        param: None,
    };
    let evaluate = || evaluate(queue, evaluation, stop, done);
    match catch_unwind(AssertUnwindSafe(evaluate)) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => {
            let message = client_message(queue, evaluation, &error);
            let code = match error {
                EvaluationError::Memory(_) => "out_of_memory",
                _ => "evaluation_failed",
            };
            Err(failed(code, message))
        }
        Err(_) => {
            let message = "the evaluation panicked; see the server's log";
            Err(failed("server_error", message.into()))
        }
    }
}

/// The message of `error` with the client's name of the file, and without the paths of the personas' own rows.
fn client_message(
    queue: &JobsState,
    evaluation: &Evaluation,
    error: &EvaluationError,
) -> ClientMessage {
    tracing::warn!("evaluation {}: {error}", evaluation.id);
    let mut message = error.client_message();
    let file = evaluation.file.iter().flat_map(|id| {
        let found = queue.files.find(&Viewer::everybody(), id, "file");
        found.map(|file| (queue.files.path(&file), file.filename))
    });
    for (path, name) in file {
        message = message.replace(&path.display().to_string(), &name);
    }
    let personas = queue.service.personas();
    for pinned in &evaluation.personas {
        let part = spec::parse(pinned)
            .ok()
            .and_then(|parts| parts.into_iter().next());
        let persona = part.and_then(|part| personas.find(&part).ok());
        if let Some(path) = persona.and_then(|persona| own_rows(&queue.service, persona)) {
            let named = format!("the evaluation rows of {pinned}");
            message = message.replace(&path.display().to_string(), &named);
        }
    }
    queue.client_message(&message)
}

fn evaluate(
    queue: &JobsState,
    evaluation: &Evaluation,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> Result<String, EvaluationError> {
    let candidates = candidates(queue, evaluation, stop)?;
    let adapters = candidates.iter().map(|one| one.persona.adapter.as_ref());
    let file_bytes: u64 = adapters.flatten().map(|adapter| adapter.bytes).sum();
    let _memory = queue.train_memory.take_for_evaluation(file_bytes)?;
    let (questions, common) = answers::questions(&candidates);
    queue.set_total_parts(
        &evaluation.id,
        questions.len() + measures::parts(&candidates),
    );
    let yield_point = job_yield_point(&queue.service, stop);
    let mut progress = Progress::counted(Arc::clone(done));
    let answers = offline_engine::answers(
        queue,
        &candidates,
        &questions,
        common,
        yield_point.clone(),
        &mut progress,
    )?;
    let base = queue.service.base();
    let mut learner = training::learner(base).yielding(yield_point.clone());
    let measures = measures::measure(
        base,
        &candidates,
        &answers,
        measures::MeasureScope::All,
        &mut learner,
        Some(&yield_point),
        &mut progress,
    )?;
    let checks = gate::check(&candidates, &measures);
    let mut measured = summary::result(&measures, &checks);
    measured["samples"] = summary::samples(&candidates, &answers);
    let owner = evaluation.owner.as_deref();
    Ok(queue.results()?.store_of(owner, now(), measured)?)
}

/// The personas to measure, with their rows.
fn candidates(
    queue: &JobsState,
    evaluation: &Evaluation,
    stop: &AtomicBool,
) -> Result<Vec<Candidate>, EvaluationError> {
    let shared = match &evaluation.file {
        None => None,
        Some(id) => {
            let file = queue.files.find(&Viewer::everybody(), id, "file")?;
            let path = queue.files.path(&file);
            let has_question = |row: &DataRow| !matches!(row.content, RowContent::Text(_));
            let columns = Columns::default();
            let rows = read_first(&path, &columns, evaluation.max_rows, stop, has_question);
            let rows = rows.map_err(|error| {
                EvaluationError::Rows(files::with_client_name(&error, &path, &file.filename))
            })?;
            Some(rows)
        }
    };
    let personas = queue.service.personas();
    let mut candidates: Vec<Candidate> = Vec::new();
    for pinned in &evaluation.personas {
        let parts = spec::parse(pinned)?;
        let Some(part) = parts.first() else {
            continue;
        };
        let persona = with_folder_settings(&queue.service, personas.find(part)?);
        let rows = match &shared {
            Some(rows) => rows.clone(),
            None => {
                let path = own_rows(&queue.service, &persona);
                let path = path.ok_or_else(|| EvaluationError::NoRows {
                    persona: pinned.clone(),
                })?;
                candidate::rows(&path, &persona)?
            }
        };
        let mut candidate = Candidate::new(persona, rows, evaluation.max_rows)?;
        if candidate.rows.is_empty() {
            return Err(EvaluationError::NoQuestions {
                persona: pinned.clone(),
            });
        }
        if candidates
            .iter()
            .any(|other| other.persona.name == part.name)
        {
            for other in &mut candidates {
                if other.persona.name == part.name {
                    other.label = format!("{}@{}", part.name, other.persona.version);
                }
            }
            candidate.label.clone_from(pinned);
        }
        candidates.push(candidate);
    }
    Ok(candidates)
}
