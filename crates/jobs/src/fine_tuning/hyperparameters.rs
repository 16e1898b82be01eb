//! The hyperparameters of a request: OpenAI's names and those of `lory train`, made into training settings.

use formats::config::ModelConfig;
use formats::peft::PairShape;
use serde::Serialize;
use serde_json::{Map, Value};
use train::PreferenceSettings;
use train::settings::default_lr;
use train::{TrainError, TrainSettings};

use crate::error::JobError;
use crate::records::job::Method;

/// The value that leaves a number to the server.
const AUTO: &str = "auto";
/// Settings of `lory train` that a job cannot set.
const NOT_FOR_JOBS: [&str; 3] = ["preference", "columns", "save_every"];

/// Settings that an adapter fixes if a job continues it.
const ADAPTER_FIELDS: [&str; 4] = ["rank", "alpha", "rslora", "target_modules"];

/// OpenAI's three hyperparameters, `beta` and `sft_weight` of `dpo`, and any setting of `lory train` by its name.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct HyperparametersShape {
    /// Passes over the rows, 1 to 10000; `auto` is 3.
    #[schema(value_type = Option<Value>)]
    n_epochs: Option<u64>,
    /// Rows per optimizer step, 1 to 4096; `auto` is 8.
    #[schema(value_type = Option<Value>)]
    batch_size: Option<usize>,
    /// Multiplies the default learning rate of the base's width, 0.0001 to 1000; `auto` is 1.
    #[schema(value_type = Option<Value>)]
    learning_rate_multiplier: Option<f64>,
    /// For `dpo`: the weight of a difference in log-probability; `auto` is 0.1.
    #[schema(value_type = Option<Value>)]
    beta: Option<f64>,
    /// For `dpo`: the weight of the chosen answer's own loss. Default: 1.
    sft_weight: Option<f64>,
    /// The learning rate, instead of a multiplier.
    lr: Option<f64>,
    /// The adapter's rank. Default: 16, or the rank of the adapter that the job continues, which cannot change.
    rank: Option<usize>,
    /// The adapter's product is scaled by alpha / rank. Default: 32, or as in the adapter that the job continues, which cannot change.
    alpha: Option<f64>,
    /// The share of the adapter's inputs that are set to zero in a step.
    dropout: Option<f64>,
    /// The most tokens of a row. Default: 1024.
    max_length: Option<usize>,
    /// Ends the run after this many steps.
    max_steps: Option<u64>,
}

/// Training settings from the hyperparameters of a request.
pub(crate) struct Hyperparameters {
    pub settings: TrainSettings,
    /// The learning rate divided by the base's default.
    pub learning_rate_multiplier: f64,
    /// The fields of the request that an adapter fixes if the job continues it, of [`ADAPTER_FIELDS`].
    adapter_fields: Vec<&'static str>,
}

impl Hyperparameters {
    /// Makes settings from the fields of a request, for a base of this width.
    ///
    /// # Errors
    /// [`JobError::Invalid`] with the first field that is wrong.
    pub fn parse(
        method: Method,
        mut fields: Map<String, Value>,
        seed: Option<u64>,
        hidden_size: usize,
    ) -> Result<Hyperparameters, JobError> {
        let given = OpenAiFields::take(&mut fields)?;
        given.check_duplicates(&fields, seed)?;
        if let Some(name) = NOT_FOR_JOBS.iter().find(|name| fields.contains_key(**name)) {
            return Err(invalid(name, "cannot be set for a job; leave it out"));
        }
        let is_given = |name: &&str| fields.contains_key(*name);
        let adapter_fields = ADAPTER_FIELDS.into_iter().filter(is_given).collect();
        let mut settings = from_fields(fields)?;
        settings.epochs = given.n_epochs.unwrap_or(settings.epochs);
        settings.batch_rows = given.batch_size.unwrap_or(settings.batch_rows);
        settings.seed = seed.unwrap_or(settings.seed);
        let default = default_lr(hidden_size);
        let learning_rate_multiplier = match (given.learning_rate_multiplier, settings.lr) {
            (Some(multiplier), _) => multiplier,
            (None, Some(lr)) => lr / default,
            (None, None) => 1.0,
        };
        if let Some(multiplier) = given.learning_rate_multiplier {
            if !(1e-4..=1e3).contains(&multiplier) {
                let message = format!("must be from 0.0001 to 1000, not {multiplier}");
                return Err(invalid("learning_rate_multiplier", message));
            }
            settings.lr = Some(default * multiplier);
        }
        settings.preference = given.preference(method)?;
        let settings = settings.for_base(hidden_size);
        settings
            .check()
            .map_err(|error| given.settings_error(error))?;
        Ok(Hyperparameters {
            settings,
            learning_rate_multiplier,
            adapter_fields,
        })
    }

    /// Takes rank, scale and modules from an adapter that the job continues, with the pairs `shapes`, on a base of `config`.
    ///
    /// # Errors
    /// [`JobError::Invalid`] with the first field of the request that differs from the adapter, or with `model` if no job can continue it.
    pub fn continue_adapter(
        &mut self,
        shapes: &[PairShape],
        config: &ModelConfig,
    ) -> Result<(), JobError> {
        let fixed = self.settings.for_adapter(shapes, config);
        let fixed = fixed.map_err(|reason| {
            JobError::invalid(
                "model",
                format!("has an adapter that no job can continue: {reason}"),
            )
        })?;
        for name in &self.adapter_fields {
            let given = &self.settings;
            let scale = |rslora| {
                let settings = TrainSettings {
                    rank: fixed.rank,
                    alpha: given.alpha,
                    rslora,
                    ..TrainSettings::default()
                };
                settings.scale()
            };
            let (differs, has) = match *name {
                "rank" => (given.rank != fixed.rank, format!("rank {}", fixed.rank)),
                "target_modules" => {
                    let differs = given.modules().ok() != fixed.modules().ok();
                    (differs, fixed.target_modules.join(", "))
                }
                _ => {
                    let differs = scale(given.rslora) != fixed.scale();
                    (
                        differs,
                        format!(
                            "the scale {}, which is alpha {}",
                            fixed.scale(),
                            fixed.alpha
                        ),
                    )
                }
            };
            if differs {
                let message =
                    format!("cannot change: the adapter of `model` has {has}; leave it out");
                return Err(invalid(name, message));
            }
        }
        self.settings = fixed;
        Ok(())
    }
}

/// The fields that are not settings of `lory train`.
struct OpenAiFields {
    n_epochs: Option<u64>,
    batch_size: Option<usize>,
    learning_rate_multiplier: Option<f64>,
    beta: Option<f64>,
    sft_weight: Option<f64>,
}

impl OpenAiFields {
    /// Takes them out of `fields`.
    fn take(fields: &mut Map<String, Value>) -> Result<OpenAiFields, JobError> {
        Ok(OpenAiFields {
            n_epochs: number(fields, "n_epochs")?,
            batch_size: number(fields, "batch_size")?,
            learning_rate_multiplier: number(fields, "learning_rate_multiplier")?,
            beta: number(fields, "beta")?,
            sft_weight: number(fields, "sft_weight")?,
        })
    }

    /// Refuses settings that are given twice, under two names.
    fn check_duplicates(
        &self,
        fields: &Map<String, Value>,
        seed: Option<u64>,
    ) -> Result<(), JobError> {
        for (name, setting, is_given) in [
            ("n_epochs", "epochs", self.n_epochs.is_some()),
            ("batch_size", "batch_rows", self.batch_size.is_some()),
            (
                "learning_rate_multiplier",
                "lr",
                self.learning_rate_multiplier.is_some(),
            ),
        ] {
            if is_given && fields.contains_key(setting) {
                let message = format!("sets the same as {setting}; give one of them");
                return Err(invalid(name, message));
            }
        }
        if fields.contains_key("seed") && seed.is_some() {
            let message = "is also given as the job's `seed`; give one of them";
            return Err(invalid("seed", message));
        }
        Ok(())
    }

    /// The preference settings of `method`.
    fn preference(&self, method: Method) -> Result<Option<PreferenceSettings>, JobError> {
        let default = PreferenceSettings::default();
        match method {
            Method::Dpo => Ok(Some(PreferenceSettings {
                beta: self.beta.unwrap_or(default.beta),
                sft_weight: self.sft_weight.unwrap_or(default.sft_weight),
                ..default
            })),
            Method::Supervised => {
                let name = match (self.beta, self.sft_weight) {
                    (Some(_), _) => "beta",
                    (None, Some(_)) => "sft_weight",
                    (None, None) => return Ok(None),
                };
                let message = "is a setting of the method dpo; leave it out, or use that method";
                Err(invalid(name, message))
            }
        }
    }

    /// An error of the settings, under the field names of the request.
    fn settings_error(&self, error: TrainError) -> JobError {
        match error {
            TrainError::Setting { name, message } => {
                let name = match name.strip_prefix("preference.").unwrap_or(name) {
                    "epochs" if self.n_epochs.is_some() => "n_epochs",
                    "batch_rows" if self.batch_size.is_some() => "batch_size",
                    name => name,
                };
                invalid(name, message)
            }
            error => JobError::invalid("hyperparameters", error.to_string()),
        }
    }
}

fn invalid(name: &str, message: impl Into<String>) -> JobError {
    JobError::invalid(format!("hyperparameters.{name}"), message)
}

/// Takes a number out of `fields`; `None` if it is missing, null or `auto`.
fn number<T: serde::de::DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &'static str,
) -> Result<Option<T>, JobError> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word == AUTO => Ok(None),
        Some(value) => {
            let shown = value.to_string();
            serde_json::from_value(value).map(Some).map_err(|_| {
                let shown: String = shown.chars().take(40).collect();
                invalid(name, format!("must be a number or \"auto\", not {shown}"))
            })
        }
    }
}

/// The settings of `lory train` by their names.
fn from_fields(fields: Map<String, Value>) -> Result<TrainSettings, JobError> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        match path.as_str() {
            "." => JobError::invalid("hyperparameters", message),
            path => invalid(path, message),
        }
    })
}

#[cfg(test)]
mod tests {
    use formats::config::RopeStyle;
    use formats::peft::Module;
    use serde_json::json;
    use train::lora_init::target_linears;

    use super::*;

    fn parse(method: Method, fields: Value) -> Result<Hyperparameters, String> {
        let fields = fields.as_object().cloned().unwrap();
        Hyperparameters::parse(method, fields, None, 576).map_err(|error| error.to_string())
    }

    #[test]
    fn openai_names_and_setting_names_are_accepted() {
        let auto =
            json!({"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"});
        let plain = parse(Method::Supervised, auto).unwrap();
        assert_eq!(plain.settings, TrainSettings::default().for_base(576));
        assert_eq!(plain.learning_rate_multiplier, 1.0);
        let given = json!({"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0, "rank": 8, "alpha": 8.0});
        let Hyperparameters {
            settings,
            learning_rate_multiplier: multiplier,
            ..
        } = parse(Method::Supervised, given).unwrap();
        assert_eq!(
            (
                settings.epochs,
                settings.batch_rows,
                settings.rank,
                multiplier
            ),
            (2, 4, 8, 2.0)
        );
        let dpo = parse(Method::Dpo, json!({"beta": 0.2})).unwrap().settings;
        assert_eq!(dpo.preference.unwrap().beta, 0.2);
    }

    #[test]
    fn invalid_fields_are_rejected_by_name() {
        for (fields, expected) in [
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
                "sets the same as lr",
            ),
            (json!({"beta": 0.1}), "is a setting of the method dpo"),
            (
                json!({"save_every": 1}),
                "hyperparameters.save_every: cannot be set for a job",
            ),
            (json!({"lr": "fast"}), "hyperparameters.lr"),
        ] {
            let error = parse(Method::Supervised, fields).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }
    #[test]
    fn settings_that_differ_from_the_continued_adapter_are_rejected_by_name() {
        let config = ModelConfig {
            architecture: "llama".to_owned(),
            hidden_size: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate_size: 128,
            vocab_size: 512,
            context_length: 512,
            rope_theta: 10_000.0,
            rope_style: RopeStyle::Interleaved,
            rope_freq_factors: None,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
        };
        let modules = Module::ALL.map(|module| module.name().to_owned());
        let linears = target_linears(&config, &Module::ALL);
        let shapes: Vec<PairShape> = linears.iter().map(|linear| linear.pair(4, 2.0)).collect();
        let continued = |fields: Value| {
            let mut parsed = parse(Method::Supervised, fields).unwrap();
            let result = parsed.continue_adapter(&shapes, &config);
            result
                .map(|()| parsed.settings)
                .map_err(|error| error.to_string())
        };
        for fields in [
            json!({}),
            json!({"rank": 4}),
            json!({"rank": 4, "alpha": 8}),
            json!({"alpha": 4, "rslora": true}),
            json!({"target_modules": modules}),
        ] {
            let settings = continued(fields).unwrap();
            assert_eq!(
                (settings.rank, settings.alpha, settings.rslora),
                (4, 8.0, false)
            );
            assert_eq!(settings.target_modules.len(), 7);
        }
        for (fields, expected) in [
            (
                json!({"rank": 8}),
                "hyperparameters.rank: cannot change: the adapter of `model` has rank 4; leave it out",
            ),
            (
                json!({"rank": 4, "alpha": 16}),
                "hyperparameters.alpha: cannot change: the adapter of `model` has the scale 2, which is alpha 8; leave it out",
            ),
            (
                json!({"rslora": true}),
                "hyperparameters.rslora: cannot change",
            ),
            (
                json!({"target_modules": ["q_proj"]}),
                "hyperparameters.target_modules: cannot change: the adapter of `model` has q_proj, k_proj",
            ),
        ] {
            let error = continued(fields).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let mut parsed = parse(Method::Supervised, json!({})).unwrap();
        let error = parsed.continue_adapter(&shapes[1..], &config).unwrap_err();
        assert_eq!(error.field(), Some("model"));
        assert!(error.to_string().contains("leaves no layer out"), "{error}");
    }
}
