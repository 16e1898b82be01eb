//! Quantizes as ggml's reference does; for tiny models, tests and exports.

use half::{bf16, f16};

use super::{GgmlType, GgufError};

const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0";

/// Quantizes whole blocks of finite numbers.
///
/// # Errors
/// A type that is not supported, by name; a length that is not whole blocks.
pub fn quantize(dtype: GgmlType, values: &[f32]) -> Result<Vec<u8>, GgufError> {
    let Some(needs) = dtype.bytes_for(values.len() as u64) else {
        return Err(GgufError::Length {
            dtype: dtype.name(),
            elements: values.len(),
            needs: 0,
            has: 0,
        });
    };
    let block: fn(&[f32], &mut Vec<u8>) = match dtype {
        GgmlType::F32 => |x, out| out.extend_from_slice(&x[0].to_le_bytes()),
        GgmlType::F16 => |x, out| out.extend_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => |x, out| out.extend_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q4_0 => |x, out| symmetric(x, 8.0, out),
        GgmlType::Q4_1 => |x, out| affine(x, 15.0, out),
        GgmlType::Q5_0 => |x, out| symmetric(x, 16.0, out),
        GgmlType::Q5_1 => |x, out| affine(x, 31.0, out),
        GgmlType::Q8_0 => q8_0,
        _ => {
            return Err(GgufError::Unsupported {
                dtype: dtype.name(),
                verb: "quantized",
                supported: SUPPORTED,
            });
        }
    };
    let mut out = Vec::with_capacity(needs as usize);
    for values in values.chunks_exact(dtype.block_size()) {
        block(values, &mut out);
    }
    Ok(out)
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Q4_0 and Q5_0: the value of the largest magnitude becomes -`half`.
fn symmetric(x: &[f32], half: f32, out: &mut Vec<u8>) {
    // The first of the largest, as ggml's `<` picks it.
    let peak = x.iter().fold(
        0.0f32,
        |peak, &x| if x.abs() > peak.abs() { x } else { peak },
    );
    let d = peak / -half;
    let id = inverse(d);
    let top = 2.0 * half - 1.0;
    let q: [u8; 32] =
        std::array::from_fn(|index| (x[index] * id + half + 0.5).clamp(0.0, top) as u8);
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    pack(&q, half > 8.0, out);
}

/// Q4_1 and Q5_1: the smallest becomes 0, the largest `top`.
fn affine(x: &[f32], top: f32, out: &mut Vec<u8>) {
    let smallest = x.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (largest - smallest) / top;
    let id = inverse(d);
    let q: [u8; 32] =
        std::array::from_fn(|index| ((x[index] - smallest) * id + 0.5).clamp(0.0, top) as u8);
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend_from_slice(&f16::from_f32(smallest).to_le_bytes());
    pack(&q, top > 15.0, out);
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = x.iter().fold(0.0f32, |peak, x| peak.max(x.abs())) / 127.0;
    let id = inverse(d);
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend(x.iter().map(|x| (x * id).round() as i8 as u8));
}

/// The fifth bits first, where there are any, then the low halves: element i and i+16 share a byte.
fn pack(q: &[u8; 32], fifth: bool, out: &mut Vec<u8>) {
    if fifth {
        let high = q
            .iter()
            .rev()
            .fold(0u32, |high, q| high << 1 | u32::from(q >> 4 & 1));
        out.extend_from_slice(&high.to_le_bytes());
    }
    out.extend((0..16).map(|index| (q[index] & 15) | q[index + 16] << 4));
}
