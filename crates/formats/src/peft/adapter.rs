//! An adapter in memory, and its check against a model.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::AdapterConfig;
use super::error::PeftError;
use super::limits::{CONFIG_FILE, WEIGHTS_FILE};
use super::module::Module;
use crate::config::ModelConfig;
use crate::safetensors::Dtype;

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
}

impl Adapter {
    /// Checks the adapter against a model: every layer exists, every shape fits, and every linear that
    /// the configuration targets is there.
    ///
    /// # Errors
    /// [`PeftError::Tensor`], naming the first tensor that does not fit or is missing.
    pub fn check(&self, model: &ModelConfig) -> Result<(), PeftError> {
        let shapes: Vec<PairShape> = self.pairs.iter().map(LoraPair::shape).collect();
        check(&shapes, &self.config, model)
    }
}

/// [`Adapter::check`] on shapes alone.
pub(super) fn check(
    pairs: &[PairShape],
    config: &AdapterConfig,
    model: &ModelConfig,
) -> Result<(), PeftError> {
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
    let matcher = config.matcher(Path::new(CONFIG_FILE))?;
    for layer in 0..model.layers {
        for module in Module::ALL {
            let present = pairs
                .iter()
                .any(|pair| (pair.layer, pair.module) == (layer, module));
            if !present && matcher.targets(&module.path(layer)) {
                let problem = format!("missing, but target_modules of {CONFIG_FILE} asks for it");
                return Err(error(tensor_name(layer, module, 'A'), problem));
            }
        }
    }
    Ok(())
}

/// The name of A or B in the weights, as PEFT writes it.
pub(super) fn tensor_name(layer: usize, module: Module, side: char) -> String {
    format!("base_model.model.{}.lora_{side}.weight", module.path(layer))
}
