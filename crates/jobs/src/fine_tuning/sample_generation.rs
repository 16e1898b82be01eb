//! Samples answers while a job trains, so that people see its progress: before the first step, after validations, and at the end.
//! Sampling does not change the run's numbers; an error here becomes an event.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dataset::{DataRow, RowContent, RowLocation};
use formats::atomic_file::AtomicFolder;
use formats::disk;
use formats::peft::Dtype;
use formats::tokenizer::Special;
use model::YieldPoint;
use train::TrainTask;
use train::export::{Provenance, peft_adapter};
use train::progress::{RunPlan, Snapshot};
use train::trainer::TrainedAdapter;

use crate::error::JobError;
use crate::evaluation::Candidate;
use crate::evaluation::answers::{Question, Responder};
use crate::evaluation::offline_engine;
use crate::fine_tuning::error::RunError;
use crate::fine_tuning::prepare::{STATE, held_out_questions, job_persona};
use crate::fine_tuning::samples::{SampledAnswer, Samples};
use crate::jobs_state::JobsState;
use crate::records::job::JobRecord;
use base::Base;
use base::progress::Progress;

/// The most questions of a job.
pub(crate) const MAX_PROMPTS: usize = 4;
/// The longest question, in bytes.
pub(crate) const MAX_PROMPT_BYTES: usize = 4096;
/// The number of questions from held-out rows, if the client gives none.
const FROM_ROWS: usize = 3;
/// The most tokens of an answer.
const MAX_NEW_TOKENS: usize = 64;
/// A run is split into this many parts, and samples after validations at most once in each.
const PARTS: u64 = 16;

/// Samples answers from the adapter of one run.
pub(crate) struct SampleGenerator<'q> {
    queue: &'q JobsState,
    record: &'q JobRecord,
    rows: Vec<DataRow>,
    samples: Samples,
    /// The adapter's metadata, with empty parameters.
    template: TrainedAdapter,
    provenance: Provenance,
    yield_point: Arc<dyn YieldPoint>,
    stop: Arc<AtomicBool>,
    schedule: SampleSchedule,
}

/// The steps after which a run samples.
#[derive(Debug, Default)]
struct SampleSchedule {
    /// Steps of the run.
    steps: u64,
    /// Steps after which it has sampled.
    sampled: BTreeSet<u64>,
    /// The last step after which it was validated.
    validated: Option<u64>,
}

impl SampleSchedule {
    /// Whether it samples after `step`: before the first step, after the first validation in each part of the run, and at the end.
    fn is_due(&self, step: u64, done: bool) -> bool {
        if self.sampled.contains(&step) {
            return false;
        }
        let part = |step: u64| step.saturating_mul(PARTS) / self.steps.max(1);
        let last = self.sampled.last().map_or(0, |last| part(*last));
        step == 0 || done || (self.validated == Some(step) && part(step) > last)
    }
}

impl<'q> SampleGenerator<'q> {
    /// A generator with the questions of `record`, or else those of the first held-out rows; `None` if there are no questions.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub fn new(
        queue: &'q JobsState,
        record: &'q JobRecord,
        task: &TrainTask,
        yield_point: Arc<dyn YieldPoint>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Option<SampleGenerator<'q>>, RunError> {
        let rows = match &record.sample_prompts {
            Some(prompts) => prompts.iter().map(|prompt| row_of(prompt)).collect(),
            None => held_out_questions(queue, record, FROM_ROWS, stop)?,
        };
        if rows.is_empty() {
            return Ok(None);
        }
        let base = queue.service.base();
        Ok(Some(SampleGenerator {
            queue,
            record,
            rows,
            samples: Samples::of(&queue.job_folder(&record.id)),
            template: TrainedAdapter {
                name: task.name.clone(),
                settings: task.settings.clone(),
                params: train::LoraParams::default(),
                best: None,
                steps: 0,
                stopped_early: false,
                initial_adapter: task.initial_adapter.clone(),
                metrics: String::new(),
            },
            provenance: Provenance {
                base_name: base.name.clone(),
                // An adapter that records another base, or an empty hash, is refused.
                base_hash: base.fingerprint.sha256().unwrap_or_default().to_owned(),
                tokenizer_hash: base.tokenizer.hash().to_owned(),
                template_hash: base.template.hash(),
                ..Provenance::default()
            },
            yield_point,
            stop: Arc::clone(stop),
            schedule: SampleSchedule::default(),
        }))
    }

    /// Called when the run starts, or continues from the step `from`. Answers after that step will be sampled again.
    pub fn started(&mut self, plan: &RunPlan, from: u64) -> Result<(), JobError> {
        self.samples.truncate_after(from)?;
        let samples = self.samples.all()?;
        // A process that was killed between a validation and its samples left the validation in the event log: it is sampled now.
        let mut validated = None;
        self.queue.event_log(&self.record.id).for_each(|event| {
            if let Some(data) = event.data.filter(|data| data.full_valid_loss.is_some()) {
                validated = validated.max(Some(data.step));
            }
        })?;
        self.schedule = SampleSchedule {
            steps: plan.steps,
            sampled: samples.iter().map(|sample| sample.step).collect(),
            validated,
        };
        Ok(())
    }

    /// Called when the adapter was validated after `step`.
    pub fn validated(&mut self, step: u64) {
        self.schedule.validated = Some(step);
    }

    /// Whether the adapter of `snapshot` is to be sampled.
    pub fn is_due(&self, snapshot: &Snapshot<'_>) -> bool {
        self.schedule.is_due(snapshot.step, snapshot.done)
    }

    /// Samples the adapter of `snapshot` and stores the answers. If it is stopped on the way, it stores none, and the next process samples.
    pub fn sample(&mut self, snapshot: &Snapshot<'_>) -> Result<(), RunError> {
        self.schedule.sampled.insert(snapshot.step);
        match self.answers(snapshot) {
            Err(_) if self.stop.load(Ordering::SeqCst) => Ok(()),
            answers => Ok(self.samples.add(answers?)?),
        }
    }

    fn answers(&self, snapshot: &Snapshot<'_>) -> Result<Vec<SampledAnswer>, RunError> {
        // A job trains one adapter.
        let params = snapshot.adapters.first().ok_or(RunError::NoAdapter)?;
        let trained = TrainedAdapter {
            params: params.clone(),
            steps: snapshot.step,
            ..self.template.clone()
        };
        let adapter = peft_adapter(&trained, &self.provenance)?;
        // In the state's folder, so that leftovers of a killed process are removed with it.
        let state = self.queue.job_folder(&self.record.id).join(STATE);
        disk::create_missing_folder(&state).map_err(JobError::io(&state))?;
        let folder = AtomicFolder::create_in(&state).map_err(JobError::io(&state))?;
        // In the precision that is published.
        adapter.write(folder.path(), Dtype::BF16, "")?;
        let mut persona = job_persona(self.queue, self.record, folder.path())?;
        let most = persona.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
        persona.max_new_tokens = Some(most.min(MAX_NEW_TOKENS));
        let candidates = [Candidate::new(persona, self.rows.clone(), MAX_PROMPTS)?];
        let questions: Vec<Question> = (0..candidates[0].rows.len())
            .map(|row| Question {
                candidate: 0,
                row,
                responder: Responder::Persona(0),
            })
            .collect();
        let yield_point = self.yield_point.clone();
        let answers = offline_engine::answers(
            self.queue,
            &candidates,
            &questions,
            Vec::new(),
            yield_point,
            &mut Progress::hidden(),
        )?;
        let samples = answers.all.into_iter().map(|answered| SampledAnswer {
            step: snapshot.step,
            prompt: candidates[0].rows[answered.question.row].input(),
            answer: answered.text,
        });
        Ok(samples.collect())
    }
}

/// A client's question as a row with an empty answer.
fn row_of(prompt: &str) -> DataRow {
    let location = RowLocation {
        file: "sample_prompts".into(),
        line: 1,
    };
    let content = RowContent::Completion {
        prompt: prompt.to_owned(),
        completion: String::new(),
    };
    DataRow::new(location, content)
}

/// Checks a client's questions against their limits.
pub(crate) fn check(prompts: &[String], base: &Base) -> Result<(), JobError> {
    if prompts.len() > MAX_PROMPTS {
        let message = format!("has {} texts; give at most {MAX_PROMPTS}", prompts.len());
        return Err(JobError::invalid("sample_prompts", message));
    }
    let room = base
        .model
        .config()
        .context_length
        .saturating_sub(MAX_NEW_TOKENS);
    for (index, prompt) in prompts.iter().enumerate() {
        let refuse = |message: String| {
            Err(JobError::invalid(
                format!("sample_prompts[{index}]"),
                message,
            ))
        };
        if prompt.trim().is_empty() {
            return refuse("is empty; give a question, or leave it out".to_owned());
        }
        let bytes = prompt.len();
        if bytes > MAX_PROMPT_BYTES {
            return refuse(format!(
                "has {bytes} bytes; give at most {MAX_PROMPT_BYTES}"
            ));
        }
        let tokens = base
            .tokenizer
            .encode(prompt, Special::AsText)
            .map_err(|error| JobError::invalid("sample_prompts", error.to_string()))?
            .len();
        if tokens > room {
            return refuse(format!(
                "has {tokens} tokens; at most {room} fit into the context with an answer of {MAX_NEW_TOKENS}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps after which a run samples that is validated every `every` steps.
    fn sampled(schedule: &mut SampleSchedule, from: u64, every: u64) -> Vec<u64> {
        for step in from..=schedule.steps {
            if step > 0 && step.is_multiple_of(every) {
                schedule.validated = Some(step);
            }
            if schedule.is_due(step, step == schedule.steps) {
                schedule.sampled.insert(step);
            }
        }
        schedule.sampled.iter().copied().collect()
    }

    fn of(steps: u64) -> SampleSchedule {
        SampleSchedule {
            steps,
            ..SampleSchedule::default()
        }
    }

    #[test]
    fn few_validations_are_all_sampled_and_many_at_most_seventeen_times() {
        assert_eq!(sampled(&mut of(18), 0, 6), [0, 6, 12, 18]);
        assert_eq!(sampled(&mut of(20), 0, 6), [0, 6, 12, 18, 20]);
        assert_eq!(sampled(&mut of(7), 0, 100), [0, 7]);
        for (steps, every) in [(10_000, 1), (640, 3), (17, 1), (1, 1)] {
            let sampled = sampled(&mut of(steps), 0, every);
            assert!(sampled.len() as u64 <= PARTS + 1, "{sampled:?}");
            assert_eq!((sampled[0], sampled[sampled.len() - 1]), (0, steps));
        }
    }

    #[test]
    fn a_resumed_run_samples_after_the_same_steps() {
        let whole = sampled(&mut of(100), 0, 4);
        for from in [0, 4, 50, 52, 100] {
            // Killed before the last validation was sampled.
            let mut resumed = of(100);
            resumed.sampled = whole.iter().copied().filter(|step| *step < from).collect();
            resumed.validated = Some(from / 4 * 4).filter(|step| *step > 0);
            assert_eq!(sampled(&mut resumed, from, 4), whole, "from {from}");
        }
    }
}
