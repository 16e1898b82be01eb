//! The eval gate of a job: evaluates its adapter as `lory eval` does, before anyone can use it, and picks a few sample answers.

use std::sync::Arc;

use dataset::stop::NEVER;
use model::YieldPoint;
use train::Learner;

use crate::evaluation::answers::{self, Answered, Responder};
use crate::evaluation::offline_engine;
use crate::evaluation::{Candidate, gate, measures};
use crate::fine_tuning::baselines;
use crate::fine_tuning::error::RunError;
use crate::fine_tuning::prepare::{held_out_questions, job_persona};
use crate::jobs_state::JobsState;
use crate::records::job::{JobRecord, Sample, ThresholdResult};
use crate::records::thresholds::Thresholds;
use crate::training::Target;
use base::progress::Progress;

/// The most rows that are evaluated.
const MAX_ROWS: usize = 100;
/// The most bytes of a stored question or answer: records stay in memory.
const MAX_SAMPLE_BYTES: usize = 4096;
/// The number of stored sample answers.
const SAMPLES: usize = 3;

/// Checks the job's thresholds, if it has any, and samples some answers. Yields compute at `yield_point`.
///
/// # Errors
/// The adapter or the rows cannot be read, there are thresholds and no questions, or the run was stopped.
pub(crate) fn check(
    queue: &JobsState,
    record: &JobRecord,
    target: &Target,
    learner: &mut dyn Learner,
    yield_point: Arc<dyn YieldPoint>,
) -> Result<(Vec<ThresholdResult>, Vec<Sample>), RunError> {
    let thresholds = record.thresholds.as_ref();
    let mut persona = job_persona(queue, record, &target.out)?;
    persona.eval = thresholds.map(Thresholds::spec);
    let limit = if thresholds.is_some() {
        MAX_ROWS
    } else {
        SAMPLES
    };
    let rows = held_out_questions(queue, record, limit, &NEVER)?;
    let candidate = Candidate::new(persona, rows, limit)?;
    if candidate.rows.is_empty() && thresholds.is_none() {
        return Ok((Vec::new(), Vec::new()));
    }
    if candidate.rows.is_empty() {
        return Err(RunError::NoGateQuestions);
    }
    let mut candidates = vec![candidate];
    if let Some(thresholds) = thresholds {
        candidates.extend(baselines::candidates(queue, record, thresholds)?);
    }
    let (mut questions, common) = answers::questions(&candidates);
    // The gate does not need the base's answers.
    questions.retain(|question| question.responder != Responder::Base);
    let mut progress = Progress::hidden();
    let answers = offline_engine::answers(
        queue,
        &candidates,
        &questions,
        common,
        Arc::clone(&yield_point),
        &mut progress,
    )?;
    // Baselines answer some of the rows, too, and the job's owner may not use each of them.
    let own = |answered: &&Answered| answered.question.responder == Responder::Persona(0);
    let samples = answers
        .all
        .iter()
        .filter(own)
        .take(SAMPLES)
        .map(|answered| {
            let row = &candidates[0].rows[answered.question.row];
            Sample {
                question: shortened(&row.input()),
                reference: shortened(row.output()),
                answer: shortened(&answered.text),
            }
        });
    let samples = samples.collect();
    if thresholds.is_none() {
        return Ok((Vec::new(), samples));
    }
    let measures = measures::measure(
        queue.service.base(),
        &candidates,
        &answers,
        measures::MeasureScope::Thresholds,
        learner,
        Some(&yield_point),
        &mut progress,
    )?;
    let checks = gate::check(&candidates, &measures);
    let results = checks.into_iter().map(|check| ThresholdResult {
        key: check.key.to_owned(),
        value: check.value,
        wanted: check.wanted,
        passed: check.passed,
        message: check.line(),
    });
    Ok((results.collect(), samples))
}

/// The beginning of `text`, up to [`MAX_SAMPLE_BYTES`].
fn shortened(text: &str) -> String {
    let mut end = text.len().min(MAX_SAMPLE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match end == text.len() {
        true => text.to_owned(),
        false => format!("{}…", &text[..end]),
    }
}
