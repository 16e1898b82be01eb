//! What the tests of kernels share: random numbers, random blocks, finite differences, tolerances.

use crate::dtype::SourceType;
use crate::quantized::{GROUP, decode_group, layout_of};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// A generator of random numbers.
pub struct Random(SplitMix64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(SplitMix64::seed_from_u64(seed))
    }
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }
    /// A number in -1..1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    /// `n` numbers in -1..1.
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// `n` numbers in -1..1, the same for the same `seed`.
pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
    Random::new(seed).values(n)
}

/// As f64.
pub fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The gradient of `f` at `x` by central differences, with an error near 1e-9 for numbers of size one.
pub fn finite_difference(x: &[f32], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = to_f64(x);
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + STEP;
            let above = f(&x);
            x[i] = at - STEP;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// The sum of `a * b`: with made-up `a`, a scalar loss whose gradient by `b` is `a`.
pub fn weighted(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum()
}

/// Checks that every element of `got` is within `tolerance` of `expected`, relative to the largest element.
///
/// # Panics
/// One is not.
#[track_caller]
pub fn assert_near(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= tolerance * largest,
            "{what}[{i}]: {got} is not {expected}"
        );
    }
}

/// Every type of source.
pub const TYPES: [SourceType; 15] = [
    SourceType::F32,
    SourceType::F16,
    SourceType::BF16,
    SourceType::Q4_0,
    SourceType::Q4_1,
    SourceType::Q5_0,
    SourceType::Q5_1,
    SourceType::Q8_0,
    SourceType::Q2_K,
    SourceType::Q3_K,
    SourceType::Q4_K,
    SourceType::Q5_K,
    SourceType::Q6_K,
    SourceType::IQ4_NL,
    SourceType::IQ4_XS,
];

/// Random blocks: random integers, small scales.
pub fn random_bytes(source: SourceType, values: usize, r: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    let f16_bytes = |x: f32| half::f16::from_f32(x).to_le_bytes();
    for _ in 0..values / source.block_values() {
        let mut b: Vec<u8> = (0..source.block_bytes()).map(|_| r.next() as u8).collect();
        let d = f16_bytes(0.01 + 0.01 * r.value().abs());
        let m = f16_bytes(0.05 * r.value());
        match source {
            SourceType::F32 => b = r.value().to_le_bytes().to_vec(),
            SourceType::F16 => b = f16_bytes(r.value()).to_vec(),
            SourceType::BF16 => b = half::bf16::from_f32(r.value()).to_le_bytes().to_vec(),
            SourceType::Q2_K => {
                b[80..82].copy_from_slice(&f16_bytes(0.01));
                b[82..].copy_from_slice(&f16_bytes(0.02));
            }
            SourceType::Q3_K => b[108..].copy_from_slice(&f16_bytes(0.001)),
            SourceType::IQ4_XS => b[..2].copy_from_slice(&f16_bytes(0.0001)),
            SourceType::Q6_K => b[208..].copy_from_slice(&f16_bytes(0.0005)),
            SourceType::Q4_K | SourceType::Q5_K => {
                b[..2].copy_from_slice(&f16_bytes(0.001));
                b[2..4].copy_from_slice(&f16_bytes(0.002));
            }
            SourceType::Q4_1 | SourceType::Q5_1 => {
                b[..2].copy_from_slice(&d);
                b[2..4].copy_from_slice(&m);
            }
            _ => b[..2].copy_from_slice(&d),
        }
        out.extend(b);
    }
    out
}

/// The values of an encoded matrix of rows of `inputs`, as [`decode_group`] reads them.
pub fn values_of(source: SourceType, bytes: &[u8], inputs: usize) -> Vec<f32> {
    let row_bytes = inputs / source.block_values() * source.block_bytes();
    let Some(layout) = layout_of(source) else {
        let value = |b: &[u8]| match source {
            SourceType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
            SourceType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        };
        return bytes
            .chunks_exact(source.block_bytes())
            .map(value)
            .collect();
    };
    let mut values = Vec::new();
    for row in bytes.chunks_exact(row_bytes) {
        for g in 0..inputs / GROUP {
            let group = decode_group(source, row, g);
            values.extend((0..GROUP).map(|k| {
                let quant = i32::from(group.quants[k]) - layout.offset;
                group.scales[k / 16] * quant as f32 + group.minima[k / 16]
            }));
        }
    }
    values
}
