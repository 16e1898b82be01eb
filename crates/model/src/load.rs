//! A model from a checkpoint: tensors found by name, checked against the metadata, packed for the device.

use crate::decoder::{Layer, Model};
use crate::error::ModelError;
use crate::precision::{Precision, convert};
use crate::sizes::Matrix;
use crate::source_type::source_type;
use formats::checkpoint::Checkpoint;
use formats::config::ModelConfig;
use formats::gguf::{GgmlType, TensorView, dequantize};
use kernels::{Device, Vector, Weights};

/// The limit of positions: their angles are computed at load, 8 bytes for each pair of a head's dimensions.
const MAX_CONTEXT: usize = 1 << 20;

/// Called for each tensor that was converted: its name in GGUF files, and its bytes in the type in which it is held.
pub type Converted<'a> = &'a dyn Fn(&str, &[u8]);

/// How a checkpoint is loaded.
#[derive(Clone, Copy)]
pub struct Loading<'a> {
    /// The precision of float tensors; default: as they are in the file.
    pub precision: Option<Precision>,
    /// Called with each tensor's bytes in the file once they are no longer needed: a caller that mapped the file gives their
    /// memory back, so that file and weights are never in memory together.
    pub packed: &'a dyn Fn(&[u8]),
    /// Called for each tensor that was converted, in the order of [`Model::converted`], while its bytes in the file are still there.
    pub converted: Converted<'a>,
}

impl Default for Loading<'_> {
    fn default() -> Self {
        Loading {
            precision: None,
            packed: &|_| (),
            converted: &|_, _| (),
        }
    }
}

struct Loader<'a> {
    checkpoint: &'a dyn Checkpoint,
    loading: Loading<'a>,
    device: &'a Device,
    config: &'a ModelConfig,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, expected: &[u64]) -> Result<TensorView<'_>, ModelError> {
        let tensor = self.checkpoint.tensor(name).ok_or_else(|| {
            let (origin, name) = self.checkpoint.place(name);
            ModelError::Missing {
                origin,
                name,
                architecture: self.config.architecture.clone(),
            }
        })?;
        // Trailing dimensions of 1 mean nothing.
        let mut found = tensor.dims.to_vec();
        while found.len() > expected.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found != expected {
            let (origin, name) = self.checkpoint.place(name);
            return Err(ModelError::Shape {
                origin,
                name,
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
        let held = match self.loading.precision {
            Some(precision) => precision.held(name, tensor.dtype, inputs),
            None => tensor.dtype,
        };
        let source = source_type(held).ok_or_else(|| self.not_run(name, held))?;
        let pack = |bytes: &[u8]| {
            let packed = self.device.pack(source, bytes, (outputs, inputs), order);
            packed.map_err(|source| {
                let (origin, name) = self.checkpoint.place(name);
                ModelError::Kernel {
                    origin,
                    name,
                    source,
                }
            })
        };
        if held == tensor.dtype {
            let weights = pack(tensor.data)?;
            (self.loading.packed)(tensor.data);
            return Ok(weights);
        }
        let bytes = convert(&tensor, held, inputs, self.device.threads()).map_err(|problem| {
            let (origin, name) = self.checkpoint.place(name);
            ModelError::Convert {
                origin,
                name,
                problem,
            }
        })?;
        (self.loading.converted)(name, &bytes);
        (self.loading.packed)(tensor.data);
        pack(&bytes)
    }

    fn vector(&self, name: &str, n: usize, order: Option<&[u32]>) -> Result<Vector, ModelError> {
        let tensor = self.tensor(name, &[n as u64])?;
        let mut values = vec![0f32; n];
        dequantize(tensor.dtype, tensor.data, &mut values)
            .map_err(|_| self.not_run(name, tensor.dtype))?;
        if let Some(order) = order {
            values = order.iter().map(|&i| values[i as usize]).collect();
        }
        Ok(self.device.vector(&values))
    }

    fn not_run(&self, name: &str, dtype: GgmlType) -> ModelError {
        let (origin, name) = self.checkpoint.place(name);
        let runs = GgmlType::all().filter(|dtype| source_type(*dtype).is_some());
        let runs: Vec<&str> = runs.map(GgmlType::name).collect();
        ModelError::Type {
            origin,
            name,
            dtype: dtype.name(),
            runs: runs.join(", "),
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
        let head_norms = if c.qk_norm {
            Some([
                self.vector(&name("attn_q_norm.weight"), c.head_dim, None)?,
                self.vector(&name("attn_k_norm.weight"), c.head_dim, None)?,
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
            head_norms,
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
    pub fn load(checkpoint: &dyn Checkpoint, device: Device) -> Result<Model, ModelError> {
        Model::load_with(checkpoint, device, Loading::default())
    }

    /// [`Model::load`] in another precision, with callbacks.
    ///
    /// Tensors are converted one by one: in addition to the packed weights, at most one tensor is in memory.
    ///
    /// # Errors
    /// As [`Model::load`]; and a weight that the precision does not hold.
    pub fn load_with(
        checkpoint: &dyn Checkpoint,
        device: Device,
        loading: Loading<'_>,
    ) -> Result<Model, ModelError> {
        let config = checkpoint.config()?;
        if !config.head_dim.is_multiple_of(16) {
            return Err(ModelError::HeadDim {
                origin: checkpoint.place("token_embd.weight").0,
                head_dim: config.head_dim,
            });
        }
        if config.context_length > MAX_CONTEXT {
            return Err(ModelError::Context {
                origin: checkpoint.place("token_embd.weight").0,
                context_length: config.context_length,
                limit: MAX_CONTEXT,
            });
        }
        let loader = Loader {
            checkpoint,
            loading,
            device: &device,
            config: &config,
        };
        let vocabulary = (config.vocab_size, config.hidden_size);
        let embedding = loader.linear("token_embd.weight", vocabulary, None)?;
        // The largest tensors first: while one is converted, little else is in memory yet.
        let head = if config.tie_word_embeddings {
            None
        } else {
            Some(loader.linear("output.weight", vocabulary, None)?)
        };
        let layers = (0..config.layers)
            .map(|i| loader.layer(i))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = loader.vector("output_norm.weight", config.hidden_size, None)?;
        let factors = config.rope_freq_factors.as_deref();
        let rope = device.rope_table(
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

    /// The tensors that [`Model::load_with`] converts for a precision, in its order: GGUF's names, types and dimensions.
    ///
    /// # Errors
    /// As [`Model::load`], except for errors in the weights themselves.
    pub fn converted(
        checkpoint: &dyn Checkpoint,
        precision: Precision,
    ) -> Result<Vec<(String, GgmlType, Vec<u64>)>, ModelError> {
        let all = Matrix::all(checkpoint)?;
        let changed = all.iter().filter_map(|matrix| {
            let held = precision.held(&matrix.name, matrix.dtype, matrix.inputs);
            let dims = vec![matrix.inputs as u64, matrix.outputs as u64];
            (held != matrix.dtype).then(|| (matrix.name.clone(), held, dims))
        });
        Ok(changed.collect())
    }
}
