//! The dimensions and constants of a model, read from a GGUF's metadata and tensor list or from a `config.json`, with limits
//! on every number.
//!
//! Features that the decoder does not have (experts, rotary scalings other than linear and Llama 3's, ...) are refused here by
//! name, so that nothing above computes wrong results silently.

mod families;
mod from_gguf;
mod from_json;
mod rope;

pub use rope::RopeStyle;

use crate::gguf::{GgufError, GgufWriter, Value};

/// The dimensions and constants of a Llama-family decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `llama` (Mistral and SmolLM too), `qwen2` or `qwen3`, as GGUF files call it.
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
    /// Most positions that the model was trained for, or the sliding window if that is shorter: up to its length a window has no
    /// effect.
    pub context_length: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How query and key rows are paired.
    pub rope_style: RopeStyle,
    /// Divisors of the `head_dim / 2` rotary frequencies: of Llama 3.1 and later (in a GGUF the tensor `rope_freqs.weight`),
    /// or of linear scaling.
    pub rope_freq_factors: Option<Vec<f32>>,
    /// The epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Whether the embedding is also the head (no `output.weight`).
    pub tie_word_embeddings: bool,
    /// Whether query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether each head of the queries and keys is normed before it is rotated (Qwen3).
    pub qk_norm: bool,
}

/// A model that is malformed or not supported.
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
    /// A value out of its limits, or one that contradicts another.
    #[error("{origin}: {key}: {problem}")]
    Invalid {
        /// The file.
        origin: String,
        /// The key or tensor.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A feature that the decoder does not have.
    #[error("{origin}: {feature} is not supported; {instead}")]
    Unsupported {
        /// The file.
        origin: String,
        /// The feature, by name.
        feature: String,
        /// What is.
        instead: &'static str,
    },
}

/// Limits far above any real model of these families.
const MAX_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 1024;
const MAX_VOCAB: usize = 1 << 22;
const MAX_CONTEXT: usize = 1 << 28;

impl ModelConfig {
    /// For each query or key row in Hugging Face's order, over `heads` heads, its row in the file; none if the file has the same
    /// order (see [`RopeStyle`]).
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

    /// The configuration that a GGUF file of this model has: GGUF files of `llama` store the rows in another order.
    pub fn as_in_gguf(&self) -> ModelConfig {
        let family = families::of_architecture(&self.architecture);
        let rope_style = family.map_or(RopeStyle::HalfSplit, |family| family.gguf_rope);
        ModelConfig {
            rope_style,
            ..self.clone()
        }
    }

    /// Writes the metadata that [`ModelConfig::from_gguf`] reads. The tied head, the biases and the frequency factors are not
    /// metadata; it reads them from the tensors.
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
