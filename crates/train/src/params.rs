//! The trained parameters: the LoRA pairs of one adapter in f32, and gradients of the same shape.
//!
//! Does not know file formats or optimizers. The order of tensors is fixed (a then b, pair by pair). Sums over an adapter
//! use this order, so they have the same bits everywhere.

use formats::peft::{LoraPair, PairShape};

/// The f32 master weights of one adapter. Without pairs, it is the bare base.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoraParams {
    /// The pairs, sorted by layer and module.
    pub pairs: Vec<LoraPair>,
}

/// The gradients (or moments) of one pair.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PairGrads {
    /// [rank x inputs], as `LoraPair::a`.
    pub a: Vec<f32>,
    /// [outputs x rank], as `LoraPair::b`.
    pub b: Vec<f32>,
}

/// The gradients of one adapter, in the order of its pairs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoraGrads {
    /// One entry for each pair of the parameters.
    pub pairs: Vec<PairGrads>,
}

impl LoraParams {
    /// Zeros in these shapes.
    #[must_use]
    pub fn zeros(shapes: &[PairShape]) -> Self {
        let zeros = |shape: &PairShape| LoraPair {
            layer: shape.layer,
            module: shape.module,
            rank: shape.rank,
            inputs: shape.inputs,
            outputs: shape.outputs,
            scale: shape.scale,
            a: vec![0.0; shape.rank * shape.inputs],
            b: vec![0.0; shape.outputs * shape.rank],
        };
        Self {
            pairs: shapes.iter().map(zeros).collect(),
        }
    }
}

impl LoraGrads {
    /// Zeros in the shapes of `params`.
    #[must_use]
    pub fn zeros_like(params: &LoraParams) -> Self {
        let zeros = |pair: &LoraPair| PairGrads {
            a: vec![0.0; pair.a.len()],
            b: vec![0.0; pair.b.len()],
        };
        Self {
            pairs: params.pairs.iter().map(zeros).collect(),
        }
    }

    /// Sets every number to zero.
    pub fn clear(&mut self) {
        self.tensors_mut().for_each(|tensor| tensor.fill(0.0));
    }

    /// The tensors in their fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = &[f32]> {
        self.pairs
            .iter()
            .flat_map(|pair| [pair.a.as_slice(), pair.b.as_slice()])
    }

    /// The tensors in their fixed order, mutable.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.pairs
            .iter_mut()
            .flat_map(|pair| [pair.a.as_mut_slice(), pair.b.as_mut_slice()])
    }
}

/// The tensors of `params` in their fixed order.
pub fn tensors(params: &LoraParams) -> impl Iterator<Item = &[f32]> {
    params
        .pairs
        .iter()
        .flat_map(|pair| [pair.a.as_slice(), pair.b.as_slice()])
}

/// The tensors of `params` in their fixed order, mutable.
pub fn tensors_mut(params: &mut LoraParams) -> impl Iterator<Item = &mut [f32]> {
    params
        .pairs
        .iter_mut()
        .flat_map(|pair| [pair.a.as_mut_slice(), pair.b.as_mut_slice()])
}

/// Number of trained parameters.
#[must_use]
pub fn count(params: &LoraParams) -> usize {
    tensors(params).map(<[f32]>::len).sum()
}
