//! The most probable tokens of rows of logits.

use crate::cpu::tensor::Tensor;
use kernels_common::candidates::Candidates;
use std::cmp::Ordering;

/// The `count` most probable tokens of each (row, count) in `rows`.
pub(crate) fn candidates(logits: &Tensor, rows: &[(usize, usize)]) -> Vec<Candidates> {
    let columns = logits.columns();
    let of_row = |(row, count): &(usize, usize)| {
        row_candidates(&logits.values()[row * columns..][..columns], *count)
    };
    rows.iter().map(of_row).collect()
}

fn row_candidates(row: &[f32], count: usize) -> Candidates {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if row.iter().any(|x| x.is_nan()) || !largest.is_finite() {
        return Candidates::default();
    }
    let descending = |a: &(u32, f32), b: &(u32, f32)| {
        let by_logit = b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal);
        by_logit.then(a.0.cmp(&b.0))
    };
    let mut tokens: Vec<(u32, f32)> = (0u32..).zip(row.iter().copied()).collect();
    if (1..tokens.len()).contains(&count) {
        tokens.select_nth_unstable_by(count - 1, descending);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(descending);
    let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
    Candidates {
        tokens,
        log_sum: f64::from(largest) + sum.ln(),
    }
}
