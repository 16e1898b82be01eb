//! Cross-entropy over the vocabulary and its gradient, in place.

use crate::cpu::isa::per_isa;
use crate::cpu::math::{LANES, exp, larger, sum_lanes};

/// How many terms are added in `f32`, 64 a lane, before the sum goes into `f64`.
const BLOCK: usize = 64 * LANES;

per_isa! {
    /// The loss of every row of logits, and in their place its gradient.
    ///
    /// `logits` is `[rows, vocab]` with one target, scale and loss a row: `losses[row]` becomes
    /// `logsumexp(logits) - logits[target]` in nats, unscaled, and the row becomes
    /// `scale[row] * (softmax(logits) - onehot(target))`.
    ///
    /// # Panics
    /// The lengths do not fit together, or a target is not in the vocabulary.
    pub fn cross_entropy(logits: &mut [f32], targets: &[u32], scale: &[f32], losses: &mut [f32]) {
        let rows = targets.len();
        assert!(scale.len() == rows && losses.len() == rows);
        if rows == 0 {
            assert!(logits.is_empty());
            return;
        }
        let vocab = logits.len() / rows;
        assert!(vocab > 0 && logits.len().is_multiple_of(rows));
        let settings = targets.iter().zip(scale).zip(losses);
        for (row, ((target, scale), loss)) in logits.chunks_exact_mut(vocab).zip(settings) {
            let target = *target as usize;
            assert!(target < vocab, "target {target} is outside the vocabulary of {vocab}");
            let at_target = row[target];
            let max = max_of(row);
            let sum = exponentials(row, max);
            *loss = (sum.ln() + (f64::from(max) - f64::from(at_target))) as f32;
            let factor = (f64::from(*scale) / sum) as f32;
            for x in row.iter_mut() {
                *x *= factor;
            }
            row[target] -= scale;
        }
    }
}

#[inline(always)]
fn max_of(row: &[f32]) -> f32 {
    const WIDE: usize = 4 * LANES;
    let (chunks, tail) = row.as_chunks::<WIDE>();
    let mut best = [f32::NEG_INFINITY; WIDE];
    for chunk in chunks {
        for j in 0..WIDE {
            best[j] = larger(chunk[j], best[j]);
        }
    }
    for (best, x) in best.iter_mut().zip(tail) {
        *best = larger(*x, *best);
    }
    best.iter()
        .fold(f32::NEG_INFINITY, |best, x| larger(*x, best))
}

/// Replaces every element by `exp(x - max)` and returns their sum.
#[inline(always)]
fn exponentials(row: &mut [f32], max: f32) -> f64 {
    let mut total = 0f64;
    for block in row.chunks_mut(BLOCK) {
        let mut lanes = [0f32; LANES];
        let (chunks, tail) = block.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for j in 0..LANES {
                chunk[j] = exp(chunk[j] - max);
                lanes[j] += chunk[j];
            }
        }
        for (lane, x) in lanes.iter_mut().zip(tail) {
            *x = exp(*x - max);
            *lane += *x;
        }
        total += f64::from(sum_lanes(lanes));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::check::*;
    use crate::cpu::isa::Isa;

    fn forward(logits: &[f64], targets: &[u32]) -> Vec<f64> {
        logits
            .chunks(logits.len() / targets.len())
            .zip(targets)
            .map(|(row, target)| {
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
                sum.ln() + max - row[*target as usize]
            })
            .collect()
    }

    #[test]
    fn loss_matches_the_reference_and_gradient_its_finite_difference() {
        for (rows, vocab, size) in [(3, 50, 3.0), (2, 129, 30.0), (1, 1, 1.0), (2, 16, 0.1)] {
            let logits: Vec<f32> = numbers(1, rows * vocab).iter().map(|x| x * size).collect();
            let targets: Vec<u32> = (0..rows)
                .map(|row| ((row * 31 + 7) % vocab) as u32)
                .collect();
            let scale = numbers(2, rows);
            let (mut gradient, mut losses) = (logits.clone(), vec![0.0; rows]);
            cross_entropy(Isa::Scalar, &mut gradient, &targets, &scale, &mut losses);
            assert_near("loss", &losses, &forward(&to_f64(&logits), &targets), 2e-7);
            let expected = finite_difference(&logits, |x| weighted(&scale, &forward(x, &targets)));
            for (got, expected) in gradient.iter().zip(&expected) {
                assert!(
                    (f64::from(*got) - expected).abs() < 1e-6,
                    "{got} is not {expected}"
                );
            }
            for isa in isas() {
                let (mut a, mut b) = (logits.clone(), vec![0.0; rows]);
                cross_entropy(isa, &mut a, &targets, &scale, &mut b);
                assert_same_bits(isa, &a, &gradient);
                assert_same_bits(isa, &b, &losses);
            }
        }
    }

    #[test]
    fn loss_of_a_large_vocabulary_is_precise() {
        let vocab = 49_152;
        let logits: Vec<f32> = numbers(5, vocab).iter().map(|x| x * 12.0 + 300.0).collect();
        let expected = forward(&to_f64(&logits), &[4711])[0];
        let mut best = (Vec::new(), [0.0]);
        for isa in isas() {
            let (mut gradient, mut loss) = (logits.clone(), [0.0]);
            cross_entropy(isa, &mut gradient, &[4711], &[1.0], &mut loss);
            assert!(
                (f64::from(loss[0]) / expected - 1.0).abs() < 1.2e-7,
                "{} {expected}",
                loss[0]
            );
            // The gradient of a row sums to zero.
            let sum: f64 = gradient.iter().map(|x| f64::from(*x)).sum();
            assert!(sum.abs() < 1e-6, "{sum:e}");
            if isa == Isa::Scalar {
                best = (gradient, loss);
            } else {
                assert_same_bits(isa, &gradient, &best.0);
                assert_same_bits(isa, &loss, &best.1);
            }
        }
    }

    #[test]
    fn nan_and_infinite_logits_give_a_nan_loss() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = vec![0.5; 40];
            logits[33] = bad;
            let mut loss = [0.0];
            cross_entropy(Isa::best(), &mut logits, &[0], &[1.0], &mut loss);
            assert!(loss[0].is_nan(), "{bad}: {}", loss[0]);
        }
    }

    #[test]
    #[should_panic(expected = "outside the vocabulary")]
    fn target_outside_the_vocabulary_panics() {
        cross_entropy(Isa::best(), &mut [0.0; 8], &[8], &[1.0], &mut [0.0]);
    }
}
