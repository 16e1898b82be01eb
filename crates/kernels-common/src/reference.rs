//! The slow, obvious version of every fast operation, in f64 over plain slices, for tests to compare with.

use crate::candidates::Candidates;
use std::cmp::Ordering;

/// out[m][n] = sum over k of x[m][k] * w[n][k].
pub fn linear(x: &[f32], w: &[f32], rows: usize, outputs: usize, inputs: usize) -> Vec<f64> {
    let mut out = vec![0f64; rows * outputs];
    for m in 0..rows {
        for n in 0..outputs {
            for k in 0..inputs {
                out[m * outputs + n] += f64::from(x[m * inputs + k]) * f64::from(w[n * inputs + k]);
            }
        }
    }
    out
}

/// Causal attention of one head: query i, at position `past + i`, sees keys 0..=past + i.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], past: usize, head_dim: usize) -> Vec<f64> {
    let mut out = vec![0f64; q.len()];
    for (i, q) in q.chunks_exact(head_dim).enumerate() {
        let scores: Vec<f64> = (0..=past + i)
            .map(|t| {
                let dot: f64 = (0..head_dim)
                    .map(|d| f64::from(q[d]) * f64::from(k[t * head_dim + d]))
                    .sum();
                dot / (head_dim as f64).sqrt()
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        for (t, s) in scores.iter().enumerate() {
            for d in 0..head_dim {
                out[i * head_dim + d] +=
                    (s - largest).exp() / total * f64::from(v[t * head_dim + d]);
            }
        }
    }
    out
}

/// The `count` most probable tokens of a row, by sorting all of it.
pub fn candidates(row: &[f32], count: usize) -> Candidates {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if row.iter().any(|x| x.is_nan()) || !largest.is_finite() {
        return Candidates::default();
    }
    let mut tokens: Vec<(u32, f32)> = (0u32..).zip(row.iter().copied()).collect();
    // Numbers only, so an order always exists; -0 and +0 are equal.
    tokens.sort_by(|a, b| {
        b.1.partial_cmp(&a.1)
            .unwrap_or(Ordering::Equal)
            .then(a.0.cmp(&b.0))
    });
    tokens.truncate(count);
    let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
    Candidates {
        tokens,
        log_sum: f64::from(largest) + sum.ln(),
    }
}

/// y = x / sqrt(mean(x^2) + eps) * weight.
pub fn rmsnorm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(&v, &w)| f64::from(v) * scale * f64::from(w))
        .collect()
}
