//! Frozen weights as the int16 products read them: units, means and panels.

use super::panel::Panel;
use super::rounding::unit_of;
use super::words;
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::pool::Pool;
use crate::cpu::scatter::Scatter;
use crate::cpu::simd::LANES;
use crate::cpu::weights::unpack::{Block, TILES_AHEAD};
use crate::cpu::weights::{Data, GROUP, TileBytes as _, Weights};

impl Weights {
    /// The unit of each output ([`crate::cpu::int16`]), zeros for the padding of the last tile. Computed once, from all weights.
    pub(crate) fn units(&self, isa: Isa, pool: &Pool) -> &[f32] {
        self.units.get_or_init(|| {
            let mut units = vec![0f32; self.tiles() * LANES];
            let to = Scatter::new(&mut units);
            pool.run(self.tiles(), &|tile| {
                let mut largest = [0u32; LANES];
                self.blocks(isa, tile, 0..self.input_blocks(), |_, block| {
                    magnitudes(isa, block, &mut largest);
                });
                // SAFETY: one task a tile.
                let units = unsafe { to.part(tile * LANES, LANES) };
                for (unit, largest) in units.iter_mut().zip(largest) {
                    *unit = unit_of(f32::from_bits(largest));
                }
            });
            units
        })
    }

    /// The mean of all outputs' weights, by input. Computed once, from all weights.
    pub(crate) fn mean(&self, isa: Isa, pool: &Pool) -> &[f32] {
        self.mean.get_or_init(|| {
            let mut mean = vec![0f32; self.input_blocks() * GROUP];
            let to = Scatter::new(&mut mean);
            pool.run(self.input_blocks(), &|g| {
                // A lane's sum has thousands of terms, and there are 16 of them.
                let mut sums = [[0f32; LANES]; GROUP];
                for tile in 0..self.tiles() {
                    self.block_of_group(isa, tile, g, |block| add_block(isa, block, &mut sums));
                }
                // SAFETY: one task a group.
                let mean = unsafe { to.part(g * GROUP, GROUP) };
                for (mean, sums) in mean.iter_mut().zip(sums) {
                    *mean = sums.iter().sum::<f32>() / self.outputs as f32;
                }
            });
            mean.truncate(self.inputs);
            mean
        })
    }

    /// [`Weights::backward_panel`] as integers.
    pub(crate) fn backward_panel_int16(
        &self,
        isa: Isa,
        g: usize,
        tiles: std::ops::Range<usize>,
        units: &[f32],
        out: &mut Panel,
    ) {
        let units = &units.as_chunks::<LANES>().0[tiles.clone()];
        let out = out.tiles(tiles.len());
        for ((tile, units), out) in tiles.zip(units).zip(out) {
            if let Data::Quantized { layout, bytes } = &self.data {
                self.prefetch(isa, tile + TILES_AHEAD, g);
                let size = layout.block();
                let block = &bytes[(tile * self.groups() + g) * size..][..size];
                words::of_quantized(isa, layout, block, units, out);
            } else {
                let [low, high] = out;
                self.block_of_group(isa, tile, g, |block| {
                    words::of_floats(isa, block, units, [&mut *low, &mut *high]);
                });
            }
        }
    }
}

per_isa! {
    fn add_block(block: &Block, sums: &mut Block) {
        for (sums, row) in sums.iter_mut().zip(block) {
            for lane in 0..LANES {
                sums[lane] += row[lane];
            }
        }
    }
}

per_isa! {
    /// The bits of the largest magnitudes of a block's outputs; those of NaN come last.
    fn magnitudes(block: &Block, largest: &mut [u32; LANES]) {
        for row in block {
            for lane in 0..LANES {
                largest[lane] = largest[lane].max(row[lane].to_bits() & 0x7fff_ffff);
            }
        }
    }
}
