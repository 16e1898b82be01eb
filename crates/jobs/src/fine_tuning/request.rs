//! What is asked for, in OpenAI's shape, made into a job: files found, settings filled in, everything checked that needs no
//! rows to be read.

use std::collections::BTreeMap;

use formats::persona_name::is_persona_name;
use registry::spec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use train::PreferenceSettings;
use train::settings::default_lr;
use train::{TrainError, TrainSettings};

use crate::background_work::BackgroundWork;
use crate::error::JobError;
use crate::fine_tuning::baselines;
use crate::fine_tuning::sample_generation;
use crate::listing::Viewer;
use crate::record_file::{fresh_id, now};
use crate::records::job::{JobRecord, JobStatus, Method, Progress, Start};
use crate::records::thresholds::Thresholds;
use service::Caller;

/// The most pairs of `metadata`, and the most characters of a key and of a value: OpenAI's.
const METADATA: (usize, usize, usize) = (16, 64, 512);
/// The longest suffix, in characters: OpenAI's.
const MAX_SUFFIX: usize = 64;
/// The longest system prompt, in bytes.
const MAX_SYSTEM_PROMPT: usize = registry::settings::MAX_SYSTEM_PROMPT;
/// What lets the server choose a number.
const AUTO: &str = "auto";

/// A job that is to be.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// The base by its name, or a persona with an adapter, whose training goes on.
    pub model: String,
    /// The id of an uploaded file.
    pub training_file: String,
    /// The id of a file whose rows choose the best state and are asked for the gate; without, some of the training rows are
    /// held out.
    pub validation_file: Option<String>,
    /// How it trains; `supervised` without.
    pub method: Option<MethodRequest>,
    /// As in `method`, which OpenAI has put in its place.
    #[schema(value_type = Option<HyperparametersShape>)]
    pub hyperparameters: Option<Map<String, Value>>,
    /// The persona that is published, as a new version of it if it is there; without, a name of the job's own.
    pub suffix: Option<String>,
    /// Names the adapter's first numbers and the order of rows; 42 without.
    pub seed: Option<u64>,
    /// Not supported: empty or left out.
    pub integrations: Option<Vec<Value>>,
    /// Up to 16 texts of the client's own.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Not OpenAI's: the persona's system prompt, which stands before rows that bring none; without, that of the persona as it
    /// is.
    pub system_prompt: Option<String>,
    /// Not OpenAI's: what the adapter must measure up to before it is published; without, the `[eval]` table of the persona in
    /// the server's folder, if it has one.
    pub gate: Option<Thresholds>,
    /// Not OpenAI's: whether it publishes its adapter by itself once that has passed the gate; it does unless this is false. Then
    /// the adapter is kept until somebody publishes it.
    pub publish: Option<bool>,
    /// Not OpenAI's: up to 4 texts of at most 4096 bytes that the adapter is asked while it is trained; without, up to three questions
    /// of the rows that training does not see. Empty: nothing is asked.
    pub sample_prompts: Option<Vec<String>>,
}

/// How a job trains, and how much.
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

/// OpenAI's three, `beta` and `sft_weight` of pairs, and any setting of `lory train` by its name.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct HyperparametersShape {
    /// Passes over the rows, 1 to 10000; `auto` is 3.
    #[schema(value_type = Option<Value>)]
    n_epochs: Option<u64>,
    /// Rows of a step, 1 to 4096; `auto` is 8.
    #[schema(value_type = Option<Value>)]
    batch_size: Option<usize>,
    /// Multiplies the learning rate that goes with the base's width, 0.0001 to 1000; `auto` is 1.
    #[schema(value_type = Option<Value>)]
    learning_rate_multiplier: Option<f64>,
    /// Of `dpo`: how much a difference in log-probability counts; `auto` is 0.1.
    #[schema(value_type = Option<Value>)]
    beta: Option<f64>,
    /// Of `dpo`: the weight of the preferred answer's own loss; 1 without.
    sft_weight: Option<f64>,
    /// The learning rate itself, instead of a multiplier.
    lr: Option<f64>,
    /// Rank of the adapter; 16 without.
    rank: Option<usize>,
    /// The adapter's product is scaled by alpha / rank; 32 without.
    alpha: Option<f64>,
    /// Share of the adapter's inputs that are set to zero in a step.
    dropout: Option<f64>,
    /// Most tokens of a row; 1024 without.
    max_length: Option<usize>,
    /// Ends the run after so many steps.
    max_steps: Option<u64>,
}

/// A number, if the field is there and not `auto`.
fn number<T: serde::de::DeserializeOwned>(
    given: &mut Map<String, Value>,
    name: &'static str,
) -> Result<Option<T>, JobError> {
    match given.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word == AUTO => Ok(None),
        Some(value) => {
            let shown = value.to_string();
            serde_json::from_value(value).map(Some).map_err(|_| {
                let shown: String = shown.chars().take(40).collect();
                let message = format!("must be a number or \"auto\", not {shown}");
                JobError::invalid(format!("hyperparameters.{name}"), message)
            })
        }
    }
}

/// What the hyperparameters of a request come to.
struct Chosen {
    settings: TrainSettings,
    multiplier: f64,
}

fn chosen(
    method: Method,
    mut given: Map<String, Value>,
    seed: Option<u64>,
    hidden_size: usize,
) -> Result<Chosen, JobError> {
    let epochs = number(&mut given, "n_epochs")?;
    let batch = number(&mut given, "batch_size")?;
    let multiplier: Option<f64> = number(&mut given, "learning_rate_multiplier")?;
    let beta = number(&mut given, "beta")?;
    let sft_weight = number(&mut given, "sft_weight")?;
    let field = |name: &str| format!("hyperparameters.{name}");
    for (name, twin, both) in [
        ("n_epochs", "epochs", epochs.is_some()),
        ("batch_size", "batch_rows", batch.is_some()),
        ("learning_rate_multiplier", "lr", multiplier.is_some()),
    ] {
        if both && given.contains_key(twin) {
            let message = format!("stands beside {twin}, which means the same; give one of them");
            return Err(JobError::invalid(field(name), message));
        }
    }
    if given.contains_key("seed") && seed.is_some() {
        let message = "stands beside the job's own `seed`; give one of them";
        return Err(JobError::invalid(field("seed"), message));
    }
    for key in ["preference", "columns", "save_every"] {
        if given.contains_key(key) {
            let message = "is not for a job to set; leave it out";
            return Err(JobError::invalid(field(key), message));
        }
    }
    let mut settings: TrainSettings = serde_path_to_error::deserialize(Value::Object(given))
        .map_err(|error| {
            let path = error.path().to_string();
            let said = error.inner().to_string();
            match path.as_str() {
                "." => JobError::invalid("hyperparameters", said),
                path => JobError::invalid(field(path), said),
            }
        })?;
    settings.epochs = epochs.unwrap_or(settings.epochs);
    settings.batch_rows = batch.unwrap_or(settings.batch_rows);
    settings.seed = seed.unwrap_or(settings.seed);
    let default = default_lr(hidden_size);
    let given_lr = settings.lr;
    if let Some(multiplier) = multiplier {
        if !(1e-4..=1e3).contains(&multiplier) {
            let message = format!("must be from 0.0001 to 1000, not {multiplier}");
            return Err(JobError::invalid(
                field("learning_rate_multiplier"),
                message,
            ));
        }
        settings.lr = Some(default * multiplier);
    }
    match method {
        Method::Dpo => {
            let neutral = PreferenceSettings::default();
            settings.preference = Some(PreferenceSettings {
                beta: beta.unwrap_or(neutral.beta),
                sft_weight: sft_weight.unwrap_or(neutral.sft_weight),
                ..neutral
            });
        }
        Method::Supervised if beta.is_some() || sft_weight.is_some() => {
            let name = if beta.is_some() { "beta" } else { "sft_weight" };
            let message = "is a setting of the method dpo; leave it out, or ask for that method";
            return Err(JobError::invalid(field(name), message));
        }
        Method::Supervised => {}
    }
    let settings = settings.for_base(hidden_size);
    settings.check().map_err(|error| match error {
        TrainError::Setting { name, message } => {
            let name = match name.strip_prefix("preference.").unwrap_or(name) {
                "epochs" if epochs.is_some() => "n_epochs",
                "batch_rows" if batch.is_some() => "batch_size",
                name => name,
            };
            JobError::invalid(field(name), message)
        }
        error => JobError::invalid("hyperparameters", error.to_string()),
    })?;
    // As it was given, or as it follows from a rate that was.
    let multiplier = match (multiplier, given_lr) {
        (Some(multiplier), _) => multiplier,
        (None, Some(lr)) => lr / default,
        (None, None) => 1.0,
    };
    Ok(Chosen {
        settings,
        multiplier,
    })
}

impl NewJob {
    fn hyperparameters(&self) -> Result<(Method, Map<String, Value>), JobError> {
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
                "stand beside those of `method`; give them once",
            )),
            (Some(given), None) | (None, Some(given)) => Ok((method, given)),
            (None, None) => Ok((method, Map::new())),
        }
    }

    /// The job, for `caller`; its files are not read yet.
    ///
    /// # Errors
    /// The first thing wrong with it, by its field.
    pub(crate) fn record(
        &self,
        jobs: &BackgroundWork,
        caller: &Caller,
        who: &Viewer,
    ) -> Result<JobRecord, JobError> {
        let service = jobs.service();
        let base = service.base();
        let id = fresh_id("ftjob-")?;
        let persona = match &self.suffix {
            None => format!("ft-{}", &id[id.len() - 8..]),
            Some(suffix) => {
                if !is_persona_name(suffix) || suffix.chars().count() > MAX_SUFFIX {
                    let message = format!(
                        "names the persona, so it has 1 to {MAX_SUFFIX} of a-z, 0-9, - and _ and begins with a letter or a \
                         digit"
                    );
                    return Err(JobError::invalid("suffix", message));
                }
                if *suffix == base.name {
                    let message = "is the base's name; a persona needs another one";
                    return Err(JobError::invalid("suffix", message));
                }
                caller.check_persona(suffix)?;
                suffix.clone()
            }
        };
        if self
            .integrations
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        {
            let message = "are not supported; leave them out";
            return Err(JobError::invalid("integrations", message));
        }
        let metadata = self.metadata.clone().unwrap_or_default();
        let (pairs, key, value) = METADATA;
        let long =
            |(k, v): (&String, &String)| k.chars().count() > key || v.chars().count() > value;
        if metadata.len() > pairs || metadata.iter().any(long) {
            let message = format!(
                "has at most {pairs} pairs, keys of {key} and values of {value} characters"
            );
            return Err(JobError::invalid("metadata", message));
        }
        if let Some(prompt) = &self.system_prompt
            && prompt.len() > MAX_SYSTEM_PROMPT
        {
            let message = format!("is longer than {MAX_SYSTEM_PROMPT} bytes");
            return Err(JobError::invalid("system_prompt", message));
        }
        sample_generation::check(self.sample_prompts.as_deref().unwrap_or_default(), base)?;
        let training = jobs.files.find(who, &self.training_file, "training_file")?;
        let validation = match &self.validation_file {
            None => None,
            Some(id) => Some(jobs.files.find(who, id, "validation_file")?),
        };
        let (method, given) = self.hyperparameters()?;
        for (file, field) in [
            (Some(&training), "training_file"),
            (validation.as_ref(), "validation_file"),
        ] {
            let Some(file) = file else { continue };
            let message = match (method, file.pairs) {
                (Method::Supervised, true) => {
                    "its rows are pairs of answers; ask for the method dpo, or give rows with one answer"
                }
                (Method::Dpo, false) => {
                    "its rows have no `chosen` and `rejected` answers, which the method dpo is about"
                }
                _ => continue,
            };
            return Err(JobError::invalid(field, message));
        }
        let Chosen {
            settings,
            multiplier,
        } = chosen(method, given, self.seed, base.model.config().hidden_size)?;

        let personas = service.personas();
        let start = match self.model.as_str() {
            name if name == base.name || (name == "base" && personas.get("base").is_none()) => {
                caller.check_base(&base.name)?;
                None
            }
            name => Some(start(name, &personas, caller)?),
        };
        let there = personas.get(&persona);
        if there.is_none() && personas.aliases().any(|(alias, _)| alias == persona) {
            let message = "is an alias of another persona; name that one, or take another name";
            return Err(JobError::invalid("suffix", message));
        }
        let system_prompt = self
            .system_prompt
            .clone()
            .or_else(|| there.and_then(|persona| persona.system_prompt.clone()));
        let in_folder = service.catalog().folder().get(&persona);
        let mut thresholds = match &self.gate {
            Some(given) => {
                given
                    .check()
                    .map_err(|(field, message)| JobError::invalid(field, message))?;
                Some(given.clone())
            }
            None => in_folder
                .and_then(|persona| persona.eval.as_ref())
                .map(Thresholds::of),
        };
        if let Some(thresholds) = &mut thresholds {
            baselines::choose(service, caller, &persona, thresholds, self.gate.is_some())?;
        }
        Ok(JobRecord {
            id,
            number: 0,
            owner: who.name().map(str::to_owned),
            created_at: now(),
            finished_at: None,
            status: JobStatus::ValidatingFiles,
            model: self.model.clone(),
            persona,
            named: self.suffix.is_some(),
            training_file: training.id,
            validation_file: validation.map(|file| file.id),
            method,
            learning_rate_multiplier: multiplier,
            settings,
            start,
            system_prompt,
            thresholds,
            checked: Vec::new(),
            publish: self.publish != Some(false),
            kept: false,
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
}

/// The adapter of the persona that `model` names.
fn start(model: &str, personas: &registry::Personas, caller: &Caller) -> Result<Start, JobError> {
    let refuse = |message: String| JobError::invalid("model", message);
    let parts = spec::parse(model).map_err(|error| refuse(error.to_string()))?;
    let [part] = parts.as_slice() else {
        return Err(refuse(
            "is a blend; name one persona, or the base".to_owned(),
        ));
    };
    if part.scale.is_some() {
        return Err(refuse("has a scale; name the persona alone".to_owned()));
    }
    caller.check_persona(&part.name)?;
    let persona = personas
        .find(part)
        .map_err(|error| refuse(error.to_string()))?;
    let Some(adapter) = &persona.adapter else {
        return Err(refuse(format!(
            "{} has no adapter that training could go on from; name the base",
            persona.name
        )));
    };
    Ok(Start {
        persona: format!("{}@{}", persona.name, persona.version),
        sha256: adapter.sha256_hex(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(method: Method, given: Value) -> Result<Chosen, String> {
        let given = given.as_object().cloned().unwrap();
        chosen(method, given, None, 576).map_err(|error| error.to_string())
    }

    #[test]
    fn openais_words_and_our_own_come_to_settings() {
        let auto =
            json!({"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"});
        let plain = of(Method::Supervised, auto).unwrap();
        assert_eq!(plain.settings, TrainSettings::default().for_base(576));
        assert_eq!(plain.multiplier, 1.0);
        let given = json!({"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0, "rank": 8, "alpha": 8.0});
        let Chosen {
            settings,
            multiplier,
        } = of(Method::Supervised, given).unwrap();
        assert_eq!(
            (
                settings.epochs,
                settings.batch_rows,
                settings.rank,
                multiplier
            ),
            (2, 4, 8, 2.0)
        );
        let dpo = of(Method::Dpo, json!({"beta": 0.2})).unwrap().settings;
        assert_eq!(dpo.preference.unwrap().beta, 0.2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (given, said) in [
            (
                json!({"n_epochs": "many"}),
                "hyperparameters.n_epochs: must be a number or \"auto\"",
            ),
            (
                json!({"n_epochs": 0}),
                "hyperparameters.n_epochs: is 0; it must be between 1 and 10000",
            ),
            (
                json!({"batch_size": 5000}),
                "hyperparameters.batch_size: is 5000",
            ),
            (json!({"rank": 0}), "hyperparameters.rank: is 0"),
            (json!({"ranks": 4}), "unknown field `ranks`"),
            (
                json!({"learning_rate_multiplier": 0}),
                "must be from 0.0001 to 1000, not 0",
            ),
            (
                json!({"learning_rate_multiplier": 1, "lr": 0.1}),
                "stands beside lr",
            ),
            (json!({"beta": 0.1}), "is a setting of the method dpo"),
            (
                json!({"save_every": 1}),
                "hyperparameters.save_every: is not for a job",
            ),
            (json!({"lr": "fast"}), "hyperparameters.lr"),
        ] {
            let error = of(Method::Supervised, given).err().unwrap();
            assert!(error.contains(said), "{error}");
        }
    }
}
