//! Weights of a linear layer, packed once at load into tiles of 16 outputs.
//!
//! ```text
//! quantized: tile (16 outputs) > group (32 inputs) > [ integers | 16 scales | 16 minima ], scales and minima twice for halves
//!   integers: step j holds inputs 4j..4j+4 of 16 outputs as 64 bytes (output-major), 8 steps a group;
//!             4-bit: steps 2i and 2i+1 share 64 bytes, as low and high nibbles
//! float:     tile (16 outputs) > input > 16 values
//! ```
//!
//! A value is `scale * (integer - offset) + minimum`, exactly what the source format says it is. A step of 64 bytes is what
//! `vpdpbusd` multiplies at once, so the same tile serves one row and many.

mod pack;
pub(crate) mod unpack;

use crate::cpu::arena::Slab;
use crate::cpu::simd::LANES;
use crate::dtype::SourceType;
pub(crate) use crate::quantized::{GROUP, Layout, layout_of};
use half::{bf16, f16};
use std::sync::OnceLock;

/// Bytes that a matrix takes once it is packed; none if its rows are not whole blocks.
pub(crate) fn packed_bytes(source: SourceType, outputs: usize, inputs: usize) -> Option<u64> {
    if !inputs.is_multiple_of(source.block_values()) {
        return None;
    }
    let tiles = outputs.div_ceil(LANES) as u64;
    let tile = match layout_of(source) {
        Some(layout) => layout.block() * (inputs / GROUP),
        None => source.block_bytes() * inputs * LANES,
    };
    tiles.checked_mul(tile as u64)
}

/// The bytes of a group in a tile of 16 outputs.
pub(crate) trait TileBytes {
    /// Integers.
    fn quants(&self) -> usize;
    /// Number of scales of an output, and of minima if there are any.
    fn scales(&self) -> usize;
    /// One scale of all outputs.
    fn scale_bytes(&self) -> usize;
    /// All of it.
    fn block(&self) -> usize;
}

impl TileBytes for Layout {
    #[inline(always)]
    fn quants(&self) -> usize {
        GROUP * LANES * self.bits as usize / 8
    }
    #[inline(always)]
    fn scales(&self) -> usize {
        if self.halves { 2 } else { 1 }
    }
    #[inline(always)]
    fn scale_bytes(&self) -> usize {
        LANES * if self.wide_scales { 4 } else { 2 }
    }
    #[inline(always)]
    fn block(&self) -> usize {
        self.quants() + self.scales() * (1 + usize::from(self.minimum)) * self.scale_bytes()
    }
}

pub(crate) enum Data {
    Quantized { layout: Layout, bytes: Slab<u8> },
    F32(Slab<f32>),
    F16(Slab<u16>),
    Bf16(Slab<u16>),
}

/// A linear layer's frozen weights, `outputs x inputs`, in the device's own layout.
pub struct Weights {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) data: Data,
    /// The outputs' units for [`crate::cpu::int16`], computed at the first backward.
    pub(crate) units: OnceLock<Vec<f32>>,
    /// The outputs' mean, computed at the first backward.
    pub(crate) mean: OnceLock<Vec<f32>>,
}

impl Weights {
    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Quantized { bytes, .. } => bytes.len(),
            Data::F32(v) => v.len() * 4,
            Data::F16(v) | Data::Bf16(v) => v.len() * 2,
        }
    }

    /// Whether products may run on int8 activations.
    pub fn is_quantized(&self) -> bool {
        matches!(self.data, Data::Quantized { .. })
    }

    pub(crate) fn tiles(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub(crate) fn groups(&self) -> usize {
        self.inputs / GROUP
    }

    /// The values of output `row` (the slow, obvious way; also how embeddings are looked up).
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let (tile, lane) = (row / LANES, row % LANES);
        match &self.data {
            Data::Quantized { layout, bytes } => {
                let block = layout.block();
                for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
                    let bytes = &bytes[(tile * self.groups() + g) * block..][..block];
                    for (k, out) in out.iter_mut().enumerate() {
                        let (scale, minimum) = scales(layout, bytes, lane, k);
                        let q = quant(layout, bytes, lane, k) - layout.offset;
                        *out = (q as f32).mul_add(scale, minimum);
                    }
                }
            }
            Data::F32(v) => {
                for (k, out) in out.iter_mut().enumerate() {
                    *out = v[(tile * self.inputs + k) * LANES + lane];
                }
            }
            Data::F16(v) => {
                for (k, out) in out.iter_mut().enumerate() {
                    *out = f16::from_bits(v[(tile * self.inputs + k) * LANES + lane]).to_f32();
                }
            }
            Data::Bf16(v) => {
                for (k, out) in out.iter_mut().enumerate() {
                    *out = bf16::from_bits(v[(tile * self.inputs + k) * LANES + lane]).to_f32();
                }
            }
        }
    }
}

fn quant(layout: &Layout, block: &[u8], lane: usize, k: usize) -> i32 {
    let (step, byte) = (k / 4, lane * 4 + k % 4);
    i32::from(if layout.bits == 4 {
        block[step / 2 * 64 + byte] >> (4 * (step % 2)) & 15
    } else {
        block[step * 64 + byte]
    })
}

fn scales(layout: &Layout, block: &[u8], lane: usize, k: usize) -> (f32, f32) {
    let get = |row: usize| {
        let at = layout.quants() + row * layout.scale_bytes();
        if layout.wide_scales {
            f32::from_le_bytes(block[at + lane * 4..][..4].try_into().unwrap_or_default())
        } else {
            f16::from_le_bytes([block[at + lane * 2], block[at + lane * 2 + 1]]).to_f32()
        }
    };
    let half = usize::from(layout.halves && k >= GROUP / 2);
    let scale = get(half);
    let minimum = if layout.minimum {
        get(layout.scales() + half)
    } else {
        0.0
    };
    (scale, minimum)
}
