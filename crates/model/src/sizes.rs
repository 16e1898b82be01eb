//! What a model takes in memory, before it is loaded: pure arithmetic over names, types and dimensions.

use crate::error::ModelError;
use crate::precision::{Precision, is_float};
use crate::source_type::source_type;
use formats::checkpoint::Checkpoint;
use formats::config::ModelConfig;
use formats::gguf::GgmlType;
use formats::peft::Module;
use kernels::{BLOCK_TOKENS, Backend};

/// A matrix of weights, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matrix {
    /// GGUF's name.
    pub name: String,
    pub dtype: GgmlType,
    pub outputs: usize,
    pub inputs: usize,
}

impl Matrix {
    /// All matrices, in the order in which they are loaded.
    pub fn all(checkpoint: &dyn Checkpoint) -> Result<Vec<Matrix>, ModelError> {
        let config = checkpoint.config()?;
        let matrix = |name: String, (outputs, inputs): (usize, usize)| -> Result<_, ModelError> {
            let missing = || {
                let (origin, name) = checkpoint.place(&name);
                ModelError::Missing {
                    origin,
                    name,
                    architecture: config.architecture.clone(),
                }
            };
            Ok(Matrix {
                dtype: checkpoint.tensor(&name).ok_or_else(missing)?.dtype,
                name,
                outputs,
                inputs,
            })
        };
        let vocabulary = (config.vocab_size, config.hidden_size);
        let mut all = vec![matrix("token_embd.weight".to_owned(), vocabulary)?];
        if !config.tie_word_embeddings {
            all.push(matrix("output.weight".to_owned(), vocabulary)?);
        }
        for layer in 0..config.layers {
            for module in Module::ALL {
                let (inputs, outputs) = module.shape(&config);
                let name = format!("blk.{layer}.{}.weight", module.gguf_name());
                all.push(matrix(name, (outputs, inputs))?);
            }
        }
        Ok(all)
    }
}

/// The sizes of a model that memory depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSizes {
    /// Its sizes and constants.
    pub config: ModelConfig,
    /// Whether the file's types are kept unless a precision is requested.
    pub types_are_chosen: bool,
    matrices: Vec<Matrix>,
}

impl ModelSizes {
    /// The sizes of a checkpoint; its weights are not read.
    ///
    /// # Errors
    /// A configuration that is not supported, or a tensor that is missing.
    pub fn of(checkpoint: &dyn Checkpoint) -> Result<ModelSizes, ModelError> {
        Ok(ModelSizes {
            config: checkpoint.config()?,
            types_are_chosen: checkpoint.types_are_chosen(),
            matrices: Matrix::all(checkpoint)?,
        })
    }

    /// The sizes of a hypothetical float model of this configuration.
    pub fn imagined(config: &ModelConfig, dtype: GgmlType) -> ModelSizes {
        let matrix = |name: String, (outputs, inputs): (usize, usize)| Matrix {
            name,
            dtype,
            outputs,
            inputs,
        };
        let vocabulary = (config.vocab_size, config.hidden_size);
        let mut matrices = vec![matrix("token_embd.weight".to_owned(), vocabulary)];
        if !config.tie_word_embeddings {
            matrices.push(matrix("output.weight".to_owned(), vocabulary));
        }
        for layer in 0..config.layers {
            for module in Module::ALL {
                let (inputs, outputs) = module.shape(config);
                let name = format!("blk.{layer}.{}.weight", module.gguf_name());
                matrices.push(matrix(name, (outputs, inputs)));
            }
        }
        ModelSizes {
            config: config.clone(),
            types_are_chosen: false,
            matrices,
        }
    }

    /// Weights in all matrices.
    pub fn parameters(&self) -> u64 {
        let sizes = self.matrices.iter();
        sizes.map(|m| m.outputs as u64 * m.inputs as u64).sum()
    }

    /// Whether the file has float matrices, which a precision would change.
    pub fn is_float(&self) -> bool {
        let mut matrices = self.matrices.iter();
        matrices.any(|matrix| is_float(matrix.dtype))
    }

    /// The types in the file, the one with the most weights first.
    pub fn types(&self) -> Vec<GgmlType> {
        let mut counted: Vec<(GgmlType, u64)> = Vec::new();
        for matrix in &self.matrices {
            let weights = matrix.outputs as u64 * matrix.inputs as u64;
            match counted.iter_mut().find(|(dtype, _)| *dtype == matrix.dtype) {
                Some((_, count)) => *count += weights,
                None => counted.push((matrix.dtype, weights)),
            }
        }
        counted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counted.into_iter().map(|(dtype, _)| dtype).collect()
    }

    fn held(matrix: &Matrix, precision: Option<Precision>) -> GgmlType {
        match precision {
            Some(precision) => precision.held(&matrix.name, matrix.dtype, matrix.inputs),
            None => matrix.dtype,
        }
    }

    /// The type of a matrix in memory in a precision (default: as in the file), by its GGUF name.
    pub fn type_in_memory(&self, name: &str, precision: Option<Precision>) -> Option<GgmlType> {
        let matrix = self.matrices.iter().find(|matrix| matrix.name == name)?;
        Some(Self::held(matrix, precision))
    }

    /// Bytes of the weights as a backend packs them, in a precision (default: as in the file). Types that are not supported count as
    /// zero.
    pub fn weight_bytes(&self, backend: Backend, precision: Option<Precision>) -> u64 {
        let packed = |matrix: &Matrix| {
            source_type(Self::held(matrix, precision))
                .and_then(|source| backend.packed_bytes(source, matrix.outputs, matrix.inputs))
                .unwrap_or(0)
        };
        self.matrices.iter().map(packed).sum()
    }

    /// The most that loading holds in addition to the packed weights: one tensor, converted.
    pub fn loading_bytes(&self, precision: Option<Precision>) -> u64 {
        let converted = |matrix: &Matrix| {
            let held = Self::held(matrix, precision);
            let weights = matrix.outputs as u64 * matrix.inputs as u64;
            match held == matrix.dtype {
                true => 0,
                false => held.bytes_for(weights).unwrap_or(0),
            }
        };
        self.matrices.iter().map(converted).max().unwrap_or(0)
    }

    /// Bytes of the rotary table.
    pub fn rope_bytes(&self) -> u64 {
        self.config.context_length as u64 * self.config.head_dim as u64 * 4
    }

    /// Bytes of the keys and values of one token, over all layers, in f16.
    pub fn kv_token_bytes(&self) -> u64 {
        let c = &self.config;
        (c.layers * c.kv_heads * c.head_dim * 2 * 2) as u64
    }

    /// Bytes of a block of keys and values.
    pub fn kv_block_bytes(&self) -> u64 {
        self.kv_token_bytes() * BLOCK_TOKENS as u64
    }

    /// Bytes of what a step of `rows` rows writes, `logit_rows` of them with logits.
    pub fn step_bytes(&self, rows: usize, logit_rows: usize) -> u64 {
        let c = &self.config;
        let (query, key) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        // Residual and selected rows, the normed rows of two workspaces, queries, keys, values, attention, and the
        // feed-forward part's three; each workspace has its rows in int8 or bf16 pairs, too.
        let row = 6 * c.hidden_size + 4 * query + 4 * key + 4 * c.intermediate_size;
        (4 * (rows * row + logit_rows * 2 * c.vocab_size)) as u64
    }
}
