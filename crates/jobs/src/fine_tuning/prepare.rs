//! Prepares a run: its rows, system prompt and start adapter, and the settings of the persona that it publishes.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use dataset::{Columns, DataRow, RowContent, read_first, read_first_chosen};
use formats::chat_template::ChatTemplate;
use registry::{AdapterRef, Persona, PersonaSettings};
use train::TrainError;
use train::initial_params::InitialParams;
use train::task::TrainTaskSpec;

use crate::error::JobError;
use crate::fine_tuning::error::RunError;
use crate::jobs_state::JobsState;
use crate::listing::Viewer;
use crate::records::client_message::ClientMessage;
use crate::records::job::JobRecord;
use crate::training::Target;

/// The folder of a run's checkpoint, in the job's folder.
pub(crate) const STATE: &str = "state";
/// The folder of a run's adapter, in the job's folder.
const ADAPTER: &str = "adapter";
/// The most memory of a job's encoded rows, with copies and rejected answers. There are two such jobs at most: the one that is trained, and
/// one that is validated or planned. One row at a time is in memory as text.
pub(crate) const MAX_EXAMPLE_BYTES: usize = 112 << 20;
/// The most bytes of a job's files, with copies of the training rows, which are read and encoded again for each copy.
pub(crate) const MAX_ROW_BYTES: u64 = 512 << 20;
/// The most tokens of one call of the learner. Fewer than in `lory train`, because a request may have to wait for a part of a layer of them.
pub(crate) const BATCH_TOKENS: usize = 1024;

/// The persona that `record` will publish, with the adapter in the folder `adapter`.
pub(crate) fn job_persona(
    queue: &JobsState,
    record: &JobRecord,
    adapter: &Path,
) -> Result<Persona, RunError> {
    let personas = queue.service.personas();
    let settings = persona_settings(record, personas.get(&record.persona));
    let found = AdapterRef::in_folder(adapter)?;
    Ok(settings.into_persona(&record.persona, 1, found, adapter.to_owned()))
}

/// The first `limit` rows with questions that are not trained on: those of the validation file, or the held-out training rows.
pub(crate) fn held_out_questions(
    queue: &JobsState,
    record: &JobRecord,
    limit: usize,
    stop: &AtomicBool,
) -> Result<Vec<DataRow>, RunError> {
    let (id, hold_out) = match &record.validation_file {
        Some(id) => (id, None),
        None => {
            let file = queue.file(&Viewer::everybody(), &record.training_file)?;
            let rule = queue.files.hold_out(&file, stop)?;
            (&record.training_file, Some(rule))
        }
    };
    let fraction = record.settings.validation_fraction;
    let keep = |row: &DataRow| {
        let is_held_out = hold_out.is_none_or(|rule| rule.is_held_out(row, fraction));
        is_held_out && !matches!(row.content, RowContent::Text(_))
    };
    let path = queue.path_of_file_id(id)?;
    Ok(match record.settings.preference.is_some() {
        true => read_first_chosen(&path, limit, stop, keep)?,
        false => read_first(&path, &Columns::default(), limit, stop, keep)?,
    })
}

/// The settings to publish: those of the current persona, with the job's system prompt. A new prompt drops the variables of the old one.
pub(crate) fn persona_settings(record: &JobRecord, current: Option<&Persona>) -> PersonaSettings {
    let mut settings = current.map(PersonaSettings::of).unwrap_or_default();
    if settings.system_prompt != record.system_prompt {
        settings.system_prompt.clone_from(&record.system_prompt);
        settings.variables.clear();
    }
    settings
}

/// A job with its rows read and encoded.
pub(crate) struct PreparedJob {
    pub task: train::TrainTask,
    pub target: Target,
}

impl JobsState {
    /// The folder of a job's adapter.
    pub(crate) fn adapter_folder(&self, id: &str) -> PathBuf {
        self.job_folder(id).join(ADAPTER)
    }

    fn path_of_file_id(&self, id: &str) -> Result<PathBuf, JobError> {
        let everybody = Viewer::everybody();
        let file = self.files.find(&everybody, id, "training_file")?;
        Ok(self.files.path(&file))
    }

    /// Reads and encodes the rows of `record`, until `stop` is set.
    pub(crate) fn prepare(
        &self,
        record: &JobRecord,
        stop: &AtomicBool,
    ) -> Result<PreparedJob, RunError> {
        let validation = record.validation_file.as_deref();
        let target = Target {
            name: record.persona.clone(),
            data: self.path_of_file_id(&record.training_file)?,
            eval: validation.map(|id| self.path_of_file_id(id)).transpose()?,
            system_prompt: self.training_system_prompt(record)?,
            settings: record.settings.clone(),
            siblings: Vec::new(),
            from: None,
            out: self.adapter_folder(&record.id),
        };
        let base = self.service.base();
        let source = TrainTaskSpec {
            name: &target.name,
            train: &target.data,
            validation: target.eval.as_deref(),
            system: target.system_prompt.as_deref(),
            settings: target.settings.clone(),
            metrics: Some(target.out.join("metrics.jsonl")),
            max_bytes: MAX_EXAMPLE_BYTES,
            stop,
        };
        let (config, tokenizer) = (base.model.config(), &base.tokenizer);
        let template: &ChatTemplate = &base.template;
        let mut task = if target.settings.preference.is_some() {
            train::TrainTask::load_pairs(source, &[], config, tokenizer, template)?
        } else {
            train::TrainTask::load(source, config, tokenizer, template)?
        };
        if let Some(start) = &record.start {
            let personas = self.service.personas();
            let found = personas
                .iter()
                .filter_map(|persona| persona.adapter.as_ref())
                .find(|adapter| adapter.sha256_hex() == start.sha256)
                .ok_or_else(|| {
                    let persona = &start.persona;
                    let message = format!(
                        "the start adapter of {persona} is not on this server any more; name another model"
                    );
                    JobError::invalid("model", message)
                })?;
            let (shapes, found) = (found.shapes()?, found.clone());
            let read = move || match found.read() {
                Ok(adapter) => Ok(adapter.pairs),
                Err(error) => Err(TrainError::Task(error.to_string())),
            };
            let init = InitialParams::of_adapter(shapes, read);
            task.init_from_adapter(init, start.sha256.clone(), config)?;
        }
        Ok(PreparedJob { task, target })
    }

    /// The system prompt of training rows: a persona's prompt with the defaults of its variables.
    fn training_system_prompt(&self, record: &JobRecord) -> Result<Option<String>, RunError> {
        let personas = self.service.personas();
        let same = |persona: &&Persona| persona.system_prompt == record.system_prompt;
        Ok(match personas.get(&record.persona).filter(same) {
            Some(persona) => persona.system_prompt_by_default()?,
            None => record.system_prompt.clone(),
        })
    }

    /// `text` with the paths of the job's files replaced by the client's file names, and without the folders of this machine.
    pub(crate) fn with_client_file_names(&self, record: &JobRecord, text: &str) -> ClientMessage {
        let everybody = Viewer::everybody();
        let ids = [Some(&record.training_file), record.validation_file.as_ref()];
        let mut text = text.to_owned();
        for id in ids.into_iter().flatten() {
            if let Ok(file) = self.files.find(&everybody, id, "training_file") {
                let path = self.files.path(&file).display().to_string();
                text = text.replace(&path, &file.filename);
            }
        }
        self.client_message(&text)
    }
}
