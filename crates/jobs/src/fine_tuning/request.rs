//! Checks a request for a job, in OpenAI's shape, and makes a record of it: files found, settings filled in, and everything checked
//! that can be checked without reading rows.

use std::collections::BTreeMap;

use base::Base;
use formats::persona_name::{BASE, is_persona_name};
use registry::{Persona, Personas};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::{Caller, Service, requested_name};
use train::TrainSettings;
use train::lora_init::{parameter_count, target_linears};

use crate::error::JobError;
use crate::fine_tuning::baselines;
use crate::fine_tuning::hyperparameters::{Hyperparameters, HyperparametersShape};
use crate::fine_tuning::prepare::MAX_ROW_BYTES;
use crate::fine_tuning::sample_generation;
use crate::jobs_state::JobsState;
use crate::listing::Viewer;
use crate::record_file::{fresh_id, now};
use crate::records::file::StoredFile;
use crate::records::job::{ID_PREFIX, JobRecord, JobStatus, Method, Progress, StartAdapter};
use crate::records::thresholds::Thresholds;

/// The most pairs of `metadata`: OpenAI's limit.
const MAX_METADATA_PAIRS: usize = 16;
/// The longest key of `metadata`, in characters: OpenAI's limit.
const MAX_METADATA_KEY: usize = 64;
/// The longest value of `metadata`, in characters: OpenAI's limit.
const MAX_METADATA_VALUE: usize = 512;
/// The longest suffix, in characters: OpenAI's limit.
const MAX_SUFFIX: usize = 64;
/// The longest system prompt, in bytes.
const MAX_SYSTEM_PROMPT: usize = registry::settings::MAX_SYSTEM_PROMPT;

/// The body of a request for a job.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// The base by its name, or a persona, whose adapter is trained further. An alias works too.
    pub model: String,
    /// The id of an uploaded file.
    pub training_file: String,
    /// The id of a file whose rows choose the best state and are used by the eval gate. Default: a share of the training rows is held
    /// out.
    pub validation_file: Option<String>,
    /// The training method. Default: `supervised`.
    pub method: Option<MethodRequest>,
    /// As in `method`, which replaces it in OpenAI's API.
    #[schema(value_type = Option<HyperparametersShape>)]
    pub hyperparameters: Option<Map<String, Value>>,
    /// The persona to publish: a new one, or a new version of an existing one. Default: `ft-` and 8 digits, after the beginning of one of the
    /// key's patterns if it may only use such names.
    pub suffix: Option<String>,
    /// Determines the adapter's initial values and the order of rows. Default: 42.
    pub seed: Option<u64>,
    /// Not supported: empty or left out.
    pub integrations: Option<Vec<Value>>,
    /// Up to 16 texts of the client.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Extension: the persona's system prompt, which is used for rows that have none. Default: the persona's current one.
    pub system_prompt: Option<String>,
    /// Extension: the thresholds of the eval gate, which the adapter must meet to be published. If the persona in the server's folder has an
    /// `[eval]` table, it applies too: of each threshold the stricter one.
    pub gate: Option<Thresholds>,
    /// Extension: `false` keeps an adapter that passed the gate until someone publishes it. Default: `true`.
    pub publish: Option<bool>,
    /// Extension: up to 4 texts of at most 4096 bytes that the adapter answers while it trains. Default: up to three questions of held-out
    /// rows. Empty: none.
    pub sample_prompts: Option<Vec<String>>,
}

/// The training method with its hyperparameters.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MethodRequest {
    r#type: Method,
    supervised: Option<MethodBody>,
    dpo: Option<MethodBody>,
}

#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct MethodBody {
    #[schema(value_type = Option<HyperparametersShape>)]
    hyperparameters: Option<Map<String, Value>>,
}

impl NewJob {
    /// A new record of the job for `caller`. Its files are not read yet.
    ///
    /// # Errors
    /// The first invalid field, a file that does not exist, or [`JobError::Denied`].
    pub(crate) fn record(
        &self,
        jobs: &JobsState,
        caller: &Caller,
        viewer: &Viewer,
    ) -> Result<JobRecord, JobError> {
        let service = jobs.service();
        let base = service.base();
        let id = fresh_id(ID_PREFIX)?;
        let persona = self.persona_name(&id, base, caller)?;
        self.check_integrations()?;
        let metadata = self.checked_metadata()?;
        self.check_system_prompt()?;
        sample_generation::check(self.sample_prompts.as_deref().unwrap_or_default(), base)?;
        let files = self.find_files(jobs, viewer)?;
        let (method, mut hyperparameters) = self.training_method(&files, base)?;
        let personas = service.personas();
        let start = self.start_persona(service, &personas, caller)?;
        let start = start.map(|persona| continue_adapter(&mut hyperparameters, persona, base));
        let start = start.transpose()?;
        let settings = hyperparameters.settings;
        let parameters = adapter_parameters(&settings, base)?;
        let current = personas.get(&persona);
        if current.is_none() && personas.aliases().any(|(alias, _)| alias == persona) {
            let message = "is an alias of another persona; name that one, or use another name";
            return Err(JobError::invalid("suffix", message));
        }
        if current.is_none() && service.is_model_alias(&persona) {
            let message = "is an alias of this server; use another name";
            return Err(JobError::invalid("suffix", message));
        }
        let system_prompt = self
            .system_prompt
            .clone()
            .or_else(|| current.and_then(|persona| persona.system_prompt.clone()));
        let thresholds = self.thresholds(service, caller, &persona)?;
        Ok(JobRecord {
            id,
            number: 0,
            owner: viewer.name().map(str::to_owned),
            created_at: now(),
            finished_at: None,
            status: JobStatus::ValidatingFiles,
            model: requested_name(&self.model).to_owned(),
            persona,
            named: self.suffix.is_some(),
            training_file: files.training.id,
            validation_file: files.validation.map(|file| file.id),
            method,
            learning_rate_multiplier: hyperparameters.learning_rate_multiplier,
            settings,
            start,
            system_prompt,
            thresholds,
            threshold_results: Vec::new(),
            publish: self.publish != Some(false),
            adapter_kept: false,
            parameters,
            samples: Vec::new(),
            sample_prompts: self.sample_prompts.clone(),
            metadata,
            progress: Progress::default(),
            trained_tokens: None,
            plan: None,
            publishing: None,
            fine_tuned_model: None,
            error: None,
        })
    }

    fn find_files(&self, jobs: &JobsState, viewer: &Viewer) -> Result<JobFiles, JobError> {
        let find = |id: &str, field| jobs.files.find(viewer, id, field);
        let training = find(&self.training_file, "training_file")?;
        let validation = self.validation_file.as_deref();
        let validation = validation.map(|id| find(id, "validation_file"));
        Ok(JobFiles {
            training,
            validation: validation.transpose()?,
        })
    }

    /// The method with its hyperparameters, which must suit the files.
    fn training_method(
        &self,
        files: &JobFiles,
        base: &Base,
    ) -> Result<(Method, Hyperparameters), JobError> {
        let (method, fields) = self.method_and_hyperparameters()?;
        check_rows(method, &files.training, "training_file")?;
        if let Some(file) = &files.validation {
            check_rows(method, file, "validation_file")?;
        }
        let hidden_size = base.model.config().hidden_size;
        let hyperparameters = Hyperparameters::parse(method, fields, self.seed, hidden_size)?;
        let validation = files.validation.as_ref();
        check_row_bytes(&hyperparameters.settings, &files.training, validation)?;
        Ok((method, hyperparameters))
    }

    /// The persona that the job `id` publishes.
    fn persona_name(&self, id: &str, base: &Base, caller: &Caller) -> Result<String, JobError> {
        let Some(suffix) = &self.suffix else {
            let name = format!("ft-{}", &id[id.len() - 8..]);
            let Some(key) = caller.key() else {
                return Ok(name);
            };
            return key.new_persona_name(&name).ok_or_else(|| {
                let message = "is missing, and the key may not use a generated name; name one of the personas that it may use";
                JobError::invalid("suffix", message)
            });
        };
        if !is_persona_name(suffix) || suffix.chars().count() > MAX_SUFFIX {
            let message = format!(
                "is the persona's name: 1 to {MAX_SUFFIX} of a-z, 0-9, - and _, starting with a letter or a digit"
            );
            return Err(JobError::invalid("suffix", message));
        }
        if *suffix == base.name || suffix == BASE {
            let message = "is the base's name; use another name";
            return Err(JobError::invalid("suffix", message));
        }
        caller.check_persona(suffix)?;
        Ok(suffix.clone())
    }

    fn check_integrations(&self) -> Result<(), JobError> {
        match &self.integrations {
            Some(list) if !list.is_empty() => {
                let message = "are not supported; leave them out";
                Err(JobError::invalid("integrations", message))
            }
            _ => Ok(()),
        }
    }

    fn checked_metadata(&self) -> Result<BTreeMap<String, String>, JobError> {
        let metadata = self.metadata.clone().unwrap_or_default();
        let too_long = |(key, value): (&String, &String)| {
            key.chars().count() > MAX_METADATA_KEY || value.chars().count() > MAX_METADATA_VALUE
        };
        if metadata.len() > MAX_METADATA_PAIRS || metadata.iter().any(too_long) {
            let message = format!(
                "is limited to {MAX_METADATA_PAIRS} pairs, with keys of {MAX_METADATA_KEY} and values of {MAX_METADATA_VALUE} characters"
            );
            return Err(JobError::invalid("metadata", message));
        }
        Ok(metadata)
    }

    fn check_system_prompt(&self) -> Result<(), JobError> {
        match &self.system_prompt {
            Some(prompt) if prompt.len() > MAX_SYSTEM_PROMPT => {
                let message = format!("is longer than {MAX_SYSTEM_PROMPT} bytes; shorten it");
                Err(JobError::invalid("system_prompt", message))
            }
            _ => Ok(()),
        }
    }

    fn method_and_hyperparameters(&self) -> Result<(Method, Map<String, Value>), JobError> {
        let method = self
            .method
            .as_ref()
            .map_or(Method::Supervised, |m| m.r#type);
        let (own, other, name) = match (&self.method, method) {
            (None, _) => (None, None, ""),
            (Some(m), Method::Supervised) => (m.supervised.as_ref(), m.dpo.as_ref(), "dpo"),
            (Some(m), Method::Dpo) => (m.dpo.as_ref(), m.supervised.as_ref(), "supervised"),
        };
        if other.is_some() {
            let message = "belongs to the other method; leave it out";
            return Err(JobError::invalid(format!("method.{name}"), message));
        }
        let own = own.and_then(|body| body.hyperparameters.clone());
        match (own, self.hyperparameters.clone()) {
            (Some(_), Some(_)) => Err(JobError::invalid(
                "hyperparameters",
                "are also given in `method`; give them once",
            )),
            (Some(given), None) | (None, Some(given)) => Ok((method, given)),
            (None, None) => Ok((method, Map::new())),
        }
    }

    /// The persona that `model` names, itself or by an alias; `None` for the base.
    fn start_persona<'p>(
        &self,
        service: &'p Service,
        personas: &'p Personas,
        caller: &Caller,
    ) -> Result<Option<&'p Persona>, JobError> {
        let found = service.find_single_persona(personas, caller, &self.model);
        found.map_err(|error| JobError::name("model", error))
    }

    /// The thresholds of the job's gate, with their baselines: those of the persona in the server's folder, tightened by those of the request.
    fn thresholds(
        &self,
        service: &Service,
        caller: &Caller,
        persona: &str,
    ) -> Result<Option<Thresholds>, JobError> {
        let invalid = |(field, message)| JobError::invalid(field, message);
        let folder = service.catalog().folder();
        let in_folder = folder.get(persona);
        let own = in_folder.and_then(|persona| persona.eval.as_ref());
        let own = own.map(Thresholds::of);
        if let Some(requested) = &self.gate {
            requested.check().map_err(invalid)?;
        }
        let mut thresholds = match (&self.gate, &own) {
            (None, None) => return Ok(None),
            (None, Some(own)) => own.clone(),
            (Some(requested), None) => requested.clone(),
            (Some(requested), Some(own)) => requested.tightening(own).map_err(invalid)?,
        };
        let sides = baselines::Sides {
            requested: self.gate.as_ref(),
            own: own.as_ref(),
        };
        baselines::choose(service, caller, persona, &mut thresholds, &sides)?;
        Ok(Some(thresholds))
    }
}

/// The adapter of `persona`, which a job with these hyperparameters continues.
fn continue_adapter(
    hyperparameters: &mut Hyperparameters,
    persona: &Persona,
    base: &Base,
) -> Result<StartAdapter, JobError> {
    let Some(adapter) = &persona.adapter else {
        let name = &persona.name;
        let message = format!("{name} has no adapter to continue from; name the base");
        return Err(JobError::invalid("model", message));
    };
    let shapes = adapter.shapes().map_err(|error| JobError::Io {
        path: adapter.path.clone(),
        source: std::io::Error::other(error),
    })?;
    hyperparameters.continue_adapter(&shapes, base.model.config())?;
    Ok(StartAdapter {
        persona: format!("{}@{}", persona.name, persona.version),
        sha256: adapter.sha256_hex(),
    })
}

/// The files of a job.
struct JobFiles {
    training: StoredFile,
    validation: Option<StoredFile>,
}

/// The number of parameters of the adapter that a job trains.
fn adapter_parameters(settings: &TrainSettings, base: &Base) -> Result<u64, JobError> {
    let modules = settings.modules();
    let modules = modules.map_err(|error| JobError::Plan(error.to_string()))?;
    let linears = target_linears(base.model.config(), &modules);
    Ok(parameter_count(&linears, settings.rank))
}

/// Checks that the rows of both files, with copies of the training rows, are not too large to be read and encoded.
fn check_row_bytes(
    settings: &TrainSettings,
    training: &StoredFile,
    validation: Option<&StoredFile>,
) -> Result<(), JobError> {
    let copies = training
        .content_bytes()
        .saturating_mul(settings.vary_identifiers + 1);
    let bytes = copies.saturating_add(validation.map_or(0, |file| file.content_bytes()));
    if bytes <= MAX_ROW_BYTES {
        return Ok(());
    }
    let message = format!(
        "and the validation file have {bytes} bytes, with copies of the rows (`vary_identifiers`); at most {MAX_ROW_BYTES} are trained on. \
         Use fewer rows or copies"
    );
    Err(JobError::invalid("training_file", message))
}

/// Checks that the rows of `file`, which `field` names, suit `method`.
fn check_rows(method: Method, file: &StoredFile, field: &str) -> Result<(), JobError> {
    let message = match (method, file.pairs) {
        (Method::Supervised, true) => {
            "has pairs of answers; use the method dpo, or give a file with one answer in each row"
        }
        (Method::Dpo, false) => {
            "has no `chosen` and `rejected` answers, which the method dpo needs; give a file of pairs"
        }
        _ => return Ok(()),
    };
    Err(JobError::invalid(field, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_rows_count_as_bytes_of_a_job() {
        let file = |bytes| StoredFile {
            id: "file-1".to_owned(),
            number: 1,
            owner: None,
            created_at: 1,
            filename: "rows.jsonl".to_owned(),
            bytes,
            rows: 1,
            pairs: false,
            hold_out: None,
            content_bytes: None,
            fields: dataset::FieldReport::default(),
        };
        let mut settings = TrainSettings::default();
        let part = MAX_ROW_BYTES / 65;
        let check = |settings: &TrainSettings, training, validation| {
            check_row_bytes(settings, &file(training), Some(&file(validation)))
        };
        check(&settings, MAX_ROW_BYTES - 9, 9).unwrap();
        let error = check(&settings, MAX_ROW_BYTES - 9, 10).unwrap_err();
        assert_eq!(error.field(), Some("training_file"));
        settings.vary_identifiers = 64;
        check(&settings, part, 0).unwrap();
        assert!(check(&settings, part + 1, 0).is_err());
    }
}
