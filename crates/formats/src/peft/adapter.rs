//! An adapter in memory, and its check against a model.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::config::AdapterConfig;
use super::error::PeftError;
use super::limits::{CONFIG_FILE, WEIGHTS_FILE};
use super::module::Module;
use crate::config::ModelConfig;
use crate::safetensors::{Dtype, TensorLocation};

/// The low-rank update of one linear: y += scale * B (A x).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    /// Layer, from 0.
    pub layer: usize,
    /// Which linear of the layer.
    pub module: Module,
    /// Rank, 1 to [`super::MAX_RANK`].
    pub rank: usize,
    /// Inputs of the linear.
    pub inputs: usize,
    /// Outputs of the linear.
    pub outputs: usize,
    /// alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    pub scale: f32,
    /// `[rank x inputs]`, row-major.
    pub a: Vec<f32>,
    /// `[outputs x rank]`, row-major.
    pub b: Vec<f32>,
}

/// A pair without its values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairShape {
    /// Layer, from 0.
    pub layer: usize,
    /// Which linear of the layer.
    pub module: Module,
    /// Rank, 1 to [`super::MAX_RANK`].
    pub rank: usize,
    /// Inputs of the linear.
    pub inputs: usize,
    /// Outputs of the linear.
    pub outputs: usize,
    /// alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    pub scale: f32,
}

impl LoraPair {
    /// The pair without its values.
    #[must_use]
    pub fn shape(&self) -> PairShape {
        PairShape {
            layer: self.layer,
            module: self.module,
            rank: self.rank,
            inputs: self.inputs,
            outputs: self.outputs,
            scale: self.scale,
        }
    }
}

/// An adapter in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Its configuration.
    pub config: AdapterConfig,
    /// Its pairs, sorted by layer and module.
    pub pairs: Vec<LoraPair>,
    /// The type in the file that it was read from (F32 where a file mixes types).
    pub dtype: Dtype,
    /// Strings in the weights' header, except PEFT's own `format`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors of the base in the file that it was read from, which must be the base's own.
    pub base_tensors: Vec<BaseTensor>,
}

/// A tensor of the base in an adapter's file, which PEFT writes for `modules_to_save` and for embeddings. Only the adapter's pairs run, so the
/// tensor must be the base's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseTensor {
    /// Its name in the file.
    pub name: String,
    /// The name of the base's tensor in GGUF files.
    pub gguf_name: String,
    /// The type of its values in the file.
    pub dtype: Dtype,
    /// Its dimensions, the contiguous one last.
    pub shape: Vec<usize>,
    /// The [`ValuesHash`] of its values.
    pub sha256: [u8; 32],
}

impl BaseTensor {
    /// The tensor at `location` in the bytes of the weights.
    pub(super) fn new(
        name: String,
        gguf_name: String,
        location: &TensorLocation,
        weights: &[u8],
    ) -> BaseTensor {
        let mut hash = ValuesHash::default();
        let mut values = Vec::new();
        for piece in weights[location.bytes.clone()].chunks(1 << 16) {
            location.dtype.decode(piece, &mut values);
            hash.update(&values);
        }
        BaseTensor {
            name,
            gguf_name,
            dtype: location.dtype,
            shape: location.shape.clone(),
            sha256: hash.finish(),
        }
    }
}

/// The sha256 of values as little-endian f32.
#[derive(Debug, Default)]
pub struct ValuesHash(Sha256);

impl ValuesHash {
    /// Adds values.
    pub fn update(&mut self, values: &[f32]) {
        for value in values {
            self.0.update(value.to_le_bytes());
        }
    }

    /// The hash of all values.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

impl Adapter {
    /// Checks the adapter against a model: every layer exists, and every shape fits.
    ///
    /// # Errors
    /// [`PeftError::Tensor`], naming the first tensor that does not fit.
    pub fn check(&self, model: &ModelConfig) -> Result<(), PeftError> {
        let shapes: Vec<PairShape> = self.pairs.iter().map(LoraPair::shape).collect();
        check(&shapes, model)
    }

    /// The paths of a model's linears that the configuration targets and the adapter does not have. They stay as they are in the base, as in PEFT.
    ///
    /// # Errors
    /// [`PeftError::Field`]: a pattern of the configuration takes too long.
    pub fn missing(&self, model: &ModelConfig) -> Result<Vec<String>, PeftError> {
        let shapes: Vec<PairShape> = self.pairs.iter().map(LoraPair::shape).collect();
        missing(&shapes, &self.config, model)
    }
}

/// [`Adapter::check`] on shapes alone.
pub(super) fn check(pairs: &[PairShape], model: &ModelConfig) -> Result<(), PeftError> {
    let error = |name: String, problem: String| PeftError::Tensor {
        path: Path::new(WEIGHTS_FILE).to_owned(),
        name,
        problem,
    };
    for pair in pairs {
        let (inputs, outputs) = pair.module.shape(model);
        if pair.layer >= model.layers {
            let problem = format!("the model has only {} layers", model.layers);
            return Err(error(tensor_name(pair.layer, pair.module, 'A'), problem));
        }
        let rank = pair.rank;
        if pair.inputs != inputs {
            let problem = format!(
                "shape [{rank}, {}], but the model needs [{rank}, {inputs}]",
                pair.inputs
            );
            return Err(error(tensor_name(pair.layer, pair.module, 'A'), problem));
        }
        if pair.outputs != outputs {
            let problem = format!(
                "shape [{}, {rank}], but the model needs [{outputs}, {rank}]",
                pair.outputs
            );
            return Err(error(tensor_name(pair.layer, pair.module, 'B'), problem));
        }
    }
    Ok(())
}

/// [`Adapter::missing`] on shapes alone.
pub(super) fn missing(
    pairs: &[PairShape],
    config: &AdapterConfig,
    model: &ModelConfig,
) -> Result<Vec<String>, PeftError> {
    let matcher = config.matcher(Path::new(CONFIG_FILE))?;
    let present: HashSet<_> = pairs.iter().map(|pair| (pair.layer, pair.module)).collect();
    let mut missing = Vec::new();
    for layer in 0..model.layers {
        for module in Module::ALL {
            let path = module.path(layer);
            if !present.contains(&(layer, module)) && matcher.targets(&[&path])? {
                missing.push(path);
            }
        }
    }
    Ok(missing)
}

/// The name of A or B in the weights, as PEFT writes it.
pub(super) fn tensor_name(layer: usize, module: Module, side: char) -> String {
    format!("base_model.model.{}.lora_{side}.weight", module.path(layer))
}
