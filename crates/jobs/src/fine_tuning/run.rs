//! One job: its rows, its training, its adapter's folder, its examination, its publication. Every part may be done again by the
//! next process, and comes to the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use formats::chat_template::ChatTemplate;
use registry::{AdapterRef, Persona, PersonaSettings};
use train::job::{DataReport, JobSpec};
use train::sft::{self, Outcome, RunOptions};

use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::fine_tuning::eval_gate;
use crate::fine_tuning::run_observer::RunObserver;
use crate::fine_tuning::sample_generation::Sampling;
use crate::listing::Viewer;
use crate::records::failure::Failure;
use crate::records::job::{JobRecord, JobStatus};
use crate::training::folder::{self, Origin};
use crate::training::plan::Plan;
use crate::training::{self, Target};
use crate::yield_point::JobYieldPoint;
use base::memory;

/// The folder of a run's state.
pub(crate) const STATE: &str = "state";
/// The folder of a run's adapter.
const ADAPTER: &str = "adapter";
/// Most tokens of one call of the learner. Fewer than `lory train` takes, as a layer of so many is what an answer may have to
/// wait for.
pub(crate) const BATCH_TOKENS: usize = 1024;

/// The persona that `record` is about to make, with the adapter in the folder `adapter`.
pub(crate) fn job_persona(
    queue: &BackgroundWork,
    record: &JobRecord,
    adapter: &Path,
) -> anyhow::Result<Persona> {
    let personas = queue.service.personas();
    let settings = settings_of(record, personas.get(&record.persona));
    let found = AdapterRef::in_folder(adapter)?;
    Ok(settings.into_persona(&record.persona, 1, found, adapter.to_owned()))
}

/// What became of a run.
pub(crate) enum RunOutcome {
    /// Its adapter is published.
    Published {
        /// `name@version`.
        model: String,
        /// Tokens that were trained on.
        tokens: u64,
    },
    /// Its adapter is kept for whoever publishes it.
    Kept {
        /// Tokens that were trained on.
        tokens: u64,
    },
    /// It came to nothing.
    Failed(Failure),
    /// It was told to stop, and can go on.
    Stopped,
}

/// Runs `record` until it is over, or `stop` is set.
pub(crate) fn run(
    queue: &BackgroundWork,
    record: &JobRecord,
    stop: &Arc<AtomicBool>,
) -> RunOutcome {
    match attempt(queue, record, stop) {
        Ok(ended) => ended,
        Err(_) if stop.load(Ordering::SeqCst) => RunOutcome::Stopped,
        Err(error) => {
            let message = queue.as_called(record, &format!("{error:#}"));
            let code = match error.downcast_ref() {
                Some(train::TrainError::Row { .. } | train::TrainError::Rows { .. }) => {
                    "invalid_training_file"
                }
                Some(train::TrainError::NotFinite { .. }) => "diverged",
                Some(train::TrainError::Memory { .. }) => "out_of_memory",
                _ => "training_failed",
            };
            RunOutcome::Failed(Failure {
                code: code.to_owned(),
                message,
                param: None,
            })
        }
    }
}

fn attempt(
    queue: &BackgroundWork,
    record: &JobRecord,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<RunOutcome> {
    let Ready { job, target } = queue.ready(record)?;
    let loaded = job.data.clone();
    let base = queue.service.base();
    let fingerprint = base.fingerprint.sha256().unwrap_or_default();
    let options = RunOptions {
        base: base.bound(fingerprint),
        checkpoint: Some(
            queue
                .folder(&record.id)
                .join(STATE)
                .join("checkpoint.safetensors"),
        ),
        batch_tokens: BATCH_TOKENS,
    };
    let yield_point = JobYieldPoint::new(&queue.service, stop);
    let mut learner = training::learner(base).yielding(yield_point.clone());
    let sampling = Sampling::new(queue, record, &target, &job, yield_point.clone(), stop);
    let sampling = sampling.unwrap_or_else(|error| {
        let said = format!("The adapter is not asked on the way: {error:#}");
        let said = queue.as_called(record, &said);
        queue.events_of(&record.id).push("warn", said, None);
        None
    });
    let mut watch = RunObserver::new(queue, &record.id, sampling);
    let prepared = sft::prepare(vec![job], &options)?;
    let forecast = prepared.estimate(base.model.config());
    learner.keep(Plan::new(forecast, memory::in_use(), memory::available()).keep);
    let trained = match prepared.train(&mut learner, &mut watch, stop)? {
        Outcome::Interrupted { .. } => return Ok(RunOutcome::Stopped),
        Outcome::Finished(trained) => trained,
    };
    let trained = trained.first().context("no adapter was trained")?;
    write(trained, &target, &loaded, queue, fingerprint)?;

    queue.note(&record.id, |progress| {
        progress.phase = Some("examining".to_owned());
    });
    let (checked, samples) = eval_gate::check(queue, record, &target, &mut learner, yield_point)?;
    let missed: Vec<&str> = checked
        .iter()
        .filter(|check| !check.passed)
        .map(|check| check.said.as_str())
        .collect();
    let refused = (!missed.is_empty()).then(|| Failure {
        code: "gate_refused".to_owned(),
        message: format!(
            "not published: {}; the adapter is kept in {}",
            missed.join("; "),
            target.out.display()
        ),
        param: Some("gate".to_owned()),
    });
    let saved = queue.change(&record.id, JobStatus::Running, |record| {
        record.checked = checked.clone();
        record.samples = samples;
        record.kept = refused.is_some() || !record.publish;
    })?;
    if saved.is_none() {
        return Ok(RunOutcome::Stopped);
    }
    if let Some(failure) = refused {
        return Ok(RunOutcome::Failed(failure));
    }
    let tokens = queue.tokens_of(&record.id);
    if !record.publish {
        return Ok(RunOutcome::Kept { tokens });
    }
    Ok(match queue.store(&record.id, JobStatus::Running, true)? {
        Some(model) => {
            queue.let_go(&record.id);
            RunOutcome::Published { model, tokens }
        }
        None => RunOutcome::Stopped,
    })
}

/// The adapter's folder, with its curve and its card.
fn write(
    trained: &train::sft::TrainedAdapter,
    target: &Target,
    loaded: &DataReport,
    queue: &BackgroundWork,
    sha256: &str,
) -> anyhow::Result<()> {
    let origin = Origin {
        base: queue.service.base(),
        known: queue.known.as_deref(),
        sha256,
    };
    folder::write(trained, target, loaded, &origin)
        .with_context(|| format!("cannot write the adapter into {}", target.out.display()))
}

/// What is published beside the adapter: the persona's settings as they are, with the job's system prompt. Variables belong to the
/// prompt that they stand in.
pub(crate) fn settings_of(record: &JobRecord, there: Option<&Persona>) -> PersonaSettings {
    let mut settings = there.map(PersonaSettings::of).unwrap_or_default();
    if settings.system_prompt != record.system_prompt {
        settings.system_prompt.clone_from(&record.system_prompt);
        settings.variables.clear();
    }
    settings
}

/// A job whose rows are read.
pub(crate) struct Ready {
    pub job: train::Job,
    pub target: Target,
}

impl BackgroundWork {
    /// The adapter's folder of a job.
    pub(crate) fn adapter_of(&self, id: &str) -> PathBuf {
        self.folder(id).join(ADAPTER)
    }

    fn path_of_id(&self, id: &str) -> Result<PathBuf, JobError> {
        let everybody = Viewer::everybody();
        let file = self.files.find(&everybody, id, "training_file")?;
        Ok(self.files.path(&file))
    }

    /// Reads and encodes the rows of `record`.
    pub(crate) fn ready(&self, record: &JobRecord) -> anyhow::Result<Ready> {
        let validation = record.validation_file.as_deref();
        let target = Target {
            name: record.persona.clone(),
            data: self.path_of_id(&record.training_file)?,
            eval: validation.map(|id| self.path_of_id(id)).transpose()?,
            system_prompt: self.spoken(record)?,
            settings: record.settings.clone(),
            siblings: Vec::new(),
            from: None,
            out: self.adapter_of(&record.id),
        };
        let base = self.service.base();
        let source = JobSpec {
            name: &target.name,
            train: &target.data,
            validation: target.eval.as_deref(),
            system: target.system_prompt.as_deref(),
            settings: target.settings.clone(),
            metrics: Some(target.out.join("metrics.jsonl")),
        };
        let (config, tokenizer) = (base.model.config(), &base.tokenizer);
        let template: &ChatTemplate = &base.template;
        let mut job = if target.settings.preference.is_some() {
            train::Job::load_pairs(source, &[], config, tokenizer, template)?
        } else {
            train::Job::load(source, config, tokenizer, template)?
        };
        if let Some(start) = &record.start {
            let personas = self.service.personas();
            let found = personas
                .iter()
                .filter_map(|persona| persona.adapter.as_ref())
                .find(|adapter| adapter.sha256_hex() == start.sha256)
                .with_context(|| {
                    format!(
                        "{} is not here any more; it was to start from it",
                        start.persona
                    )
                })?;
            job.init_from_adapter(&found.read()?, start.sha256.clone(), config)?;
        }
        Ok(Ready { job, target })
    }

    /// The system prompt that rows are trained with: a persona's own has its variables' defaults in it.
    fn spoken(&self, record: &JobRecord) -> anyhow::Result<Option<String>> {
        let personas = self.service.personas();
        let same = |persona: &&Persona| persona.system_prompt == record.system_prompt;
        Ok(match personas.get(&record.persona).filter(same) {
            Some(persona) => persona.system_prompt_by_default()?,
            None => record.system_prompt.clone(),
        })
    }

    /// `text` with the files of `record` called as the client calls them.
    pub(crate) fn as_called(&self, record: &JobRecord, text: &str) -> String {
        let everybody = Viewer::everybody();
        let ids = [Some(&record.training_file), record.validation_file.as_ref()];
        let mut text = text.to_owned();
        for id in ids.into_iter().flatten() {
            if let Ok(file) = self.files.find(&everybody, id, "training_file") {
                let path = self.files.path(&file).display().to_string();
                text = text.replace(&path, &file.filename);
            }
        }
        text
    }

    /// Tokens of all steps of a job.
    fn tokens_of(&self, id: &str) -> u64 {
        let all = self.events_of(id).all().unwrap_or_default();
        let tokens = |event: &crate::records::job::Event| event.data.as_ref()?.tokens;
        all.iter().filter_map(tokens).sum()
    }
}
