//! Helpers that the tests share: random numbers, the instruction sets at hand, finite differences.

use crate::cpu::isa::Isa;
use crate::dtype::SourceType;
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

pub(crate) struct Random(SplitMix64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(SplitMix64::seed_from_u64(seed))
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// The instruction sets that this machine can run; the scalar one comes first.
pub(crate) fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

/// `n` numbers in -1..1, the same for the same `seed`.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    Random::new(seed).values(n)
}

pub(crate) fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The gradient of `f` at `x` by central differences, with an error near 1e-9 for numbers of size one.
pub(crate) fn finite_difference(x: &[f32], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
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
pub(crate) fn weighted(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum()
}

/// Every element of `got` within `tolerance` of `expected`, relative to the largest element.
#[track_caller]
pub(crate) fn assert_near(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
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

#[track_caller]
pub(crate) fn assert_same_bits(isa: Isa, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            got.to_bits() == expected.to_bits(),
            "{}: [{i}] is {got:e}, scalar {expected:e}",
            isa.name()
        );
    }
}

/// Every type of source.
pub(crate) const TYPES: [SourceType; 15] = [
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
pub(crate) fn random_bytes(source: SourceType, values: usize, r: &mut Random) -> Vec<u8> {
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
