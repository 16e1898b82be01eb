//! A job's gate: its adapter asked and measured as `lory eval` does it, before anybody else can ask it; and a few of its answers,
//! for people to read.

use std::sync::Arc;

use engine::EngineConfig;
use registry::{AdapterRef, Persona, Personas};
use train::dataset::{Row, held_out};
use train::{Gate, Learner};

use super::record::{Checked, Record, Sample};
use super::run::settings_of;
use super::thresholds::Thresholds;
use super::{Queue, files};
use crate::catalog::Catalog;
use crate::evaluation::answers::{self, Speaker};
use crate::evaluation::{Candidate, gate, measures};
use crate::progress::Progress;
use crate::runner::Turns;
use crate::service::{Service, Settings};
use crate::training::Target;

/// The most rows that are asked.
const MAX_ROWS: usize = 100;
/// The answers that are kept.
const SAMPLES: usize = 3;
/// Questions that are asked at once.
const AT_ONCE: usize = 8;
/// Memory for the keys and values of those.
const KV_MEMORY: u64 = 128 << 20;
/// The least memory for the adapter.
const ADAPTER_MEMORY: u64 = 256 << 20;

/// What is held against the job's thresholds, if it has any, and some answers. Takes the machine in turns, through `machine`.
pub(super) fn examine(
    queue: &Queue,
    record: &Record,
    target: &Target,
    learner: &mut dyn Learner,
    machine: Arc<dyn Gate>,
) -> anyhow::Result<(Vec<Checked>, Vec<Sample>)> {
    let thresholds = record.thresholds.as_ref();
    let personas = queue.service.personas();
    let there = personas.get(&record.persona);
    let settings = settings_of(record, there);
    let persona = Persona {
        name: record.persona.clone(),
        version: 1,
        description: settings.description,
        system_prompt: settings.system_prompt,
        variables: settings.variables,
        sampling: settings.sampling,
        max_new_tokens: settings.max_new_tokens,
        stop: settings.stop,
        scale: settings.scale,
        adapter: AdapterRef::in_folder(&target.out)?,
        train: None,
        eval: thresholds.map(Thresholds::spec),
        dir: target.out.clone(),
        published: None,
    };
    let most = if thresholds.is_some() {
        MAX_ROWS
    } else {
        SAMPLES
    };
    let candidate = Candidate::new(persona.clone(), rows(record, target)?, most)?;
    if candidate.rows.is_empty() && thresholds.is_none() {
        return Ok((Vec::new(), Vec::new()));
    }
    anyhow::ensure!(
        !candidate.rows.is_empty(),
        "the gate has no rows to ask: none are held out, or they are plain texts; give a validation_file with questions"
    );
    let candidates = [candidate];
    let bytes = persona.adapter.as_ref().map_or(0, |adapter| adapter.bytes);
    let settings = Settings {
        base_name: Some(queue.service.base().name.clone()),
        kv_memory: KV_MEMORY,
        turns: Turns::Lent(Arc::clone(&machine)),
        engine: EngineConfig {
            max_batch: AT_ONCE,
            max_queue: AT_ONCE,
            adapter_memory: ADAPTER_MEMORY.max(4 * bytes),
            ..EngineConfig::default()
        },
        ..Settings::default()
    };
    // An engine of its own on the same weights, so that nobody else can ask an adapter that is not published.
    let catalog = Catalog::from(Personas::new([persona]));
    let service = Service::start(Arc::clone(queue.service.base()), catalog, &settings)?;
    let (mut questions, common) = answers::questions(&candidates);
    // What the base would have said is for people to compare.
    questions.retain(|question| question.to != Speaker::Base);
    let mut progress = Progress::hidden();
    let answers = answers::answer(
        &service,
        &candidates,
        &questions,
        common,
        AT_ONCE,
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
        service.engine().shutdown();
        return Ok((Vec::new(), samples));
    }
    let base = service.base();
    let measures = measures::measure(
        base,
        &candidates,
        &answers,
        learner,
        Some(&*machine),
        &mut progress,
    )?;
    service.engine().shutdown();
    let checks = gate::check(&candidates, &measures);
    let checked = checks.into_iter().map(|check| Checked {
        key: check.key.to_owned(),
        value: check.value,
        wanted: check.wanted,
        passed: check.passed,
        said: check.line(),
    });
    Ok((checked.collect(), samples))
}

/// The rows that training did not see: those of the validation file, or those that were held out.
fn rows(record: &Record, target: &Target) -> anyhow::Result<Vec<Row>> {
    let pairs = record.settings.preference.is_some();
    if let Some(path) = &target.eval {
        return Ok(files::scan(path, pairs)?.whole()?.rows);
    }
    let rows = files::scan(&target.data, pairs)?.whole()?.rows;
    let sides = held_out(&rows, record.settings.validation_fraction);
    let rows = rows.into_iter().zip(sides);
    Ok(rows
        .filter(|(_, held_out)| *held_out)
        .map(|(row, _)| row)
        .collect())
}
