//! A checkpoint with the shapes and types of a base and nearly no values, in which fewer layers and tokens stand for all.

use std::collections::BTreeMap;

use formats::checkpoint::Checkpoint;
use formats::config::{ConfigError, ModelConfig};
use formats::gguf::{GgmlType, TensorView};
use formats::peft::Module;
use kernels::Backend;
use model::{ModelSizes, Precision};

/// The part of a base that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Layers.
    pub layers: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Positions.
    pub positions: usize,
}

/// See the module. All tensors have the same bytes: what a product computes does not change how long it takes.
pub(super) struct Synthetic {
    config: ModelConfig,
    /// Type and dimensions by name.
    tensors: BTreeMap<String, (GgmlType, Vec<u64>)>,
    bytes: Vec<u8>,
}

impl Synthetic {
    /// Part of a base in the types in which its matrices are in memory.
    pub fn new(
        sizes: &ModelSizes,
        backend: Backend,
        precision: Option<Precision>,
        part: Part,
    ) -> Synthetic {
        let config = ModelConfig {
            layers: part.layers,
            vocab_size: part.vocab_size,
            context_length: part.positions,
            ..sizes.config.clone()
        };
        let mut tensors = BTreeMap::new();
        let mut matrix = |name: String, inputs: usize, outputs: usize| {
            let dtype = type_in_memory(sizes, backend, precision, &name, inputs);
            tensors.insert(name, (dtype, vec![inputs as u64, outputs as u64]));
        };
        matrix(
            "token_embd.weight".to_owned(),
            config.hidden_size,
            config.vocab_size,
        );
        if !config.tie_word_embeddings {
            matrix(
                "output.weight".to_owned(),
                config.hidden_size,
                config.vocab_size,
            );
        }
        for layer in 0..config.layers {
            for module in Module::ALL {
                let (inputs, outputs) = module.shape(&config);
                matrix(matrix_name(layer, module), inputs, outputs);
            }
        }
        let mut vector = |name: String, length: usize| {
            tensors.insert(name, (GgmlType::F32, vec![length as u64]));
        };
        let (query, key) = (
            config.heads * config.head_dim,
            config.kv_heads * config.head_dim,
        );
        vector("output_norm.weight".to_owned(), config.hidden_size);
        for layer in 0..config.layers {
            for (name, length) in [
                ("attn_norm.weight", config.hidden_size),
                ("ffn_norm.weight", config.hidden_size),
                ("attn_q.bias", query),
                ("attn_k.bias", key),
                ("attn_v.bias", key),
                ("attn_q_norm.weight", config.head_dim),
                ("attn_k_norm.weight", config.head_dim),
            ] {
                vector(format!("blk.{layer}.{name}"), length);
            }
        }
        let largest = tensors
            .values()
            .filter_map(|(dtype, dims)| bytes_of(*dtype, dims))
            .max();
        let mut bytes = vec![0u8; largest.unwrap_or(0)];
        // Pages differ, so that the system cannot share them.
        for (i, page) in bytes.chunks_mut(4096).enumerate() {
            page[0] = i as u8 & 0x0f;
        }
        Synthetic {
            config,
            tensors,
            bytes,
        }
    }
}

fn bytes_of(dtype: GgmlType, dims: &[u64]) -> Option<usize> {
    let rows: u64 = dims[1..].iter().product();
    Some((dtype.bytes_for(dims[0])? * rows) as usize)
}

pub(super) fn matrix_name(layer: usize, module: Module) -> String {
    format!("blk.{layer}.{}.weight", module.gguf_name())
}

/// The type of a matrix in memory. One that does not run counts as f16, which takes as long.
pub(super) fn type_in_memory(
    sizes: &ModelSizes,
    backend: Backend,
    precision: Option<Precision>,
    name: &str,
    inputs: usize,
) -> GgmlType {
    let dtype = sizes.type_in_memory(name, precision);
    let runs = |dtype: &GgmlType| {
        let source = model::source_type(*dtype);
        source.is_some_and(|source| backend.packed_bytes(source, 1, inputs).is_some())
    };
    dtype.filter(runs).unwrap_or(GgmlType::F16)
}

impl Checkpoint for Synthetic {
    fn config(&self) -> Result<ModelConfig, ConfigError> {
        Ok(self.config.clone())
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, (dtype, dims)) = self.tensors.get_key_value(name)?;
        Some(TensorView {
            name,
            dtype: *dtype,
            dims,
            data: &self.bytes[..bytes_of(*dtype, dims)?],
        })
    }

    fn place(&self, name: &str) -> (String, String) {
        ("the measured weights".to_owned(), name.to_owned())
    }

    fn types_are_chosen(&self) -> bool {
        true
    }
}
