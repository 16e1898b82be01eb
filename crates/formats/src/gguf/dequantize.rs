//! Dequantizes blocks in the slow, obvious way. Every fast kernel is tested against it.
//!
//! Layouts after ggml (ggml-common.h, ggml-quants.c). `d` is a block's scale, `m` its minimum; nibbles of a 32-block:
//! the low halves of the 16 bytes are elements 0..16, the high halves 16..32.

use half::f16;

use super::{GgmlType, GgufError};

const SUPPORTED: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS";

/// Dequantizes whole blocks: `data` holds exactly `out.len()` elements of type `dtype`.
///
/// # Errors
/// A type that is not supported, by name; lengths that do not match.
pub fn dequantize(dtype: GgmlType, data: &[u8], out: &mut [f32]) -> Result<(), GgufError> {
    let needs = dtype.bytes_for(out.len() as u64);
    if needs != Some(data.len() as u64) {
        return Err(GgufError::Length {
            dtype: dtype.name(),
            elements: out.len(),
            needs: needs.unwrap_or(0),
            has: data.len() as u64,
        });
    }
    let block: fn(&[u8], &mut [f32]) = match dtype {
        GgmlType::F32 => f32_element,
        GgmlType::F16 => |data, out| out[0] = half_at(data, 0),
        GgmlType::BF16 => {
            |data, out| out[0] = half::bf16::from_le_bytes([data[0], data[1]]).to_f32()
        }
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q2_K => q2_k,
        GgmlType::Q3_K => q3_k,
        GgmlType::IQ4_NL => iq4_nl,
        GgmlType::IQ4_XS => iq4_xs,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q5_K => q5_k,
        GgmlType::Q6_K => q6_k,
        _ => {
            return Err(GgufError::Unsupported {
                dtype: dtype.name(),
                verb: "dequantized",
                supported: SUPPORTED,
            });
        }
    };
    for (data, out) in data
        .chunks_exact(dtype.type_size())
        .zip(out.chunks_exact_mut(dtype.block_size()))
    {
        block(data, out);
    }
    Ok(())
}

fn half_at(data: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([data[at], data[at + 1]]).to_f32()
}

fn f32_element(data: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([data[0], data[1], data[2], data[3]]);
}

/// `d:f16 q:[u4;32]`, x = d*(q-8)
fn q4_0(data: &[u8], out: &mut [f32]) {
    let d = half_at(data, 0);
    for (index, &byte) in data[2..18].iter().enumerate() {
        out[index] = d * (f32::from(byte & 15) - 8.0);
        out[index + 16] = d * (f32::from(byte >> 4) - 8.0);
    }
}

/// `d:f16 m:f16 q:[u4;32]`, x = d*q + m
fn q4_1(data: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(data, 0), half_at(data, 2));
    for (index, &byte) in data[4..20].iter().enumerate() {
        out[index] = d * f32::from(byte & 15) + m;
        out[index + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// The 32 five-bit numbers of `high:u32 low:[u4;32]`.
fn five_bits(data: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
    std::array::from_fn(|index| {
        let byte = data[4 + index % 16];
        let low = if index < 16 { byte & 15 } else { byte >> 4 };
        low | (((high >> index) & 1) as u8) << 4
    })
}

/// `d:f16 high:u32 low:[u4;32]`, x = d*(q-16)
fn q5_0(data: &[u8], out: &mut [f32]) {
    let d = half_at(data, 0);
    for (out, q) in out.iter_mut().zip(five_bits(&data[2..])) {
        *out = d * (f32::from(q) - 16.0);
    }
}

/// `d:f16 m:f16 high:u32 low:[u4;32]`, x = d*q + m
fn q5_1(data: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(data, 0), half_at(data, 2));
    for (out, q) in out.iter_mut().zip(five_bits(&data[4..])) {
        *out = d * f32::from(q) + m;
    }
}

/// `d:f16 q:[i8;32]`, x = d*q
fn q8_0(data: &[u8], out: &mut [f32]) {
    let d = half_at(data, 0);
    for (out, &byte) in out.iter_mut().zip(&data[2..34]) {
        *out = d * f32::from(byte as i8);
    }
}

/// The six-bit scale and minimum of group `j` of 8, from the 12 bytes that Q4_K and Q5_K share:
///
/// ```text
/// bytes 0..4   low six bits: scales 0..4     high two: bits 4,5 of scales 4..8
/// bytes 4..8   low six bits: minima 0..4     high two: bits 4,5 of minima 4..8
/// bytes 8..12  low four bits: scales 4..8    high four: minima 4..8
/// ```
fn scale_and_minimum(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let (scale_high, minimum_high) = (packed[j - 4] >> 6, packed[j] >> 6);
        (
            (packed[j + 4] & 15) | scale_high << 4,
            (packed[j + 4] >> 4) | minimum_high << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// The two bits of element `index` of 256. Per half of 128: 32 bytes, whose bits 0-1 are its first 32 elements, 2-3 the next.
fn two_bits(data: &[u8], index: usize) -> u8 {
    let (half, run, at) = (index / 128, index % 128 / 32, index % 32);
    (data[half * 32 + at] >> (run * 2)) & 3
}

/// `scales:[u4 scale, u4 minimum;16] q:[u2;256] d:f16 m:f16`: 16 groups of 16, x = d*scale*q - m*minimum.
fn q2_k(data: &[u8], out: &mut [f32]) {
    let (scales, q) = (&data[..16], &data[16..80]);
    let (d, m) = (half_at(data, 80), half_at(data, 82));
    for (index, out) in out.iter_mut().enumerate() {
        let both = scales[index / 16];
        let (scale, minimum) = (f32::from(both & 15), f32::from(both >> 4));
        *out = d * scale * f32::from(two_bits(q, index)) - m * minimum;
    }
}

/// `high:[u8;32] low:[u2;256] scales:[u8;12] d:f16`: 16 groups of 16, x = d*(scale-32)*(q-4). Bit `j` of `high[i]` is the third bit
/// of element `i` of the `j`th 32. Scale `j` has six bits: the low four are the low halves of scales 0..8 for the first eight,
/// the high halves for the others; the high two are bits 0-1, 2-3, 4-5, 6-7 of scales 8..12 for each four.
fn q3_k(data: &[u8], out: &mut [f32]) {
    let (high, low, scales) = (&data[..32], &data[32..96], &data[96..108]);
    let d = half_at(data, 108);
    for (index, out) in out.iter_mut().enumerate() {
        let group = index / 16;
        let scale_low = (scales[group % 8] >> (group / 8 * 4)) & 15;
        let scale_high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
        let scale = f32::from(scale_low | scale_high << 4) - 32.0;
        let third = (high[index % 32] >> (index / 32)) & 1;
        let q = f32::from(two_bits(low, index) | third << 2) - 4.0;
        *out = d * scale * q;
    }
}

/// The values of the 16 codes of IQ4_NL and IQ4_XS.
const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// `d:f16 q:[u4;32]`, x = d*values[q]
fn iq4_nl(data: &[u8], out: &mut [f32]) {
    let d = half_at(data, 0);
    iq4(d, &data[2..18], out);
}

/// `d:f16 high:u16 low:[u4;8] q:[u4;256]`: 8 groups of 32, x = d*(scale-32)*values[q]; two bits of a group's scale are of `high`.
fn iq4_xs(data: &[u8], out: &mut [f32]) {
    let d = half_at(data, 0);
    let high = u16::from_le_bytes([data[2], data[3]]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let low = (data[4 + j / 2] >> (j % 2 * 4)) & 15;
        let scale = low | (((high >> (2 * j)) & 3) as u8) << 4;
        iq4(
            d * (f32::from(scale) - 32.0),
            &data[8 + 16 * j..][..16],
            out,
        );
    }
}

fn iq4(scale: f32, q: &[u8], out: &mut [f32]) {
    for (index, &byte) in q.iter().enumerate() {
        out[index] = scale * f32::from(IQ4_VALUES[usize::from(byte & 15)]);
        out[index + 16] = scale * f32::from(IQ4_VALUES[usize::from(byte >> 4)]);
    }
}

/// `d:f16 m:f16 scales:[u8;12] q:[u4;256]`: 8 groups of 32, x = d*scale*q - m*minimum. Two groups share 32 bytes, the
/// first in the low halves.
fn q4_k(data: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(data, 0), half_at(data, 2));
    let (packed, q) = (&data[4..16], &data[16..144]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, j);
        let (scale, minimum) = (d * scale, m * minimum);
        for (index, out) in out.iter_mut().enumerate() {
            let q = (q[j / 2 * 32 + index] >> (j % 2 * 4)) & 15;
            *out = scale * f32::from(q) - minimum;
        }
    }
}

/// `d:f16 m:f16 scales:[u8;12] high:[u8;32] low:[u4;256]`: as Q4_K, with bit `j` of `high[i]` the fifth bit of element
/// `i` of group `j`.
fn q5_k(data: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(data, 0), half_at(data, 2));
    let (packed, high, low) = (&data[4..16], &data[16..48], &data[48..176]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, j);
        let (scale, minimum) = (d * scale, m * minimum);
        for (index, out) in out.iter_mut().enumerate() {
            let low = (low[j / 2 * 32 + index] >> (j % 2 * 4)) & 15;
            let q = low | ((high[index] >> j) & 1) << 4;
            *out = scale * f32::from(q) - minimum;
        }
    }
}

/// `low:[u4;256] high:[u2;256] scales:[i8;16] d:f16`: 16 groups of 16, x = d*scale*(q-32). Per half of 128: four runs of
/// 32, whose low bits are (low halves of bytes 0..32, of 32..64, high halves of 0..32, of 32..64) and whose high bits are
/// bits 0-1, 2-3, 4-5, 6-7 of 32 bytes.
fn q6_k(data: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (
        &data[..128],
        &data[128..192],
        &data[192..208],
        half_at(data, 208),
    );
    for (index, out) in out.iter_mut().enumerate() {
        let (half, run, at) = (index / 128, index % 128 / 32, index % 32);
        let low = (low[half * 64 + run % 2 * 32 + at] >> (run / 2 * 4)) & 15;
        let high = (high[half * 32 + at] >> (run * 2)) & 3;
        let q = f32::from(low | high << 4) - 32.0;
        *out = d * f32::from(scales[index / 16] as i8) * q;
    }
}
