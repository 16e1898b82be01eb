//! The weights of a panel as integers.

use super::words::Words;
use crate::cpu::simd::LANES;

/// The weights of a panel: 32 inputs of all outputs of its tiles.
#[derive(Default)]
pub(crate) struct Panel {
    /// Pairs of outputs for the first 16 inputs, then for the others.
    pub(super) halves: [Vec<[u32; LANES]>; 2],
}

impl Panel {
    /// Makes room for `tiles` tiles and returns it tile by tile.
    pub(crate) fn tiles(&mut self, tiles: usize) -> impl Iterator<Item = Words<'_>> {
        let [low, high] = self.halves.each_mut().map(|half| {
            half.resize(tiles * LANES / 2, [0; LANES]);
            half.as_chunks_mut::<{ LANES / 2 }>().0.iter_mut()
        });
        low.zip(high).map(|(low, high)| [low, high])
    }
}
