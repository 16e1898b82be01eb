//! The passes over a whole row of logits, written so that the compiler vectorizes them: a row has as many numbers as the
//! vocabulary has tokens, and every sampled sequence of a step has one.

use std::f32::consts::LOG2_E;

/// The independent lanes of a pass; the compiler may keep them in vector registers.
const LANES: usize = 16;

/// The largest logit; `None` if the row is not a distribution: it holds a NaN or +inf, or only -inf.
pub(crate) fn largest(logits: &[f32]) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let logit = chunk[lane];
            max[lane] = if logit > max[lane] { logit } else { max[lane] };
            nan[lane] |= logit.is_nan();
        }
    }
    let max = max.iter().chain(rest).copied();
    let max = max.fold(f32::NEG_INFINITY, f32::max);
    let nan = nan.contains(&true) || rest.iter().any(|logit| logit.is_nan());
    (!nan && max.is_finite()).then_some(max)
}

/// The id of the largest logit; of equals the lowest.
pub(crate) fn argmax(logits: &[f32], max: f32) -> u32 {
    logits.iter().position(|l| *l == max).unwrap_or(0) as u32
}

/// Each token's weight relative to the most probable one, whose weight is 1: `exp((logit - max) / temperature)`.
pub(crate) fn weights(logits: &[f32], max: f32, temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(logits.iter().map(|l| exp((l - max) / temperature)));
}

/// `ln(sum(exp(logits)))`.
pub(crate) fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(exp(chunk[lane] - max));
        }
    }
    let rest = rest.iter().map(|l| f64::from(exp(l - max)));
    f64::from(max) + (sums.iter().sum::<f64>() + rest.sum::<f64>()).ln()
}

/// `e^x` for `x <= 0` within 3e-7 of its value; 0 below -87, where f32 ends. The same on every machine, unlike libm's.
///
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`: a Taylor polynomial for `e^r`, and `n` goes into the exponent (Cody and Waite 1980).
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let tail = 1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0));
    let e_r = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * tail))));
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let two_to_n = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x >= LOWEST { e_r * two_to_n } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_3e_7_of_the_exact_value() {
        for step in 0..1_000_000 {
            let x = step as f32 * -87.0e-6;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for low in [-87.1, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(low), 0.0);
        }
    }

    #[test]
    fn largest_is_found_at_every_position_and_a_non_number_too() {
        for len in 1..70 {
            for at in 0..len {
                let mut logits = vec![-1.0; len];
                logits[at] = 2.0;
                assert_eq!(largest(&logits), Some(2.0));
                assert_eq!(argmax(&logits, 2.0), at as u32);
                for wrong in [f32::NAN, f32::INFINITY] {
                    logits[at] = wrong;
                    assert_eq!(largest(&logits), None);
                }
            }
            assert_eq!(largest(&vec![f32::NEG_INFINITY; len]), None);
        }
    }

    #[test]
    fn log_sum_exp_matches_the_direct_sum() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 20.0).collect();
        let exact: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let max = largest(&logits).unwrap();
        assert!((log_sum_exp(&logits, max) - exact.ln()).abs() < 1e-6);
    }
}
