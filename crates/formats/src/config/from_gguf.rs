//! The configuration of a model in a GGUF's metadata and tensor list.

use super::families::{self, Family, SUPPORTED};
use super::{
    ConfigError, MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH,
    ModelConfig,
};
use crate::gguf::{GgmlType, Gguf, dequantize};

impl ModelConfig {
    /// Reads and checks the configuration of a model.
    ///
    /// # Errors
    /// [`ConfigError`]: a key missing or out of its limits, or a feature that is not supported, by name.
    pub fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, ConfigError> {
        let keys = Keys {
            gguf,
            architecture: "",
        };
        let architecture = keys
            .required(
                "general.architecture",
                gguf.get_str("general.architecture")?,
            )?
            .to_owned();
        let Some(family) = families::of_architecture(&architecture) else {
            return Err(keys.unsupported(format!("architecture {architecture:?}")));
        };
        let keys = Keys {
            gguf,
            architecture: &architecture,
        };
        keys.refuse_unsupported(family)?;

        let hidden_size = keys.number("embedding_length", 1..=MAX_WIDTH)?;
        let heads = keys.number("attention.head_count", 1..=MAX_HEADS)?;
        let kv_heads = keys
            .optional_number("attention.head_count_kv", 1..=MAX_HEADS)?
            .unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let problem =
                format!("{heads} heads cannot share {kv_heads} key and value heads evenly");
            return Err(keys.invalid("attention.head_count_kv", problem));
        }
        let head_dim = keys.head_dim(hidden_size, heads)?;
        let vocab_size = keys.vocab_size(hidden_size)?;
        let config = ModelConfig {
            hidden_size,
            layers: keys.number("block_count", 1..=MAX_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: keys.number("feed_forward_length", 1..=MAX_WIDTH)?,
            vocab_size,
            context_length: keys.context_length()?,
            rope_theta: keys.float("rope.freq_base", Some(10_000.0), 1.0..=1e12)?,
            rope_style: family.gguf_rope,
            rope_freq_factors: keys.rope_freq_factors(head_dim)?,
            rms_norm_eps: keys.float("attention.layer_norm_rms_epsilon", None, 1e-12..=1.0)?,
            tie_word_embeddings: gguf.tensor("output.weight").is_none(),
            qkv_bias: gguf.tensor("blk.0.attn_q.bias").is_some(),
            qk_norm: family.qk_norm,
            architecture: architecture.clone(),
        };
        Ok(config)
    }
}

/// Looks keys up under the architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::Missing {
            origin: self.gguf.origin().to_owned(),
            key: key.to_owned(),
        })
    }

    fn unsupported(&self, feature: String) -> ConfigError {
        ConfigError::Unsupported {
            origin: self.gguf.origin().to_owned(),
            feature,
            instead: SUPPORTED,
        }
    }

    fn invalid(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Invalid {
            origin: self.gguf.origin().to_owned(),
            key: self.full(key),
            problem,
        }
    }

    fn optional_number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        let Some(number) = self.gguf.get_u64(&self.full(key))? else {
            return Ok(None);
        };
        match usize::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.invalid(
                key,
                format!("{number} is not from {} to {}", range.start(), range.end()),
            )),
        }
    }

    fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        self.required(&self.full(key), self.optional_number(key, range)?)
    }

    fn float(
        &self,
        key: &str,
        default: Option<f32>,
        range: std::ops::RangeInclusive<f32>,
    ) -> Result<f32, ConfigError> {
        let full = self.full(key);
        let number = self.required(&full, self.gguf.get_f32(&full)?.or(default))?;
        if range.contains(&number) {
            return Ok(number);
        }
        Err(self.invalid(
            key,
            format!("{number} is not from {} to {}", range.start(), range.end()),
        ))
    }

    /// Refuses every feature with which the plain decoder would compute wrong results.
    fn refuse_unsupported(&self, family: &Family) -> Result<(), ConfigError> {
        for key in ["expert_count", "expert_used_count"] {
            if self
                .gguf
                .get_u64(&self.full(key))?
                .is_some_and(|count| count > 0)
            {
                return Err(self.unsupported(format!("a mixture of experts ({})", self.full(key))));
            }
        }
        let refused_scales = [
            "attention.clamp_kqv",
            "attention.max_alibi_bias",
            "logit_scale",
            "residual_scale",
            "embedding_scale",
        ];
        for key in refused_scales {
            if self
                .gguf
                .get_f32(&self.full(key))?
                .is_some_and(|scale| scale != 0.0)
            {
                return Err(self.unsupported(self.full(key)));
            }
        }
        let refused_tensors = [
            "attn_output.bias",
            "ffn_gate.bias",
            "ffn_up.bias",
            "ffn_down.bias",
            "attn_qkv.weight",
            "ffn_gate_inp.weight",
            "attn_norm.bias",
            "ffn_norm.bias",
        ];
        let head_norms = ["attn_q_norm.weight", "attn_k_norm.weight"];
        let head_norms = head_norms.iter().filter(|_| !family.qk_norm);
        for tensor in refused_tensors.iter().chain(head_norms) {
            if self.gguf.tensor(&format!("blk.0.{tensor}")).is_some() {
                return Err(self.unsupported(format!("the tensor blk.0.{tensor}")));
            }
        }
        if ["rope_factors_long.weight", "rope_factors_short.weight"]
            .iter()
            .any(|name| {
                self.gguf.tensor(name).is_some()
                    || self.gguf.tensor(&format!("blk.0.{name}")).is_some()
            })
        {
            return Err(
                self.unsupported("rope scaling longrope (rope_factors_long.weight)".to_owned())
            );
        }
        Ok(())
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
        let key = "attention.key_length";
        let head_dim = match self.optional_number(key, 2..=MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let problem =
                    format!("missing, and {hidden_size} is not a multiple of {heads} heads");
                return Err(self.invalid(key, problem));
            }
        };
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(self.invalid(
                key,
                format!("a head of {head_dim} is not an even width up to {MAX_HEAD_DIM}"),
            ));
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = self.optional_number(key, 1..=MAX_HEAD_DIM)?
                && other != head_dim
            {
                let feature = format!("{} {other} with a head of {head_dim}", self.full(key));
                return Err(self.unsupported(feature));
            }
        }
        Ok(head_dim)
    }

    /// The number of rows of the embedding. Other statements of the vocabulary's size must agree with it.
    fn vocab_size(&self, hidden_size: usize) -> Result<usize, ConfigError> {
        let tensor_error = |problem: String| ConfigError::Invalid {
            origin: self.gguf.origin().to_owned(),
            key: "tensor token_embd.weight".to_owned(),
            problem,
        };
        let embedding = self
            .gguf
            .tensor("token_embd.weight")
            .ok_or_else(|| tensor_error("missing".to_owned()))?;
        let vocab_size = match *embedding.dims {
            [width, rows] if width == hidden_size as u64 && rows <= MAX_VOCAB as u64 => {
                rows as usize
            }
            _ => {
                let dims = embedding.dims;
                return Err(tensor_error(format!(
                    "dimensions {dims:?}, but [{hidden_size}, up to {MAX_VOCAB}] needed"
                )));
            }
        };
        if let Some(stated) = self.optional_number("vocab_size", 1..=MAX_VOCAB)?
            && stated != vocab_size
        {
            return Err(tensor_error(format!(
                "has {vocab_size} rows, but {} is {stated}",
                self.full("vocab_size")
            )));
        }
        if let Some(tokens) = self.gguf.get_str_array("tokenizer.ggml.tokens")?
            && tokens.len() > vocab_size
        {
            return Err(tensor_error(format!(
                "has {vocab_size} rows, but there are {} tokens",
                tokens.len()
            )));
        }
        Ok(vocab_size)
    }

    /// The context, or the sliding window if that is shorter: up to its length a window has no effect.
    fn context_length(&self) -> Result<usize, ConfigError> {
        let context = self.number("context_length", 1..=MAX_CONTEXT)?;
        let window = self.gguf.get_u64(&self.full("attention.sliding_window"))?;
        let window = window.filter(|&window| window > 0);
        Ok(window.map_or(context, |window| (context as u64).min(window) as usize))
    }

    /// The factor of linear rotary scaling; 1 for none.
    fn linear_scaling(&self) -> Result<f32, ConfigError> {
        let key = self.full("rope.scaling.type");
        let mut factor = 1.0;
        for name in ["rope.scaling.factor", "rope.scale_linear"] {
            if let Some(found) = self.gguf.get_f32(&self.full(name))?
                && found != 0.0
            {
                factor = self.float(name, Some(found), 1.0..=1024.0)?;
            }
        }
        match self.gguf.get_str(&key)? {
            Some("linear") => Ok(factor),
            // Older files have a factor for linear scaling, and no type.
            None => Ok(factor),
            Some("none" | "") => Ok(1.0),
            Some(scaling) => Err(self.unsupported(format!("rope scaling {scaling:?} ({key})"))),
        }
    }

    fn rope_freq_factors(&self, head_dim: usize) -> Result<Option<Vec<f32>>, ConfigError> {
        let linear = self.linear_scaling()?;
        let Some(tensor) = self.gguf.tensor("rope_freqs.weight") else {
            return Ok((linear != 1.0).then(|| vec![linear; head_dim / 2]));
        };
        if linear != 1.0 {
            return Err(self.unsupported(
                "rope scaling by the tensor rope_freqs.weight and by a factor at once".to_owned(),
            ));
        }
        let tensor_error = |problem: String| ConfigError::Invalid {
            origin: self.gguf.origin().to_owned(),
            key: "tensor rope_freqs.weight".to_owned(),
            problem,
        };
        let needed = head_dim / 2;
        if tensor.dtype != GgmlType::F32 || tensor.elements() != needed {
            let (dtype, dims) = (tensor.dtype, tensor.dims);
            return Err(tensor_error(format!(
                "{dtype} of dimensions {dims:?}, but F32 of {needed} needed"
            )));
        }
        let mut factors = vec![0.0; needed];
        dequantize(tensor.dtype, tensor.data, &mut factors)?;
        match factors
            .iter()
            .find(|factor| !(factor.is_finite() && **factor > 0.0))
        {
            Some(factor) => Err(tensor_error(format!("a factor of {factor}"))),
            None => Ok(Some(factors)),
        }
    }
}
