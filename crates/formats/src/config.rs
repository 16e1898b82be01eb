//! What a model is made of, read from a GGUF's metadata and tensor list, with sane limits on every number.
//!
//! What the decoder does not do (experts, scaled rotary positions, sliding windows, ...) is refused here by name, so
//! that nothing above computes silently wrong.

use crate::gguf::{GgmlType, Gguf, GgufError, GgufWriter, Value, dequantize};

/// How the rows of the query and key weights pair up for the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours 2i and 2i+1 of a head rotate together. GGUF files of architecture `llama` store the query and key
    /// rows in this order: row 2i of a head is Hugging Face's row i, row 2i+1 its row i + head_dim/2. An adapter in
    /// PEFT's layout must have the rows of B for q_proj and k_proj reordered likewise.
    Interleaved,
    /// Elements i and i + head_dim/2 rotate together, as in Hugging Face's layout.
    HalfSplit,
}

/// The dimensions and constants of a Llama-family decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `general.architecture`: `llama` or `qwen2`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of tokens: rows of the embedding.
    pub vocab_size: usize,
    /// Most positions that the model was trained for.
    pub context_length: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How query and key rows are paired.
    pub rope_style: RopeStyle,
    /// Divisors of the `head_dim / 2` rotary frequencies (tensor `rope_freqs.weight`, as in Llama 3.1 and later).
    pub rope_freq_factors: Option<Vec<f32>>,
    /// The epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Whether the embedding is also the head (no `output.weight`).
    pub tie_word_embeddings: bool,
    /// Whether query, key and value projections have a bias.
    pub qkv_bias: bool,
}

/// A model that is not understood, or not supported.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The metadata could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key that every model has is absent.
    #[error("{origin}: metadata {key:?} is missing")]
    Missing {
        /// The file.
        origin: String,
        /// The key.
        key: String,
    },
    /// A number that makes no sense.
    #[error("{origin}: {key}: {problem}")]
    Invalid {
        /// The file.
        origin: String,
        /// The key or tensor.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Something that this decoder does not do.
    #[error("{origin}: {feature} is not supported; {instead}")]
    Unsupported {
        /// The file.
        origin: String,
        /// What it is, by name.
        feature: String,
        /// What is.
        instead: &'static str,
    },
}

const FAMILY: &str =
    "models of architecture llama or qwen2 without experts or scaled positions are run";

/// Limits that no real model of the family comes near.
const MAX_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 1024;
const MAX_VOCAB: usize = 1 << 22;
const MAX_CONTEXT: usize = 1 << 28;

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
        let rope_style = match architecture.as_str() {
            "llama" => RopeStyle::Interleaved,
            "qwen2" => RopeStyle::HalfSplit,
            other => return Err(keys.unsupported(format!("architecture {other:?}"))),
        };
        let keys = Keys {
            gguf,
            architecture: &architecture,
        };
        keys.refuse_unsupported()?;

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
            context_length: keys.number("context_length", 1..=MAX_CONTEXT)?,
            rope_theta: keys.float("rope.freq_base", Some(10_000.0), 1.0..=1e12)?,
            rope_style,
            rope_freq_factors: keys.rope_freq_factors(head_dim)?,
            rms_norm_eps: keys.float("attention.layer_norm_rms_epsilon", None, 1e-12..=1.0)?,
            tie_word_embeddings: gguf.tensor("output.weight").is_none(),
            qkv_bias: gguf.tensor("blk.0.attn_q.bias").is_some(),
            architecture: architecture.clone(),
        };
        Ok(config)
    }

    /// Where the query or key rows of Hugging Face's order, over `heads` heads, lie in the file; none where the file has
    /// them in that order too (see [`RopeStyle`]).
    pub fn rotary_order(&self, heads: usize) -> Option<Vec<u32>> {
        if self.rope_style == RopeStyle::HalfSplit {
            return None;
        }
        let dim = self.head_dim;
        let row = |i: usize| {
            let (head, i) = (i / dim, i % dim);
            head * dim
                + if i < dim / 2 {
                    2 * i
                } else {
                    2 * (i - dim / 2) + 1
                }
        };
        Some((0..heads * dim).map(|i| row(i) as u32).collect())
    }

    /// Writes the metadata that [`ModelConfig::from_gguf`] reads. What it reads from tensors (the tied head, the biases,
    /// the frequency factors) is there when the tensors are.
    pub fn write_metadata(&self, writer: &mut GgufWriter) {
        let arch = &self.architecture;
        writer.metadata("general.architecture", arch.as_str());
        let mut number = |key: &str, value: usize| {
            writer.metadata(
                &format!("{arch}.{key}"),
                Value::U32(u32::try_from(value).unwrap_or(u32::MAX)),
            );
        };
        number("block_count", self.layers);
        number("context_length", self.context_length);
        number("embedding_length", self.hidden_size);
        number("feed_forward_length", self.intermediate_size);
        number("attention.head_count", self.heads);
        number("attention.head_count_kv", self.kv_heads);
        number("attention.key_length", self.head_dim);
        number("attention.value_length", self.head_dim);
        number("rope.dimension_count", self.head_dim);
        number("vocab_size", self.vocab_size);
        writer.metadata(&format!("{arch}.rope.freq_base"), self.rope_theta);
        writer.metadata(
            &format!("{arch}.attention.layer_norm_rms_epsilon"),
            self.rms_norm_eps,
        );
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
            instead: FAMILY,
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

    /// Everything that would make the plain decoder wrong.
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        for key in ["expert_count", "expert_used_count"] {
            if self
                .gguf
                .get_u64(&self.full(key))?
                .is_some_and(|count| count > 0)
            {
                return Err(self.unsupported(format!("a mixture of experts ({})", self.full(key))));
            }
        }
        if self
            .gguf
            .get_u64(&self.full("attention.sliding_window"))?
            .is_some_and(|window| window > 0)
        {
            return Err(self.unsupported(format!(
                "a sliding window ({})",
                self.full("attention.sliding_window")
            )));
        }
        let key = self.full("rope.scaling.type");
        match self.gguf.get_str(&key)? {
            None | Some("none" | "") => {
                for key in ["rope.scaling.factor", "rope.scale_linear"] {
                    let factor = self.gguf.get_f32(&self.full(key))?;
                    if factor.is_some_and(|factor| factor != 1.0 && factor != 0.0) {
                        return Err(self
                            .unsupported(format!("rope scaling ({} {factor:?})", self.full(key))));
                    }
                }
            }
            Some(scaling) => {
                return Err(self.unsupported(format!("rope scaling {scaling:?} ({key})")));
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
            "attn_q_norm.weight",
            "attn_k_norm.weight",
            "attn_qkv.weight",
            "ffn_gate_inp.weight",
            "attn_norm.bias",
            "ffn_norm.bias",
        ];
        for tensor in refused_tensors {
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
                let feature = format!("{} {other} beside a head of {head_dim}", self.full(key));
                return Err(self.unsupported(feature));
            }
        }
        Ok(head_dim)
    }

    /// The embedding says how many tokens there are; whatever else says so must agree.
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

    fn rope_freq_factors(&self, head_dim: usize) -> Result<Option<Vec<f32>>, ConfigError> {
        let Some(tensor) = self.gguf.tensor("rope_freqs.weight") else {
            return Ok(None);
        };
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
