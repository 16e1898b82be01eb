//! Answers while a job trains: a few questions to its adapter as it stands, so that people see where it goes. Asked before the first
//! step, after validations and at the end. What is asked changes no number of the run, and what goes wrong here is an event.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use formats::peft::Dtype;
use formats::tokenizer::Special;
use train::Job;
use train::dataset::{DataRow, RowContent, RowLocation};
use train::export::{Provenance, peft_adapter};
use train::progress::{RunPlan, Snapshot};
use train::sft::TrainedAdapter;

use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::evaluation::Candidate;
use crate::evaluation::answers::{Question, Speaker};
use crate::evaluation::offline_engine;
use crate::fine_tuning::prepare::{STATE, held_out_rows, job_persona};
use crate::fine_tuning::samples::{SampledAnswer, Samples};
use crate::records::job::JobRecord;
use crate::training::Target;
use crate::yield_point::JobYieldPoint;
use base::Base;
use base::progress::Progress;

/// The most questions of a job.
pub(crate) const MAX_PROMPTS: usize = 4;
/// The longest question, in bytes.
pub(crate) const MAX_PROMPT_BYTES: usize = 4096;
/// Questions that are taken from the rows where the client names none.
const FROM_ROWS: usize = 3;
/// The most tokens of an answer.
const MAX_NEW_TOKENS: usize = 64;
/// Between its first step and its end a run has so many parts, and asks once in each of them.
const PARTS: u64 = 16;

/// Asks the adapter of one run.
pub(crate) struct Sampling<'q> {
    queue: &'q BackgroundWork,
    record: &'q JobRecord,
    rows: Vec<DataRow>,
    samples: Samples,
    /// What the adapter is made from, without its parameters.
    shell: TrainedAdapter,
    provenance: Provenance,
    machine: Arc<JobYieldPoint>,
    stop: Arc<AtomicBool>,
    moments: Moments,
}

/// When the adapter of a run is asked.
#[derive(Debug, Default)]
struct Moments {
    /// Steps of the run.
    steps: u64,
    /// Those after which it was asked.
    asked: BTreeSet<u64>,
    /// The last of them after which it was validated.
    validated: Option<u64>,
}

impl Moments {
    /// Whether it is asked after `step`: before the first, after the first validation in each part of the run, and at the end.
    fn is_due(&self, step: u64, done: bool) -> bool {
        if self.asked.contains(&step) {
            return false;
        }
        let part = |step: u64| step.saturating_mul(PARTS) / self.steps.max(1);
        let last = self.asked.last().map_or(0, |last| part(*last));
        step == 0 || done || (self.validated == Some(step) && part(step) > last)
    }
}

impl<'q> Sampling<'q> {
    /// With the questions of `record`, or those of the first rows that training does not see; none where there are none.
    pub fn new(
        queue: &'q BackgroundWork,
        record: &'q JobRecord,
        target: &Target,
        job: &Job,
        machine: Arc<JobYieldPoint>,
        stop: &Arc<AtomicBool>,
    ) -> anyhow::Result<Option<Sampling<'q>>> {
        let rows = match &record.sample_prompts {
            Some(prompts) => prompts.iter().map(|prompt| row_of(prompt)).collect(),
            None => {
                let mut rows = held_out_rows(record, target)?;
                rows.retain(|row| !matches!(row.content, RowContent::Text(_)));
                rows.truncate(FROM_ROWS);
                rows
            }
        };
        if rows.is_empty() {
            return Ok(None);
        }
        let base = queue.service.base();
        Ok(Some(Sampling {
            queue,
            record,
            rows,
            samples: Samples::of(&queue.folder(&record.id)),
            shell: TrainedAdapter {
                name: job.name.clone(),
                settings: job.settings.clone(),
                params: train::LoraParams::default(),
                best: None,
                steps: 0,
                stopped_early: false,
                initial_adapter: job.initial_adapter.clone(),
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
            machine,
            stop: Arc::clone(stop),
            moments: Moments::default(),
        }))
    }

    /// The run begins, or goes on from the step `from`; what was said after that will be said again.
    pub fn started(&mut self, plan: &RunPlan, from: u64) -> Result<(), JobError> {
        self.samples.go_back_to(from)?;
        let said = self.samples.all()?;
        // Killed after a state was kept and before it was asked, it is asked now.
        let events = self.queue.events_of(&self.record.id).all()?;
        let data = events.into_iter().filter_map(|event| event.data);
        self.moments = Moments {
            steps: plan.steps,
            asked: said.iter().map(|said| said.step).collect(),
            validated: data
                .filter(|data| data.full_valid_loss.is_some())
                .map(|data| data.step)
                .max(),
        };
        Ok(())
    }

    /// The adapter was validated after `step`.
    pub fn validated(&mut self, step: u64) {
        self.moments.validated = Some(step);
    }

    /// Whether the adapter is to be asked as it stands.
    pub fn is_due(&self, snapshot: &Snapshot<'_>) -> bool {
        self.moments.is_due(snapshot.step, snapshot.done)
    }

    /// Asks the adapter as it stands and keeps what it says. Stopped on the way it keeps nothing, and the next process asks.
    pub fn ask(&mut self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        self.moments.asked.insert(snapshot.step);
        match self.answers(snapshot) {
            Err(_) if self.stop.load(Ordering::SeqCst) => Ok(()),
            said => Ok(self.samples.add(said?)?),
        }
    }

    fn answers(&self, snapshot: &Snapshot<'_>) -> anyhow::Result<Vec<SampledAnswer>> {
        // One adapter a job.
        let params = snapshot.adapters.first().context("there is no adapter")?;
        let trained = TrainedAdapter {
            params: params.clone(),
            steps: snapshot.step,
            ..self.shell.clone()
        };
        let adapter = peft_adapter(&trained, &self.provenance)?;
        // Where what a killed process leaves is removed with the state.
        let state = self.queue.folder(&self.record.id).join(STATE);
        std::fs::create_dir_all(&state)?;
        let folder = tempfile::tempdir_in(state)?;
        // As it would be published.
        adapter.write(folder.path(), Dtype::BF16, "")?;
        let mut persona = job_persona(self.queue, self.record, folder.path())?;
        let most = persona.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
        persona.max_new_tokens = Some(most.min(MAX_NEW_TOKENS));
        let candidates = [Candidate::new(persona, self.rows.clone(), MAX_PROMPTS)?];
        let to = Speaker::Persona(0);
        let questions: Vec<Question> = (0..candidates[0].rows.len())
            .map(|row| Question { of: 0, row, to })
            .collect();
        let machine = self.machine.clone();
        let answers = offline_engine::answers(
            self.queue,
            &candidates,
            &questions,
            Vec::new(),
            machine,
            &mut Progress::hidden(),
        )?;
        let said = answers.all.into_iter().map(|answered| SampledAnswer {
            step: snapshot.step,
            prompt: candidates[0].rows[answered.question.row].input(),
            answer: answered.text,
        });
        Ok(said.collect())
    }
}

/// A question that a client names, as a row that has no answer yet.
fn row_of(prompt: &str) -> DataRow {
    DataRow {
        location: RowLocation {
            file: "sample_prompts".into(),
            line: 1,
        },
        content: RowContent::Completion {
            prompt: prompt.to_owned(),
            completion: String::new(),
        },
        intent: None,
    }
}

/// Holds a client's questions to their limits.
pub(crate) fn check(prompts: &[String], base: &Base) -> Result<(), JobError> {
    if prompts.len() > MAX_PROMPTS {
        let message = format!(
            "has {} texts; at most {MAX_PROMPTS} are asked",
            prompts.len()
        );
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
            return refuse("is empty; give it words, or leave it out".to_owned());
        }
        let bytes = prompt.len();
        if bytes > MAX_PROMPT_BYTES {
            return refuse(format!(
                "has {bytes} bytes; at most {MAX_PROMPT_BYTES} are asked"
            ));
        }
        let tokens = base
            .tokenizer
            .encode(prompt, Special::AsText)
            .map_err(|error| JobError::invalid("sample_prompts", error.to_string()))?
            .len();
        if tokens > room {
            return refuse(format!(
                "has {tokens} tokens; at most {room} fit beside an answer of {MAX_NEW_TOKENS}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps after which a run is asked that is validated every `every` steps.
    fn asked(moments: &mut Moments, from: u64, every: u64) -> Vec<u64> {
        for step in from..=moments.steps {
            if step > 0 && step.is_multiple_of(every) {
                moments.validated = Some(step);
            }
            if moments.is_due(step, step == moments.steps) {
                moments.asked.insert(step);
            }
        }
        moments.asked.iter().copied().collect()
    }

    fn of(steps: u64) -> Moments {
        Moments {
            steps,
            ..Moments::default()
        }
    }

    #[test]
    fn few_validations_are_all_asked_and_many_at_most_seventeen_times() {
        assert_eq!(asked(&mut of(18), 0, 6), [0, 6, 12, 18]);
        assert_eq!(asked(&mut of(20), 0, 6), [0, 6, 12, 18, 20]);
        assert_eq!(asked(&mut of(7), 0, 100), [0, 7]);
        for (steps, every) in [(10_000, 1), (640, 3), (17, 1), (1, 1)] {
            let asked = asked(&mut of(steps), 0, every);
            assert!(asked.len() as u64 <= PARTS + 1, "{asked:?}");
            assert_eq!((asked[0], asked[asked.len() - 1]), (0, steps));
        }
    }

    #[test]
    fn a_run_that_goes_on_is_asked_after_the_same_steps() {
        let whole = asked(&mut of(100), 0, 4);
        for from in [0, 4, 50, 52, 100] {
            // Killed before what was kept last was asked.
            let mut resumed = of(100);
            resumed.asked = whole.iter().copied().filter(|step| *step < from).collect();
            resumed.validated = Some(from / 4 * 4).filter(|step| *step > 0);
            assert_eq!(asked(&mut resumed, from, 4), whole, "from {from}");
        }
    }
}
