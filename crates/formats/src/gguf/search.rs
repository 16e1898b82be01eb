//! Quantizes to Q4_1 with a search for scale and minimum, instead of taking them from the extremes: the outermost weights of a
//! block are rare, and a grid that clips them a little is closer to all others.
//!
//! The search starts from several grids and refines each twice by least squares, as ggml's `make_qkx2_quants` does
//! (`ggml-quants.c`): it rounds to the grid, then fits scale and minimum to the integers. Errors are compared after both are
//! rounded to f16. The plain grid is one of the candidates, so the search makes no block worse.

use half::f16;

use super::{GgmlType, GgufError};

/// Weights of a block.
const BLOCK: usize = 32;
const TOP: f32 = 15.0;

/// Starting grids, as parts of the range that they clip below and above.
const CUTS: [(f32, f32); 7] = [
    (0.0, 0.0),
    (0.03, 0.03),
    (0.08, 0.08),
    (0.16, 0.16),
    (0.0, 0.12),
    (0.12, 0.0),
    (-0.03, -0.03),
];
const REFINEMENTS: usize = 2;

/// Quantizes whole blocks of finite numbers to Q4_1, closer to them than [`super::quantize`] does.
///
/// # Errors
/// A length that is not whole blocks.
pub fn quantize_q4_searched(values: &[f32]) -> Result<Vec<u8>, GgufError> {
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    if !rest.is_empty() {
        return Err(GgufError::Length {
            dtype: GgmlType::Q4_1.name(),
            elements: values.len(),
            needs: 0,
            has: 0,
        });
    }
    let mut out = Vec::with_capacity(blocks.len() * GgmlType::Q4_1.type_size());
    for block in blocks {
        let grid = search(block);
        let integers = grid.integers(block);
        out.extend_from_slice(&f16::from_f32(grid.scale).to_le_bytes());
        out.extend_from_slice(&f16::from_f32(grid.minimum).to_le_bytes());
        out.extend((0..16).map(|i| integers[i] as u8 | (integers[i + 16] as u8) << 4));
    }
    Ok(out)
}

/// `scale * integer + minimum`, for integers from 0 to 15.
#[derive(Clone, Copy)]
struct Grid {
    scale: f32,
    minimum: f32,
}

impl Grid {
    /// Rounded to f16, as it is stored.
    fn stored(self) -> Grid {
        let round = |x: f32| f16::from_f32(x).to_f32();
        Grid {
            scale: round(self.scale),
            minimum: round(self.minimum),
        }
    }

    /// The nearest integer of each value.
    #[inline]
    fn integers(self, x: &[f32; BLOCK]) -> [f32; BLOCK] {
        // Adding and subtracting it rounds to the nearest integer, in one vector instruction each.
        const ROUND: f32 = 12_582_912.0;
        let inverse = if self.scale == 0.0 {
            0.0
        } else {
            1.0 / self.scale
        };
        let mut integers = [0f32; BLOCK];
        for (q, x) in integers.iter_mut().zip(x) {
            let place = ((x - self.minimum) * inverse).clamp(0.0, TOP);
            *q = (place + ROUND) - ROUND;
        }
        integers
    }

    /// The sum of squared errors.
    #[inline]
    fn error(self, x: &[f32; BLOCK], integers: &[f32; BLOCK]) -> f32 {
        let mut lanes = [0f32; 8];
        let (x, _) = x.as_chunks::<8>();
        let (q, _) = integers.as_chunks::<8>();
        for (x, q) in x.iter().zip(q) {
            for i in 0..8 {
                let error = q[i] * self.scale + self.minimum - x[i];
                lanes[i] += error * error;
            }
        }
        lanes.iter().sum()
    }

    /// The scale and the minimum with the least squared error for given integers; none if those are all equal.
    #[inline]
    fn fitted(x: &[f32; BLOCK], integers: &[f32; BLOCK]) -> Option<Grid> {
        let (mut q1, mut q2, mut x1, mut xq) = ([0f32; 8], [0f32; 8], [0f32; 8], [0f32; 8]);
        let (x, _) = x.as_chunks::<8>();
        let (q, _) = integers.as_chunks::<8>();
        for (x, q) in x.iter().zip(q) {
            for i in 0..8 {
                q1[i] += q[i];
                q2[i] += q[i] * q[i];
                x1[i] += x[i];
                xq[i] += x[i] * q[i];
            }
        }
        let sum = |lanes: [f32; 8]| lanes.iter().sum::<f32>();
        let (q1, q2, x1, xq) = (sum(q1), sum(q2), sum(x1), sum(xq));
        let n = BLOCK as f32;
        let determinant = n * q2 - q1 * q1;
        (determinant > 0.0).then(|| Grid {
            scale: (n * xq - x1 * q1) / determinant,
            minimum: (q2 * x1 - q1 * xq) / determinant,
        })
    }
}

fn search(x: &[f32; BLOCK]) -> Grid {
    let smallest = x.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = largest - smallest;
    let plain = Grid {
        scale: range / TOP,
        minimum: smallest,
    }
    .stored();
    let mut best = plain;
    let mut least = plain.error(x, &plain.integers(x));
    if range == 0.0 {
        return best;
    }
    for (below, above) in CUTS {
        let mut grid = Grid {
            scale: range * (1.0 - below - above) / TOP,
            minimum: smallest + range * below,
        };
        for _ in 0..REFINEMENTS {
            match Grid::fitted(x, &grid.integers(x)) {
                Some(fitted) => grid = fitted,
                None => break,
            }
        }
        let stored = grid.stored();
        let error = stored.error(x, &stored.integers(x));
        if error < least && stored.scale.is_finite() && stored.minimum.is_finite() {
            (best, least) = (stored, error);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::SplitMix64;
    use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

    use super::*;
    use crate::gguf::{dequantize, quantize};

    /// Uniform numbers from 0 to 1, the same on every machine.
    fn units(seed: u64) -> impl Iterator<Item = f64> {
        let mut random = SplitMix64::seed_from_u64(seed);
        std::iter::repeat_with(move || {
            (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 + 1e-12
        })
    }

    fn normals(seed: u64, n: usize) -> Vec<f32> {
        let mut units = units(seed);
        let mut draw = || units.next().unwrap_or_default();
        (0..n)
            .map(|_| ((-2.0 * draw().ln()).sqrt() * (std::f64::consts::TAU * draw()).cos()) as f32)
            .collect()
    }

    /// Student's t with 3 degrees of freedom: some values are outliers, as in trained weights.
    fn heavy_tailed(n: usize) -> Vec<f32> {
        let columns: Vec<Vec<f32>> = (2..6).map(|seed| normals(seed, n)).collect();
        let value = |i: usize| {
            let spread: f32 = columns[1..].iter().map(|c| c[i] * c[i]).sum();
            columns[0][i] / (spread / 3.0).sqrt()
        };
        (0..n).map(value).collect()
    }

    fn squared_error(values: &[f32], bytes: &[u8]) -> f64 {
        let mut back = vec![0f32; values.len()];
        dequantize(GgmlType::Q4_1, bytes, &mut back).unwrap();
        let errors = values.iter().zip(&back).map(|(a, b)| f64::from(a - b));
        errors.map(|error| error * error).sum()
    }

    #[test]
    fn search_is_closer_than_plain_rounding_in_every_block() {
        const N: usize = 32 * 512;
        let small: Vec<f32> = normals(9, N).iter().map(|x| x * 0.02).collect();
        let cases = [
            ("normal", normals(1, N), 0.93),
            ("small", small, 0.93),
            ("heavy-tailed", heavy_tailed(N), 0.9),
        ];
        for (what, values, at_most) in cases {
            let searched = quantize_q4_searched(&values).unwrap();
            let plain = quantize(GgmlType::Q4_1, &values).unwrap();
            let ratio = squared_error(&values, &searched) / squared_error(&values, &plain);
            println!("{what}: {ratio:.3} of the plain squared error");
            assert!(ratio < at_most, "{what}: {ratio}");
            let blocks = values
                .chunks(32)
                .zip(searched.chunks(20).zip(plain.chunks(20)));
            for (values, (searched, plain)) in blocks {
                let (ours, theirs) = (
                    squared_error(values, searched),
                    squared_error(values, plain),
                );
                assert!(ours <= theirs * 1.000_01, "{what}: {ours} and {theirs}");
            }
        }
    }

    #[test]
    fn constant_and_sparse_blocks_are_quantized_well() {
        for value in [0.0f32, 1.0, -0.25, 3e-9] {
            let bytes = quantize_q4_searched(&[value; 32]).unwrap();
            let error = squared_error(&[value; 32], &bytes);
            assert!(
                error <= 32.0 * f64::from(value * 1e-3).powi(2) + 1e-12,
                "{value}"
            );
        }
        let mut one = [0f32; 32];
        one[7] = 1.0;
        let bytes = quantize_q4_searched(&one).unwrap();
        assert!(squared_error(&one, &bytes) < 1e-6);
        assert!(quantize_q4_searched(&[1.0; 33]).is_err());
        assert!(quantize_q4_searched(&[]).unwrap().is_empty());
    }
}
