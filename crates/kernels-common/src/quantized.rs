//! The quantized source formats, as groups of 32 integers with scales and minima, which every device packs in its own order.
//! Layouts of the source blocks: ggml's `ggml-quants.c`.

use crate::dtype::SourceType;
use half::f16;

/// Inputs that share a scale.
pub const GROUP: usize = 32;

/// The layout of a quantized type; none of a float type.
pub fn layout_of(source: SourceType) -> Option<Layout> {
    use SourceType::*;
    let (bits, offset, wide_scales, minimum, halves) = match source {
        F32 | F16 | BF16 => return None,
        Q4_0 => (4, 8, false, false, false),
        Q4_1 => (4, 0, false, true, false),
        Q2_K => (4, 0, true, true, true),
        Q3_K => (4, 8, true, false, true),
        Q4_K => (4, 0, true, true, false),
        Q5_0 => (8, 16, false, false, false),
        Q5_1 => (8, 0, false, true, false),
        Q5_K => (8, 0, true, true, false),
        Q6_K => (8, 32, true, false, true),
        Q8_0 | IQ4_NL => (8, 128, false, false, false),
        IQ4_XS => (8, 128, true, false, false),
    };
    Some(Layout {
        bits,
        offset,
        wide_scales,
        minimum,
        halves,
    })
}

/// What the groups of a quantized type have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 4 or 8.
    pub bits: u8,
    /// Taken from every integer.
    pub offset: i32,
    /// Scales and minima are f32 rather than f16.
    pub wide_scales: bool,
    /// There are minima.
    pub minimum: bool,
    /// Two scales a group, and two minima if there are any, for inputs 0..16 and 16..32.
    pub halves: bool,
}

/// 32 values: `scales[k / 16] * (quants[k] - offset) + minima[k / 16]`, the offset being the layout's.
pub struct Group {
    /// Integers.
    pub quants: [u8; GROUP],
    /// Of values 0..16 and 16..32.
    pub scales: [f32; 2],
    /// Of values 0..16 and 16..32.
    pub minima: [f32; 2],
}

fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Group `g` of a row.
pub fn decode_group(source: SourceType, row: &[u8], g: usize) -> Group {
    let per_block = source.block_values() / GROUP;
    let b = &row[g / per_block * source.block_bytes()..][..source.block_bytes()];
    let sub = g % per_block;
    let mut quants = [0u8; GROUP];
    let nibbles = |q: &mut [u8; GROUP], bytes: &[u8]| {
        for i in 0..16 {
            q[i] = bytes[i] & 15;
            q[i + 16] = bytes[i] >> 4;
        }
    };
    let fifth_bits = |q: &mut [u8; GROUP], bytes: &[u8]| {
        for (i, q) in q.iter_mut().enumerate() {
            *q |= (bytes[i / 8] >> (i % 8) & 1) << 4;
        }
    };
    let (scale, minimum) = match source {
        SourceType::Q4_0 => {
            nibbles(&mut quants, &b[2..]);
            (half(b, 0), 0.0)
        }
        SourceType::Q4_1 => {
            nibbles(&mut quants, &b[4..]);
            (half(b, 0), half(b, 2))
        }
        SourceType::Q5_0 => {
            nibbles(&mut quants, &b[6..]);
            fifth_bits(&mut quants, &b[2..]);
            (half(b, 0), 0.0)
        }
        SourceType::Q5_1 => {
            nibbles(&mut quants, &b[8..]);
            fifth_bits(&mut quants, &b[4..]);
            (half(b, 0), half(b, 2))
        }
        SourceType::Q8_0 => {
            for (q, &x) in quants.iter_mut().zip(&b[2..]) {
                *q = x ^ 0x80;
            }
            (half(b, 0), 0.0)
        }
        SourceType::IQ4_NL => {
            nibbles(&mut quants, &b[2..]);
            (half(b, 0), 0.0)
        }
        SourceType::IQ4_XS => {
            nibbles(&mut quants, &b[8 + sub * 16..]);
            let low = b[4 + sub / 2] >> (4 * (sub % 2)) & 15;
            let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * sub) & 3;
            (
                half(b, 0) * (f32::from(low) + f32::from(16 * high) - 32.0),
                0.0,
            )
        }
        SourceType::Q2_K | SourceType::Q3_K => return low_bits(source, b, sub),
        SourceType::Q4_K | SourceType::Q5_K => {
            let (scale, minimum) = scale_and_minimum(&b[4..16], sub);
            let low = if source == SourceType::Q4_K { 16 } else { 48 };
            for (i, q) in quants.iter_mut().enumerate() {
                *q = b[low + sub / 2 * 32 + i] >> (4 * (sub % 2)) & 15;
                if source == SourceType::Q5_K {
                    *q |= (b[16 + i] >> sub & 1) << 4;
                }
            }
            (
                half(b, 0) * f32::from(scale),
                -(half(b, 2) * f32::from(minimum)),
            )
        }
        SourceType::Q6_K => {
            let (part, quarter) = (sub / 4, sub % 4);
            for (i, q) in quants.iter_mut().enumerate() {
                let low = b[part * 64 + quarter % 2 * 32 + i] >> (4 * (quarter / 2)) & 15;
                let high = b[128 + part * 32 + i] >> (2 * quarter) & 3;
                *q = low | high << 4;
            }
            let d = half(b, 208);
            let scale = |i: usize| d * f32::from(b[192 + part * 8 + quarter * 2 + i] as i8);
            return Group {
                quants,
                scales: [scale(0), scale(1)],
                minima: [0.0; 2],
            };
        }
        SourceType::F32 | SourceType::F16 | SourceType::BF16 => (0.0, 0.0),
    };
    if matches!(source, SourceType::IQ4_NL | SourceType::IQ4_XS) {
        quants = quants.map(|q| IQ4[usize::from(q)] ^ 0x80);
    }
    Group {
        quants,
        scales: [scale; 2],
        minima: [minimum; 2],
    }
}

/// What the 16 numbers of IQ4_NL and IQ4_XS stand for, as the bits of an i8.
const IQ4: [u8; 16] = {
    let values: [i8; 16] = [
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
    ];
    let mut bits = [0; 16];
    let mut i = 0;
    while i < 16 {
        bits[i] = values[i].cast_unsigned();
        i += 1;
    }
    bits
};

/// Group `sub` of a block of Q2_K or Q3_K: two bits of each value, four values a byte; Q3_K's third bits are stored separately.
fn low_bits(source: SourceType, b: &[u8], sub: usize) -> Group {
    let (part, quarter) = (sub / 4, sub % 4);
    let two = |at: usize| -> [u8; GROUP] {
        std::array::from_fn(|i| b[at + part * 32 + i] >> (2 * quarter) & 3)
    };
    if source == SourceType::Q2_K {
        let both = [b[2 * sub], b[2 * sub + 1]];
        return Group {
            quants: two(16),
            scales: both.map(|both| half(b, 80) * f32::from(both & 15)),
            minima: both.map(|both| -(half(b, 82) * f32::from(both >> 4))),
        };
    }
    let low = two(32);
    // A value is the three bits less 4: 4 more here, as the layout takes 8.
    let quants = std::array::from_fn(|i| (low[i] | (b[i] >> sub & 1) << 2) + 4);
    let scale = |i: usize| {
        let low = b[96 + i % 8] >> (4 * (i / 8)) & 15;
        let high = b[104 + i % 4] >> (2 * (i / 4)) & 3;
        half(b, 108) * (f32::from(low | high << 4) - 32.0)
    };
    Group {
        quants,
        scales: [scale(2 * sub), scale(2 * sub + 1)],
        minima: [0.0; 2],
    }
}

/// The 6-bit scale and minimum of sub-block `j` of a 256-block.
fn scale_and_minimum(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (
            s[j + 4] & 15 | s[j - 4] >> 6 << 4,
            s[j + 4] >> 4 | s[j] >> 6 << 4,
        )
    }
}
