//! Low-rank adapters next to a product, a different one for each row: `y += scale * (x A^T) B^T`.
//!
//! Both matrices have the summed dimension outside and 16 lanes inside. bf16 values are stored in pairs, as the dot product reads
//! them: those of sums 2p and 2p + 1 share a word.

mod backward;
mod dot;
mod dropout;
mod expand;
mod layout;
mod pack;
mod shrink;

use crate::rows::Run;
pub use backward::LoraGrad;
pub(crate) use dot::expand as expand_dot;
pub use dropout::Dropout;
pub(crate) use expand::{ExpandTo, Expansion, expand};
pub use layout::LoraArena;
pub use pack::LoraPack;

/// Which adapters the rows of one product carry. Rows in no run carry none.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// Non-overlapping, ascending.
    pub runs: &'a [Run],
    /// By slot: the adapter's pair for this linear layer, if it has one.
    pub packs: &'a [Option<&'a LoraPack>],
    /// Dropout on the adapters' inputs, in training.
    pub dropout: Option<Dropout<'a>>,
}

impl Lora<'_> {
    /// No adapters.
    pub const NONE: Lora<'static> = Lora {
        runs: &[],
        packs: &[],
        dropout: None,
    };
}
