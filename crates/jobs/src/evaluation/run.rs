//! Runs one evaluation, from its rows to its result, on an offline engine over the weights that serve.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use anyhow::Context as _;
use base::progress::Progress;
use registry::spec;

use super::candidate::{self, Candidate, own_rows, with_folder_settings};
use super::{answers, gate, measures, offline_engine, summary};
use crate::background_work::BackgroundWork;
use crate::files;
use crate::listing::Viewer;
use crate::record_file::now;
use crate::records::evaluation::Evaluation;
use crate::records::failure::Failure;
use crate::training;
use crate::yield_point::JobYieldPoint;

/// Measures; the id under which the result is kept. `done` counts parts.
pub(crate) fn run(
    queue: &BackgroundWork,
    evaluation: &Evaluation,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> Result<String, Failure> {
    let failed = |code: &str, message: String| Failure {
        code: code.to_owned(),
        message,
        param: None,
    };
    let attempt = || attempt(queue, evaluation, stop, done);
    match catch_unwind(AssertUnwindSafe(attempt)) {
        Ok(Ok(kept)) => Ok(kept),
        Ok(Err(error)) => Err(failed("evaluation_failed", format!("{error:#}"))),
        Err(_) => {
            let message = "the evaluation broke off; the log says why";
            Err(failed("server_error", message.to_owned()))
        }
    }
}

fn attempt(
    queue: &BackgroundWork,
    evaluation: &Evaluation,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> anyhow::Result<String> {
    let candidates = candidates(queue, evaluation)?;
    let (questions, common) = answers::questions(&candidates);
    queue.parts_of_evaluation(
        &evaluation.id,
        questions.len() + measures::parts(&candidates),
    );
    let machine = JobYieldPoint::new(&queue.service, stop);
    let mut progress = Progress::counted(Arc::clone(done));
    let answers = offline_engine::answers(
        queue,
        &candidates,
        &questions,
        common,
        machine.clone(),
        &mut progress,
    )?;
    let base = queue.service.base();
    let mut learner = training::learner(base).yielding(machine.clone());
    let measures = measures::measure(
        base,
        &candidates,
        &answers,
        measures::Extent::All,
        &mut learner,
        Some(&*machine),
        &mut progress,
    )?;
    let checks = gate::check(&candidates, &measures);
    let mut measured = summary::result(&measures, &checks);
    measured["samples"] = summary::samples(&candidates, &answers);
    Ok(queue.results()?.keep(now(), measured)?)
}

/// Everyone who is measured, with the rows that they are asked.
fn candidates(queue: &BackgroundWork, evaluation: &Evaluation) -> anyhow::Result<Vec<Candidate>> {
    let shared = match &evaluation.file {
        None => None,
        Some(id) => {
            let file = queue.files.find(&Viewer::everybody(), id, "file")?;
            let scan = files::scan(&queue.files.path(&file), false);
            let rows = scan.and_then(|scan| scan.whole());
            let rows = rows.map_err(|error| {
                let path = queue.files.path(&file);
                anyhow::anyhow!(files::called(&error, &path, &file.filename))
            })?;
            Some(rows.rows)
        }
    };
    let personas = queue.service.personas();
    let mut candidates: Vec<Candidate> = Vec::new();
    for pinned in &evaluation.personas {
        let parts = spec::parse(pinned)?;
        let part = parts.first().context("nobody is named")?;
        let persona = with_folder_settings(&queue.service, personas.find(part)?);
        let rows = match &shared {
            Some(rows) => rows.clone(),
            None => {
                let path = own_rows(&queue.service, &persona);
                let path = path.with_context(|| format!("{pinned} has no evaluation rows"))?;
                candidate::rows(&path, &persona)?
            }
        };
        let mut candidate = Candidate::new(persona, rows, evaluation.max_rows)?;
        anyhow::ensure!(
            !candidate.rows.is_empty(),
            "there is nothing to ask {pinned}: its rows are plain texts; give rows with questions"
        );
        if candidates
            .iter()
            .any(|other| other.persona.name == part.name)
        {
            for other in &mut candidates {
                if other.persona.name == part.name {
                    other.called = format!("{}@{}", part.name, other.persona.version);
                }
            }
            candidate.called.clone_from(pinned);
        }
        candidates.push(candidate);
    }
    Ok(candidates)
}
