//! A linear layer's frozen weights on the card, so that the threads of neighbouring outputs read neighbouring words.
//!
//! ```text
//! 4-bit:  group > output > 4 words: byte b of word j has inputs 4j + b (low nibble) and 16 + 4j + b
//! 8-bit:  group > half > output > 4 words of 4 signed integers
//! scales: f16: pair of groups > output, both in a word; with a minimum: group > output > scale, minimum
//!         f32: group > scale(s), minimum(s) > output
//! f32:    input / 4 > output > 4 values      f16, bf16: input / 8 > output > 8 values
//! ```
//!
//! A matrix that is larger than a binding is cut into parts by outputs.

use crate::device::GpuDevice;
use crate::executor::Buffer;
use half::f16;
use kernels_common::dtype::SourceType;
use kernels_common::error::KernelError;
use kernels_common::quantized::{GROUP, Group, Layout, decode_group, layout_of};

/// The constants of the shaders that read a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// As FORMAT in product.wgsl.
    pub(crate) code: u32,
    pub(crate) layout: Option<Layout>,
}

impl Format {
    pub(crate) fn constants(self, int8: bool) -> [(&'static str, u32); 6] {
        let layout = self.layout;
        // 8-bit integers are stored with the offset taken away.
        let offset = layout.map_or(0, |l| if l.bits == 4 { l.offset as u32 } else { 0 });
        [
            ("FORMAT", self.code),
            ("INT8", u32::from(int8)),
            ("OFFSET", offset),
            ("WIDE", layout.map_or(0, |l| u32::from(l.wide_scales))),
            ("MINIMUM", layout.map_or(0, |l| u32::from(l.minimum))),
            ("HALVES", layout.map_or(0, |l| u32::from(l.halves))),
        ]
    }
}

/// Consecutive outputs of a matrix.
pub(crate) struct Part {
    pub(crate) first: usize,
    pub(crate) outputs: usize,
    pub(crate) values: Buffer,
    pub(crate) scales: Option<Buffer>,
}

/// A matrix of frozen weights, outputs x inputs.
pub struct Weights {
    /// Rows of the matrix.
    pub outputs: usize,
    /// Columns of the matrix.
    pub inputs: usize,
    pub(crate) format: Format,
    pub(crate) parts: Vec<Part>,
}

/// Words of an output: integers or values, and scales.
fn output_words(source: SourceType, inputs: usize) -> (usize, usize) {
    match layout_of(source) {
        Some(layout) => {
            let groups = inputs / GROUP;
            let scales = match (layout.wide_scales, layout.minimum) {
                (false, false) => groups.div_ceil(2),
                (false, true) => groups,
                (true, minimum) => {
                    groups * (1 + usize::from(layout.halves)) * (1 + usize::from(minimum))
                }
            };
            (groups * GROUP * layout.bits as usize / 32, scales)
        }
        None => (inputs * source.block_bytes() / 4, 0),
    }
}

/// Whether the card's kernels take rows of so many inputs.
fn takes(source: SourceType, inputs: usize) -> bool {
    inputs > 0 && inputs.is_multiple_of(source.block_values()) && inputs.is_multiple_of(8)
}

/// Bytes that a matrix takes once it is packed; none if its rows do not fit.
pub fn packed_bytes(source: SourceType, outputs: usize, inputs: usize) -> Option<u64> {
    if !takes(source, inputs) {
        return None;
    }
    let (values, scales) = output_words(source, inputs);
    (4 * (values + scales) as u64).checked_mul(outputs as u64)
}

impl Weights {
    /// Bytes of the card's memory.
    pub fn bytes(&self) -> usize {
        let bytes = |p: &Part| p.values.bytes() + p.scales.as_ref().map_or(0, Buffer::bytes);
        self.parts.iter().map(bytes).sum::<u64>() as usize
    }

    pub(crate) fn is_quantized(&self) -> bool {
        self.format.layout.is_some()
    }
}

impl GpuDevice {
    /// Repacks `bytes`. `order[i]` is the source row that becomes output `i` (identity if none).
    ///
    /// # Errors
    /// The bytes do not fit the shape, or the card has no memory.
    pub fn pack(
        &self,
        source: SourceType,
        bytes: &[u8],
        shape: (usize, usize),
        order: Option<&[u32]>,
    ) -> Result<Weights, KernelError> {
        let largest_buffer = self.executor().largest_buffer();
        self.pack_within(largest_buffer, source, bytes, shape, order)
    }

    /// [`GpuDevice::pack`] into buffers of at most `largest_buffer` bytes.
    pub(crate) fn pack_within(
        &self,
        largest_buffer: u64,
        source: SourceType,
        bytes: &[u8],
        (outputs, inputs): (usize, usize),
        order: Option<&[u32]>,
    ) -> Result<Weights, KernelError> {
        let row_bytes = inputs / source.block_values() * source.block_bytes();
        if outputs == 0
            || !takes(source, inputs)
            || row_bytes.checked_mul(outputs) != Some(bytes.len())
            || order.is_some_and(|o| o.len() != outputs || o.iter().any(|&r| r as usize >= outputs))
        {
            return Err(KernelError::Shape {
                what: format!(
                    "{source:?} weights of {outputs} x {inputs} in {} bytes; a graphics card takes inputs in eights",
                    bytes.len()
                ),
            });
        }
        let row = |i: usize| {
            let r = order.map_or(i, |o| o[i] as usize);
            &bytes[r * row_bytes..][..row_bytes]
        };
        let (value_words, scale_words) = output_words(source, inputs);
        let most = largest_buffer as usize / (4 * value_words.max(scale_words));
        if most == 0 {
            return Err(KernelError::DeviceMemory {
                bytes: 4 * value_words as u64,
                reason: "one output is larger than a buffer of this device".to_owned(),
            });
        }
        let mut parts = Vec::new();
        for first in (0..outputs).step_by(most) {
            let count = most.min(outputs - first);
            let mut values = vec![0u32; count * value_words];
            let mut scales = vec![0u32; count * scale_words];
            match layout_of(source) {
                Some(layout) => {
                    let packed = |output: usize, group: usize| {
                        decode_group(source, row(first + output), group)
                    };
                    fill_quantized(
                        layout,
                        count,
                        inputs / GROUP,
                        packed,
                        &mut values,
                        &mut scales,
                    );
                }
                None => {
                    let words = |output: usize| {
                        bytemuck::pod_collect_to_vec::<u8, u32>(row(first + output))
                    };
                    fill_floats(count, words, &mut values);
                }
            }
            parts.push(Part {
                first,
                outputs: count,
                values: self.upload(&values)?,
                scales: match scales.is_empty() {
                    true => None,
                    false => Some(self.upload(&scales)?),
                },
            });
        }
        let layout = layout_of(source);
        let code = match (source, layout) {
            (_, Some(layout)) => 3 + u32::from(layout.bits == 8),
            (SourceType::F16, _) => 1,
            (SourceType::BF16, _) => 2,
            _ => 0,
        };
        Ok(Weights {
            outputs,
            inputs,
            format: Format { code, layout },
            parts,
        })
    }

    fn upload(&self, words: &[u32]) -> Result<Buffer, KernelError> {
        let buffer = self.executor().buffer(4 * words.len() as u64)?;
        self.executor().write_unused(&buffer, 0, words);
        // The copy that the driver keeps until then is as large as the tensor.
        self.executor().wait();
        match self.executor().fault() {
            Some(reason) => Err(KernelError::Card {
                name: self.info().name.clone(),
                reason,
            }),
            None => Ok(buffer),
        }
    }
}

fn fill_quantized(
    layout: Layout,
    outputs: usize,
    groups: usize,
    packed: impl Fn(usize, usize) -> Group,
    values: &mut [u32],
    scales: &mut [u32],
) {
    let group_words = GROUP * layout.bits as usize / 32;
    for output in 0..outputs {
        for g in 0..groups {
            let group = packed(output, g);
            for word in 0..group_words {
                let at = if layout.bits == 4 {
                    (g * outputs + output) * 4 + word
                } else {
                    ((2 * g + word / 4) * outputs + output) * 4 + word % 4
                };
                values[at] = (0..4).fold(0, |packed, byte| {
                    let i = 4 * word + byte;
                    let bits = if layout.bits == 4 {
                        u32::from(group.quants[i]) | u32::from(group.quants[16 + i]) << 4
                    } else {
                        (i32::from(group.quants[i]) - layout.offset) as u32 & 0xff
                    };
                    packed | bits << (8 * byte)
                });
            }
            put_scales(layout, outputs, output, g, &group, scales);
        }
    }
}

fn put_scales(
    layout: Layout,
    outputs: usize,
    output: usize,
    g: usize,
    group: &Group,
    scales: &mut [u32],
) {
    let f16_bits = |x: f32| u32::from(f16::from_f32(x).to_bits());
    match (layout.wide_scales, layout.minimum) {
        (false, false) => {
            scales[g / 2 * outputs + output] |= f16_bits(group.scales[0]) << (16 * (g % 2));
        }
        (false, true) => {
            scales[g * outputs + output] =
                f16_bits(group.scales[0]) | f16_bits(group.minima[0]) << 16;
        }
        (true, minimum) => {
            let halves = 1 + usize::from(layout.halves);
            let values = group.scales[..halves].iter();
            let minima = group.minima[..halves]
                .iter()
                .take(if minimum { halves } else { 0 });
            let planes = halves * (1 + usize::from(minimum));
            for (plane, value) in values.chain(minima).enumerate() {
                scales[(g * planes + plane) * outputs + output] = value.to_bits();
            }
        }
    }
}

fn fill_floats(outputs: usize, words: impl Fn(usize) -> Vec<u32>, values: &mut [u32]) {
    for output in 0..outputs {
        for (i, four) in words(output).chunks_exact(4).enumerate() {
            values[(i * outputs + output) * 4..][..4].copy_from_slice(four);
        }
    }
}
