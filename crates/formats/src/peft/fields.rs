//! The fields of `adapter_config.json`: those that are read, those without effect, and those that are refused.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::PeftError;
use super::limits::{MAX_LAYERS, MAX_RANK};
use super::patterns::{MAX_EXPRESSIONS, TargetModules};

/// Fields without effect on the weights.
const HARMLESS: [&str; 11] = [
    "auto_mapping",
    // Stored embeddings and heads are compared with the base's, tied or not.
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    // Saved modules are compared with the base's.
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
];

/// Fields read below.
const READ: [&str; 15] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Fields that must be absent, null, false or empty, and what to do instead.
const REFUSED: [(&str, &str); 12] = [
    (
        "use_dora",
        "DoRA rescales each output of the base's linears by a norm of that adapter's merged weights, which rows of \
         several adapters in one batch do not share: train with use_dora=False",
    ),
    ("use_qalora", "train with use_qalora=False"),
    ("use_bdlora", "train without it"),
    ("lora_bias", "train with lora_bias=False"),
    (
        "fan_in_fan_out",
        "the linears of this model family are stored outputs by inputs",
    ),
    (
        "trainable_token_indices",
        "only LoRA weights are read: train without new tokens",
    ),
    ("target_parameters", "name modules in target_modules"),
    ("layer_replication", "the base is run as it is"),
    (
        "alora_invocation_tokens",
        "adapters are active on the whole sequence",
    ),
    ("arrow_config", "routed adapters are not run"),
    ("corda_config", "it changes the base's weights"),
    ("megatron_config", "parallel layers are not run"),
];

/// Typed access to the object's fields.
pub(super) struct AdapterFields<'a> {
    pub(super) object: &'a Map<String, Value>,
    pub(super) path: &'a Path,
}

impl<'a> AdapterFields<'a> {
    pub(super) fn error(&self, field: &str, problem: String) -> PeftError {
        PeftError::Field {
            path: self.path.to_owned(),
            field: field.to_owned(),
            problem,
        }
    }

    /// The value, unless absent or null.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn required(&self, field: &str) -> Result<&'a Value, PeftError> {
        self.get(field)
            .ok_or_else(|| self.error(field, "is missing".to_owned()))
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<String>, PeftError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.error(field, "must be a string".to_owned())),
        }
    }

    pub(super) fn rank(&self, field: &str, value: &Value) -> Result<usize, PeftError> {
        match value.as_u64() {
            Some(rank) if (1..=MAX_RANK as u64).contains(&rank) => Ok(rank as usize),
            _ => Err(self.error(
                field,
                format!("{} is not a rank from 1 to {MAX_RANK}", shorten(value)),
            )),
        }
    }

    pub(super) fn number(&self, field: &str, value: &Value) -> Result<f64, PeftError> {
        match value.as_f64() {
            Some(number) if number.abs() <= 1e9 => Ok(number),
            _ => Err(self.error(
                field,
                format!("{} is not a number up to 1e9", shorten(value)),
            )),
        }
    }

    fn unsupported(&self, field: &str, value: &Value, instead: &str) -> PeftError {
        PeftError::Unsupported {
            path: self.path.to_owned(),
            field: field.to_owned(),
            value: shorten(value),
            instead: instead.to_owned(),
        }
    }

    pub(super) fn refuse_unsupported(&self) -> Result<(), PeftError> {
        for (field, value, wanted) in [
            ("peft_type", self.required("peft_type")?, "LORA"),
            ("bias", self.get("bias").unwrap_or(&json!("none")), "none"),
            (
                "task_type",
                self.get("task_type").unwrap_or(&json!("CAUSAL_LM")),
                "CAUSAL_LM",
            ),
        ] {
            if value != wanted {
                return Err(self.unsupported(field, value, &format!("only {wanted:?} is")));
            }
        }
        // These subtract their initial weights from the base, so the file alone is not the trained update.
        if let Some(Value::String(init)) = self.get("init_lora_weights")
            && ["pissa", "olora", "corda", "loftq", "lora_ga"]
                .iter()
                .any(|method| init.starts_with(method))
        {
            let instead =
                "it changes the base's weights: convert the adapter to plain LoRA when saving it";
            return Err(self.unsupported("init_lora_weights", &json!(init), instead));
        }
        for (field, value) in self.object {
            let name = field.as_str();
            if is_empty(value) || READ.contains(&name) || HARMLESS.contains(&name) {
                continue;
            }
            let row = REFUSED.iter().find(|(refused, _)| *refused == name);
            let instead = row.map_or(
                "the field is unknown, and it may change what the weights mean",
                |row| row.1,
            );
            return Err(self.unsupported(name, value, instead));
        }
        Ok(())
    }

    fn strings(&self, field: &str, value: &Value) -> Result<Vec<String>, PeftError> {
        let error = || self.error(field, "must be a string or a list of strings".to_owned());
        match value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned).ok_or_else(error))
                .collect(),
            _ => Err(error()),
        }
    }

    pub(super) fn target_modules(&self) -> Result<TargetModules, PeftError> {
        self.modules("target_modules", self.required("target_modules")?)
    }

    pub(super) fn exclude_modules(&self) -> Result<Option<TargetModules>, PeftError> {
        let field = "exclude_modules";
        let value = self.get(field).filter(|value| !is_empty(value));
        match value {
            // It has no special meaning here.
            Some(Value::String(text)) => Ok(Some(TargetModules::Expression(text.clone()))),
            Some(value) => self.modules(field, value).map(Some),
            None => Ok(None),
        }
    }

    fn modules(&self, field: &str, value: &Value) -> Result<TargetModules, PeftError> {
        match value {
            Value::String(text) if text.eq_ignore_ascii_case("all-linear") => {
                Ok(TargetModules::AllLinear)
            }
            Value::String(text) => Ok(TargetModules::Expression(text.clone())),
            list => {
                let mut names = self.strings(field, list)?;
                names.sort();
                names.dedup();
                Ok(TargetModules::List(names))
            }
        }
    }

    pub(super) fn patterns<T>(
        &self,
        field: &str,
        read: impl Fn(&str, &Value) -> Result<T, PeftError>,
    ) -> Result<Vec<(String, T)>, PeftError> {
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(key, value)| Ok((key.clone(), read(&format!("{field}[{key:?}]"), value)?)))
                .collect(),
            Some(_) => Err(self.error(field, "must be an object".to_owned())),
        }
    }

    pub(super) fn layers_to_transform(&self) -> Result<Vec<usize>, PeftError> {
        let field = "layers_to_transform";
        let layer = |value: &Value| {
            let number = value.as_u64().filter(|&number| number < MAX_LAYERS as u64);
            number.map(|number| number as usize).ok_or_else(|| {
                self.error(
                    field,
                    format!(
                        "{} is not a layer from 0 to {}",
                        shorten(value),
                        MAX_LAYERS - 1
                    ),
                )
            })
        };
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(layers)) if layers.len() <= MAX_LAYERS => {
                layers.iter().map(layer).collect()
            }
            Some(value) => Ok(vec![layer(value)?]),
        }
    }

    pub(super) fn layers_pattern(&self) -> Result<Vec<String>, PeftError> {
        let patterns = match self.get("layers_pattern") {
            None => Vec::new(),
            Some(value) if is_empty(value) => Vec::new(),
            Some(value) => self.strings("layers_pattern", value)?,
        };
        if patterns.len() > MAX_EXPRESSIONS {
            return Err(self.error(
                "layers_pattern",
                format!("more than {MAX_EXPRESSIONS} patterns"),
            ));
        }
        Ok(patterns)
    }
}

/// Null, false, or empty: the same as absent.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A value for a message, cut if it is long.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
