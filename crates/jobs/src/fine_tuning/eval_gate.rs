//! A job's gate: its adapter asked and measured as `lory eval` does it, before anybody else can ask it; and a few of its answers,
//! for people to read.

use std::sync::Arc;

use model::YieldPoint;
use train::Learner;

use crate::background_work::BackgroundWork;
use crate::evaluation::answers::{self, Speaker};
use crate::evaluation::offline_engine;
use crate::evaluation::{Candidate, gate, measures};
use crate::fine_tuning::baselines;
use crate::fine_tuning::prepare::{held_out_rows, job_persona};
use crate::records::job::{JobRecord, Sample, ThresholdResult};
use crate::records::thresholds::Thresholds;
use crate::training::Target;
use base::progress::Progress;

/// The most rows that are asked.
const MAX_ROWS: usize = 100;
/// The answers that are kept.
const SAMPLES: usize = 3;

/// What is held against the job's thresholds, if it has any, and some answers. Takes the machine in turns, through `machine`.
pub(crate) fn check(
    queue: &BackgroundWork,
    record: &JobRecord,
    target: &Target,
    learner: &mut dyn Learner,
    machine: Arc<dyn YieldPoint>,
) -> anyhow::Result<(Vec<ThresholdResult>, Vec<Sample>)> {
    let thresholds = record.thresholds.as_ref();
    let mut persona = job_persona(queue, record, &target.out)?;
    persona.eval = thresholds.map(Thresholds::spec);
    let most = if thresholds.is_some() {
        MAX_ROWS
    } else {
        SAMPLES
    };
    let candidate = Candidate::new(persona, held_out_rows(record, target)?, most)?;
    if candidate.rows.is_empty() && thresholds.is_none() {
        return Ok((Vec::new(), Vec::new()));
    }
    anyhow::ensure!(
        !candidate.rows.is_empty(),
        "the gate has no rows to ask: none are held out, or they are plain texts; give a validation_file with questions"
    );
    let mut candidates = vec![candidate];
    if let Some(thresholds) = thresholds {
        candidates.extend(baselines::candidates(queue, record, thresholds)?);
    }
    let (mut questions, common) = answers::questions(&candidates);
    // What the base would have said is for people to compare.
    questions.retain(|question| question.to != Speaker::Base);
    let mut progress = Progress::hidden();
    let answers = offline_engine::answers(
        queue,
        &candidates,
        &questions,
        common,
        Arc::clone(&machine),
        &mut progress,
    )?;
    let samples = answers.all.iter().take(SAMPLES).map(|answered| {
        let row = &candidates[0].rows[answered.question.row];
        Sample {
            question: row.input(),
            reference: row.output().to_owned(),
            answer: answered.text.clone(),
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
        measures::Extent::Thresholds,
        learner,
        Some(&*machine),
        &mut progress,
    )?;
    let checks = gate::check(&candidates, &measures);
    let checked = checks.into_iter().map(|check| ThresholdResult {
        key: check.key.to_owned(),
        value: check.value,
        wanted: check.wanted,
        passed: check.passed,
        said: check.line(),
    });
    Ok((checked.collect(), samples))
}
