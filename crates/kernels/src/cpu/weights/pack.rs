//! Packs a linear layer's weights into tiles, once at load.

use super::{Data, GROUP, Layout, TileBytes as _, Weights, layout_of};
use crate::cpu::arena::{Arena, Slab};
use crate::cpu::device::CpuDevice;
use crate::cpu::pool::Pool;
use crate::cpu::scatter::Scatter;
use crate::cpu::simd::LANES;
use crate::dtype::SourceType;
use crate::error::KernelError;
use crate::quantized::{Group, decode_group};
use bytemuck::Pod;
use half::f16;
use std::sync::OnceLock;

impl CpuDevice {
    /// Repacks `bytes`. `order[i]` is the source row that becomes output `i` (identity if none).
    pub(crate) fn pack(
        &self,
        source: SourceType,
        bytes: &[u8],
        (outputs, inputs): (usize, usize),
        order: Option<&[u32]>,
    ) -> Result<Weights, KernelError> {
        let (pool, arena) = (self.pool(), self.arena());
        let shape = || KernelError::Shape {
            what: format!(
                "{source:?} weights of {outputs} x {inputs} in {} bytes",
                bytes.len()
            ),
        };
        let row_bytes = (inputs / source.block_values())
            .checked_mul(source.block_bytes())
            .ok_or_else(shape)?;
        if outputs == 0
            || inputs == 0
            || !inputs.is_multiple_of(source.block_values())
            || row_bytes.checked_mul(outputs) != Some(bytes.len())
            || order.is_some_and(|o| o.len() != outputs || o.iter().any(|&r| r as usize >= outputs))
        {
            return Err(shape());
        }
        let row = |i: usize| {
            let r = order.map_or(i, |o| o[i] as usize);
            &bytes[r * row_bytes..][..row_bytes]
        };
        let tiles = outputs.div_ceil(LANES);
        let data = match layout_of(source) {
            Some(layout) => {
                let tile_bytes = layout.block() * (inputs / GROUP);
                let mut packed = arena.zeros(tiles * tile_bytes)?;
                let out = Scatter::new(&mut packed);
                pool.run(tiles, &|t| {
                    // SAFETY: one task a tile.
                    let tile = unsafe { out.part(t * tile_bytes, tile_bytes) };
                    for (g, block) in tile.chunks_exact_mut(layout.block()).enumerate() {
                        for lane in 0..LANES.min(outputs - t * LANES) {
                            let group = decode_group(source, row(t * LANES + lane), g);
                            put_group(&layout, block, lane, &group);
                        }
                    }
                });
                Data::Quantized {
                    layout,
                    bytes: packed,
                }
            }
            None if source == SourceType::F32 => {
                Data::F32(panels((pool, arena), outputs, inputs, |i, k| {
                    f32::from_le_bytes(row(i)[4 * k..4 * k + 4].try_into().unwrap_or_default())
                })?)
            }
            None => {
                let values = panels((pool, arena), outputs, inputs, |i, k| {
                    u16::from_le_bytes([row(i)[2 * k], row(i)[2 * k + 1]])
                })?;
                if source == SourceType::F16 {
                    Data::F16(values)
                } else {
                    Data::Bf16(values)
                }
            }
        };
        Ok(Weights {
            outputs,
            inputs,
            data,
            units: OnceLock::new(),
            mean: OnceLock::new(),
        })
    }
}

fn panels<T: Pod + Send>(
    (pool, arena): (&Pool, &Arena),
    outputs: usize,
    inputs: usize,
    value: impl Fn(usize, usize) -> T + Sync,
) -> Result<Slab<T>, KernelError> {
    let tiles = outputs.div_ceil(LANES);
    let mut packed = arena.zeros(tiles * inputs * LANES)?;
    let out = Scatter::new(&mut packed);
    pool.run(tiles, &|t| {
        // SAFETY: one task a tile.
        let tile = unsafe { out.part(t * inputs * LANES, inputs * LANES) };
        for lane in 0..LANES.min(outputs - t * LANES) {
            for k in 0..inputs {
                tile[k * LANES + lane] = value(t * LANES + lane, k);
            }
        }
    });
    Ok(packed)
}

fn put_group(layout: &Layout, block: &mut [u8], lane: usize, group: &Group) {
    for (k, &q) in group.quants.iter().enumerate() {
        let (step, byte) = (k / 4, lane * 4 + k % 4);
        if layout.bits == 4 {
            block[step / 2 * 64 + byte] |= q << (4 * (step % 2));
        } else {
            block[step * 64 + byte] = q;
        }
    }
    let mut at = layout.quants();
    let mut put = |x: f32| {
        if layout.wide_scales {
            block[at + lane * 4..][..4].copy_from_slice(&x.to_le_bytes());
        } else {
            block[at + lane * 2..][..2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
        }
        at += layout.scale_bytes();
    };
    for scale in &group.scales[..layout.scales()] {
        put(*scale);
    }
    if layout.minimum {
        for minimum in &group.minima[..layout.scales()] {
            put(*minimum);
        }
    }
}
