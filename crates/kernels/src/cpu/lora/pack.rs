//! One adapter's matrices for one linear layer.

use super::layout::{LoraArena, Transposed, Values};
use crate::cpu::isa::Isa;
use crate::cpu::simd::{LANES, prefetch};
use crate::dtype::LoraType;
use crate::error::KernelError;

/// One adapter's pair of matrices for one linear layer, packed for products.
pub struct LoraPack {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) rank: usize,
    /// Rank rounded up to whole vectors.
    pub(crate) padded: usize,
    /// alpha / rank, unless the adapter sets another scale.
    pub(crate) scale: f32,
    /// A^T: inputs x padded.
    pub(super) a: Values,
    /// B^T in tiles of 16 outputs: tile > rank > 16, so that the values of a tile are adjacent.
    pub(super) b: Values,
    // Both have an even number of columns; padding is 0.
}

impl LoraPack {
    /// Packs `a` (rank x inputs) and `b` (outputs x rank), both row-major; `scale` multiplies their product.
    ///
    /// # Errors
    /// The lengths do not fit the shape, or there is no memory.
    pub fn new(
        arena: &LoraArena,
        a: &[f32],
        b: &[f32],
        (outputs, inputs, rank): (usize, usize, usize),
        scale: f32,
        dtype: LoraType,
    ) -> Result<LoraPack, KernelError> {
        if rank == 0
            || rank.checked_mul(inputs) != Some(a.len())
            || rank.checked_mul(outputs) != Some(b.len())
        {
            return Err(KernelError::Shape {
                what: format!(
                    "LoRA of rank {rank} on {outputs} x {inputs} with {} and {} values",
                    a.len(),
                    b.len()
                ),
            });
        }
        let (a_layout, b_layout) = (Transposed::of_a(inputs, rank), Transposed::of_b(rank));
        let b_len = outputs.div_ceil(LANES) * b_layout.tile;
        Ok(LoraPack {
            inputs,
            outputs,
            rank,
            padded: a_layout.stride,
            scale,
            a: Values::new(&arena.a, dtype, a_layout.tile, a, a_layout)?,
            b: Values::new(&arena.b, dtype, b_len, b, b_layout)?,
        })
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.b.bytes()
    }

    /// Whether [`LoraPack::shrink_dot`] and [`super::expand_dot`] take it, where the machine has them.
    pub(crate) fn is_paired(&self) -> bool {
        matches!(self.a, Values::Bf16(_))
    }

    /// Prefetches the part of B that [`super::expand`] will read for `columns`: pieces of many adapters are far apart, and the
    /// products in between give them time to arrive.
    pub(crate) fn prefetch(&self, isa: Isa, columns: std::ops::Range<usize>) {
        let piece = self.rank.next_multiple_of(2) * LANES;
        let tiles = columns.start / LANES..columns.end.div_ceil(LANES);
        let bytes = tiles.len() * piece * self.b.value_bytes();
        let from = self.b.pointer(tiles.start * piece);
        for line in (0..bytes).step_by(64) {
            prefetch(isa, from.wrapping_add(line));
        }
    }
}
