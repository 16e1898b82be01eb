//! The configuration of a model in a Hugging Face folder's `config.json`.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::families::{self, Family, SUPPORTED, SlidingWindow};
use super::rope::Llama3;
use super::{
    ConfigError, MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH,
    ModelConfig, RopeStyle,
};

impl ModelConfig {
    /// Reads and checks the configuration of a Hugging Face folder; `origin` names its `config.json` in errors.
    ///
    /// # Errors
    /// [`ConfigError`]: a field missing or out of its limits, or a feature that is not supported, by name.
    pub fn from_json(config: &Value, origin: &str) -> Result<ModelConfig, ConfigError> {
        let Some(map) = config.as_object() else {
            return Err(ConfigError::Invalid {
                origin: origin.to_owned(),
                key: "(whole file)".to_owned(),
                problem: "is not a JSON object".to_owned(),
            });
        };
        let fields = ConfigFields {
            map,
            origin,
            within: "",
        };
        let family = fields.family()?;
        fields.refuse_unsupported(family)?;

        let hidden_size = fields.number("hidden_size", 1..=MAX_WIDTH)?;
        let heads = fields.number("num_attention_heads", 1..=MAX_HEADS)?;
        let kv_heads = fields
            .optional_number("num_key_value_heads", 1..=MAX_HEADS)?
            .unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let problem =
                format!("{heads} heads cannot share {kv_heads} key and value heads evenly");
            return Err(fields.invalid("num_key_value_heads", problem));
        }
        let head_dim = match fields.optional_number("head_dim", 2..=MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let problem =
                    format!("missing, and {hidden_size} is not a multiple of {heads} heads");
                return Err(fields.invalid("head_dim", problem));
            }
        };
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            let problem = format!("a head of {head_dim} is not an even width up to {MAX_HEAD_DIM}");
            return Err(fields.invalid("head_dim", problem));
        }
        let (rope_theta, rope_freq_factors) = fields.rope(head_dim)?;
        Ok(ModelConfig {
            architecture: family.architecture.to_owned(),
            hidden_size,
            layers: fields.number("num_hidden_layers", 1..=MAX_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: fields.number("intermediate_size", 1..=MAX_WIDTH)?,
            vocab_size: fields.number("vocab_size", 1..=MAX_VOCAB)?,
            context_length: fields.context_length(family.sliding_window)?,
            rope_theta: rope_theta as f32,
            rope_style: RopeStyle::HalfSplit,
            rope_freq_factors,
            rms_norm_eps: fields.float("rms_norm_eps", None, 1e-12..=1.0)? as f32,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            qkv_bias: family.qkv_bias,
            qk_norm: family.qk_norm,
        })
    }
}

/// Typed access to the fields of an object. A field that is null counts as absent.
struct ConfigFields<'a> {
    map: &'a Map<String, Value>,
    origin: &'a str,
    /// The path of the object with a dot at its end; empty for the whole file.
    within: &'a str,
}

impl<'a> ConfigFields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn invalid(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Invalid {
            origin: self.origin.to_owned(),
            key: format!("{}{key}", self.within),
            problem,
        }
    }

    fn unsupported(&self, feature: String) -> ConfigError {
        ConfigError::Unsupported {
            origin: self.origin.to_owned(),
            feature,
            instead: SUPPORTED,
        }
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| self.invalid(key, "missing".to_owned()))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.get(key)
            .map(|value| {
                value
                    .as_str()
                    .ok_or_else(|| self.invalid(key, format!("{} is not a string", short(value))))
            })
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.invalid(key, format!("{} is not a bool", short(value)))),
        }
    }

    fn optional_number(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (least, most) = (range.start(), range.end());
                let problem = format!("{} is not a number from {least} to {most}", short(value));
                Err(self.invalid(key, problem))
            }
        }
    }

    fn number(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        self.required(key, self.optional_number(key, range)?)
    }

    fn float(
        &self,
        key: &str,
        default: Option<f64>,
        range: RangeInclusive<f64>,
    ) -> Result<f64, ConfigError> {
        let Some(value) = self.get(key) else {
            return self.required(key, default);
        };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(number),
            _ => {
                let (least, most) = (range.start(), range.end());
                let problem = format!("{} is not a number from {least} to {most}", short(value));
                Err(self.invalid(key, problem))
            }
        }
    }

    fn family(&self) -> Result<&'static Family, ConfigError> {
        let found = self.required("model_type", self.text("model_type")?)?;
        let Some(family) = families::of_model_type(found) else {
            let experts = ["num_experts", "num_local_experts", "n_routed_experts"];
            let what = match experts.iter().find(|key| self.get(key).is_some()) {
                Some(key) => format!("model_type {found:?}, a mixture of experts ({key}),"),
                None => format!("model_type {found:?}"),
            };
            return Err(self.unsupported(what));
        };
        let class = family.class;
        if let Some(classes) = self.get("architectures").and_then(Value::as_array)
            && !classes.iter().any(|name| name.as_str() == Some(class))
        {
            let classes = short(&Value::Array(classes.clone()));
            return Err(self.unsupported(format!("architectures {classes} (not {class})")));
        }
        Ok(family)
    }

    /// Refuses every feature with which the plain decoder would compute wrong results.
    fn refuse_unsupported(&self, family: &Family) -> Result<(), ConfigError> {
        if let Some(quantization) = self.get("quantization_config") {
            let method = quantization.get("quant_method").and_then(Value::as_str);
            return Err(ConfigError::Unsupported {
                origin: self.origin.to_owned(),
                feature: format!(
                    "quantization_config ({})",
                    method.map_or_else(|| short(quantization), str::to_owned)
                ),
                instead: "of quantized weights only GGUF files are read: use the model that it was made of, or a GGUF file of that",
            });
        }
        let absent = [
            "num_experts",
            "num_local_experts",
            "text_config",
            "vision_config",
            "no_rope_layers",
        ];
        if let Some(key) = absent.iter().find(|key| self.get(key).is_some()) {
            return Err(self.unsupported(format!("{key} in the configuration")));
        }
        // Qwen2 ignores this field; in other models it means a bias of o, too.
        if !family.qkv_bias && self.flag("attention_bias")? {
            return Err(self.unsupported("attention_bias = true".to_owned()));
        }
        if self.flag("mlp_bias")? {
            return Err(self.unsupported("mlp_bias = true".to_owned()));
        }
        if let Some(act) = self.text("hidden_act")?
            && !matches!(act, "silu" | "swish")
        {
            return Err(self.unsupported(format!("hidden_act {act:?}")));
        }
        if self.float("partial_rotary_factor", Some(1.0), 0.0..=1.0)? != 1.0 {
            return Err(self.unsupported("partial_rotary_factor below 1".to_owned()));
        }
        if let Some(layers) = self.get("layer_types").and_then(Value::as_array)
            && let Some(other) = layers
                .iter()
                .find(|kind| !matches!(kind.as_str(), Some("full_attention" | "sliding_attention")))
        {
            return Err(self.unsupported(format!("layer_types with {}", short(other))));
        }
        Ok(())
    }

    /// The context, or the sliding window if that is shorter: up to its length a window has no effect.
    fn context_length(&self, sliding_window: SlidingWindow) -> Result<usize, ConfigError> {
        let context = self.number("max_position_embeddings", 1..=MAX_CONTEXT)?;
        let window = self.optional_number("sliding_window", 0..=MAX_CONTEXT)?;
        let used = match sliding_window {
            SlidingWindow::Always => true,
            SlidingWindow::Never => false,
            SlidingWindow::IfEnabled => self.flag("use_sliding_window")?,
        };
        match window {
            Some(window) if window > 0 && used => Ok(context.min(window)),
            _ => Ok(context),
        }
    }

    /// The base of the rotary frequencies, and their divisors. Newer files have both in `rope_parameters`.
    fn rope(&self, head_dim: usize) -> Result<(f64, Option<Vec<f32>>), ConfigError> {
        let key = ["rope_parameters", "rope_scaling"]
            .into_iter()
            .find(|key| self.get(key).is_some());
        let theta = self.float("rope_theta", Some(10_000.0), 1.0..=1e12)?;
        let Some(key) = key else {
            return Ok((theta, None));
        };
        let Some(map) = self.get(key).and_then(Value::as_object) else {
            return Err(self.invalid(key, "is not an object".to_owned()));
        };
        let within = format!("{key}.");
        let rope = ConfigFields {
            map,
            origin: self.origin,
            within: &within,
        };
        let theta = rope.float("rope_theta", Some(theta), 1.0..=1e12)?;
        if rope.float("partial_rotary_factor", Some(1.0), 0.0..=1.0)? != 1.0 {
            return Err(self.unsupported(format!("{within}partial_rotary_factor below 1")));
        }
        let kind = match rope.text("rope_type")? {
            Some(kind) => kind,
            None => rope.text("type")?.unwrap_or("default"),
        };
        let factors = match kind {
            "default" => None,
            "linear" => {
                let factor = rope.float("factor", None, 1.0..=1024.0)?;
                Some(vec![factor as f32; head_dim / 2])
            }
            "llama3" => {
                let original = "original_max_position_embeddings";
                let scaling = Llama3 {
                    factor: rope.float("factor", None, 1.0..=1024.0)?,
                    low_freq_factor: rope.float("low_freq_factor", None, 1e-3..=1e3)?,
                    high_freq_factor: rope.float("high_freq_factor", None, 1e-3..=1e3)?,
                    original_context: rope.float(original, None, 1.0..=1e9)?,
                };
                if scaling.high_freq_factor <= scaling.low_freq_factor {
                    let problem = format!(
                        "{} is not above low_freq_factor {}",
                        scaling.high_freq_factor, scaling.low_freq_factor
                    );
                    return Err(rope.invalid("high_freq_factor", problem));
                }
                Some(scaling.divisors(head_dim, theta))
            }
            other => return Err(self.unsupported(format!("{within}rope_type {other:?}"))),
        };
        Ok((theta, factors))
    }
}

/// A value as JSON, cut if it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
