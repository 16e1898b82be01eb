//! A model from a GGUF: tensors found by name, checked against the metadata, packed for the device.

use crate::{Layer, Model, ModelError};
use formats::config::ModelConfig;
use formats::gguf::{GgmlType, Gguf, dequantize};
use kernels::{Device, RopeTable, SourceType, Weights};

const RUNS: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

/// Most positions: their angles are computed at load, 8 bytes for each pair of a head's dimensions.
const MAX_CONTEXT: usize = 1 << 20;

fn source_type(dtype: GgmlType) -> Option<SourceType> {
    Some(match dtype {
        GgmlType::F32 => SourceType::F32,
        GgmlType::F16 => SourceType::F16,
        GgmlType::BF16 => SourceType::BF16,
        GgmlType::Q4_0 => SourceType::Q4_0,
        GgmlType::Q4_1 => SourceType::Q4_1,
        GgmlType::Q5_0 => SourceType::Q5_0,
        GgmlType::Q5_1 => SourceType::Q5_1,
        GgmlType::Q8_0 => SourceType::Q8_0,
        GgmlType::Q4_K => SourceType::Q4_K,
        GgmlType::Q5_K => SourceType::Q5_K,
        GgmlType::Q6_K => SourceType::Q6_K,
        _ => return None,
    })
}

struct Loader<'a> {
    gguf: &'a Gguf,
    packed: &'a dyn Fn(&[u8]),
    device: &'a Device,
    config: &'a ModelConfig,
}

impl Loader<'_> {
    fn tensor(
        &self,
        name: &str,
        expected: &[u64],
    ) -> Result<formats::gguf::TensorView<'_>, ModelError> {
        let tensor = self.gguf.tensor(name).ok_or_else(|| ModelError::Missing {
            origin: self.gguf.origin().into(),
            name: name.into(),
            architecture: self.config.architecture.clone(),
        })?;
        // Trailing dimensions of 1 mean nothing.
        let mut found = tensor.dims.to_vec();
        while found.len() > expected.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found != expected {
            return Err(ModelError::Shape {
                origin: self.gguf.origin().into(),
                name: name.into(),
                found,
                expected: expected.into(),
            });
        }
        Ok(tensor)
    }

    fn linear(
        &self,
        name: &str,
        (outputs, inputs): (usize, usize),
        order: Option<&[u32]>,
    ) -> Result<Weights, ModelError> {
        let tensor = self.tensor(name, &[inputs as u64, outputs as u64])?;
        let source = source_type(tensor.dtype).ok_or_else(|| self.not_run(name, tensor.dtype))?;
        let weights = self
            .device
            .pack(source, tensor.data, (outputs, inputs), order)
            .map_err(|source| ModelError::Kernel {
                origin: self.gguf.origin().into(),
                name: name.into(),
                source,
            })?;
        (self.packed)(tensor.data);
        Ok(weights)
    }

    fn vector(&self, name: &str, n: usize, order: Option<&[u32]>) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, &[n as u64])?;
        let mut values = vec![0f32; n];
        dequantize(tensor.dtype, tensor.data, &mut values)
            .map_err(|_| self.not_run(name, tensor.dtype))?;
        Ok(match order {
            Some(order) => order.iter().map(|&i| values[i as usize]).collect(),
            None => values,
        })
    }

    fn not_run(&self, name: &str, dtype: GgmlType) -> ModelError {
        ModelError::Type {
            origin: self.gguf.origin().into(),
            name: name.into(),
            dtype: dtype.name(),
            runs: RUNS,
        }
    }

    fn layer(&self, i: usize) -> Result<Layer, ModelError> {
        let c = self.config;
        let (hidden, q, kv) = (c.hidden_size, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let name = |tensor: &str| format!("blk.{i}.{tensor}");
        let (q_order, k_order) = (c.rotary_order(c.heads), c.rotary_order(c.kv_heads));
        let biases = if c.qkv_bias {
            Some([
                self.vector(&name("attn_q.bias"), q, q_order.as_deref())?,
                self.vector(&name("attn_k.bias"), kv, k_order.as_deref())?,
                self.vector(&name("attn_v.bias"), kv, None)?,
            ])
        } else {
            None
        };
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm.weight"), hidden, None)?,
            q: self.linear(&name("attn_q.weight"), (q, hidden), q_order.as_deref())?,
            k: self.linear(&name("attn_k.weight"), (kv, hidden), k_order.as_deref())?,
            v: self.linear(&name("attn_v.weight"), (kv, hidden), None)?,
            biases,
            o: self.linear(&name("attn_output.weight"), (hidden, q), None)?,
            ffn_norm: self.vector(&name("ffn_norm.weight"), hidden, None)?,
            gate: self.linear(
                &name("ffn_gate.weight"),
                (c.intermediate_size, hidden),
                None,
            )?,
            up: self.linear(&name("ffn_up.weight"), (c.intermediate_size, hidden), None)?,
            down: self.linear(
                &name("ffn_down.weight"),
                (hidden, c.intermediate_size),
                None,
            )?,
        })
    }
}

impl Model {
    /// Reads and packs all weights. The file's bytes may go once this returns.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or of a type that is not run, by name.
    pub fn load(gguf: &Gguf, device: Device) -> Result<Model, ModelError> {
        Model::load_with(gguf, device, &|_| ())
    }

    /// [`Model::load`], telling of each tensor's bytes once they are packed: a caller that mapped the file gives their
    /// memory back, so that file and weights are never in memory together.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(
        gguf: &Gguf,
        device: Device,
        packed: &dyn Fn(&[u8]),
    ) -> Result<Model, ModelError> {
        let config = ModelConfig::from_gguf(gguf)?;
        if !config.head_dim.is_multiple_of(16) {
            return Err(ModelError::HeadDim {
                origin: gguf.origin().into(),
                head_dim: config.head_dim,
            });
        }
        if config.context_length > MAX_CONTEXT {
            return Err(ModelError::Context {
                origin: gguf.origin().into(),
                context_length: config.context_length,
                limit: MAX_CONTEXT,
            });
        }
        let loader = Loader {
            gguf,
            packed,
            device: &device,
            config: &config,
        };
        let vocabulary = (config.vocab_size, config.hidden_size);
        let embedding = loader.linear("token_embd.weight", vocabulary, None)?;
        let layers = (0..config.layers)
            .map(|i| loader.layer(i))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = loader.vector("output_norm.weight", config.hidden_size, None)?;
        let head = if config.tie_word_embeddings {
            None
        } else {
            Some(loader.linear("output.weight", vocabulary, None)?)
        };
        let factors = config.rope_freq_factors.as_deref();
        let rope = RopeTable::new(
            config.head_dim,
            config.context_length,
            config.rope_theta,
            factors,
        );
        Ok(Model {
            embedding,
            layers,
            norm,
            head,
            rope,
            config,
            device,
        })
    }
}
