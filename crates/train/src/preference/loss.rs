//! The objective of one pair, and the weights that it gives the two answers' losses.
//!
//! Rafailov et al., "Direct Preference Optimization" (2023), equation 7, with the log-probabilities summed over trained
//! tokens; plus the chosen answer's own loss per token, as in Pang et al., "Iterative Reasoning Preference Optimization"
//! (2024):
//!
//! ```text
//! z    = beta * ((logp_chosen - ref_chosen) - (logp_rejected - ref_rejected))
//! loss = -ln sigmoid(z) + sft_weight * (-logp_chosen / tokens of the chosen answer)
//! ```

use super::PreferenceStats;
use crate::learner::LossSum;
use crate::settings::PreferenceSettings;

/// The objective of one pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoLoss {
    /// The objective.
    pub loss: f64,
    /// z: how far the chosen answer has gained on the rejected one, times beta.
    pub margin: f64,
    /// The objective's derivatives by the summed losses of the chosen and of the rejected answer.
    pub weights: [f64; 2],
}

/// The objective of a pair whose answers have the losses `chosen` and `rejected` (summed over trained tokens; a loss is a
/// log-probability with its sign turned), and had the log-probabilities `reference` where the run started.
#[must_use]
pub fn dpo_loss(
    settings: &PreferenceSettings,
    chosen: LossSum,
    rejected: LossSum,
    reference: [f64; 2],
) -> DpoLoss {
    let beta = settings.beta;
    let margin = beta * ((-chosen.loss - reference[0]) - (-rejected.loss - reference[1]));
    // ln(1 + e^-z) without an overflow, and 1 - sigmoid(z), its slope with the sign turned.
    let preference = (-margin).max(0.0) + (-margin.abs()).exp().ln_1p();
    let slope = 1.0 / (1.0 + margin.exp());
    DpoLoss {
        loss: preference + settings.sft_weight * chosen.mean(),
        margin,
        weights: [
            beta * slope + settings.sft_weight / chosen.tokens.max(1) as f64,
            -beta * slope,
        ],
    }
}

/// Pairs added up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DpoTotals {
    pairs: usize,
    loss: f64,
    margin: f64,
    gained: usize,
    chosen: LossSum,
    rejected: LossSum,
}

impl DpoTotals {
    /// Adds a pair: what it says, and the losses of its answers.
    pub fn add(&mut self, pair: &DpoLoss, chosen: LossSum, rejected: LossSum) {
        self.pairs += 1;
        self.loss += pair.loss;
        self.margin += pair.margin;
        self.gained += usize::from(pair.margin > 0.0);
        self.chosen.add(chosen);
        self.rejected.add(rejected);
    }

    /// The mean of the objective; 0 without pairs.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.loss / self.pairs.max(1) as f64
    }

    /// Trained tokens of both answers.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.chosen.tokens + self.rejected.tokens
    }

    /// Statistics of all pairs; `None` if there are none.
    #[must_use]
    pub fn stats(&self) -> Option<PreferenceStats> {
        let mean = |sum: f64| sum / self.pairs as f64;
        (self.pairs > 0).then(|| PreferenceStats {
            pairs: self.pairs,
            accuracy: mean(self.gained as f64),
            margin: mean(self.margin),
            chosen_loss: self.chosen.mean(),
            rejected_loss: self.rejected.mean(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(loss: f64, tokens: usize) -> LossSum {
        LossSum { loss, tokens }
    }

    fn settings(beta: f64, sft_weight: f64) -> PreferenceSettings {
        PreferenceSettings {
            beta,
            sft_weight,
            ..PreferenceSettings::default()
        }
    }

    #[test]
    fn loss_of_a_pair_matches_a_calculation_by_hand() {
        // logp 10 -> -8 and -12 -> -15: gains 2 and -3, so z = 0.1 * 5.
        let pair = dpo_loss(
            &settings(0.1, 0.0),
            sum(8.0, 4),
            sum(15.0, 6),
            [-10.0, -12.0],
        );
        assert!((pair.margin - 0.5).abs() < 1e-12);
        assert!(
            (pair.loss - 0.474_076_984_180_106_7).abs() < 1e-12,
            "{}",
            pair.loss
        );
        assert!((pair.weights[0] - 0.1 * 0.377_540_668_798_145_4).abs() < 1e-12);
        assert_eq!(pair.weights[0], -pair.weights[1]);
        // Where it starts, both are as likely as they were: ln 2.
        let start = dpo_loss(
            &settings(0.1, 2.0),
            sum(10.0, 4),
            sum(12.0, 6),
            [-10.0, -12.0],
        );
        assert!((start.loss - (2f64.ln() + 2.0 * 2.5)).abs() < 1e-12);
    }

    #[test]
    fn weights_are_the_derivatives_of_the_loss() {
        for (beta, sft_weight) in [(0.1, 0.0), (0.5, 1.0), (3.0, 0.2)] {
            let settings = settings(beta, sft_weight);
            for (chosen, rejected) in [(8.0, 15.0), (30.0, 4.0), (10.0, 12.0)] {
                let at =
                    |c: f64, r: f64| dpo_loss(&settings, sum(c, 5), sum(r, 7), [-10.0, -12.0]).loss;
                let weights =
                    dpo_loss(&settings, sum(chosen, 5), sum(rejected, 7), [-10.0, -12.0]).weights;
                let h = 1e-4;
                let by_chosen = (at(chosen + h, rejected) - at(chosen - h, rejected)) / (2.0 * h);
                let by_rejected = (at(chosen, rejected + h) - at(chosen, rejected - h)) / (2.0 * h);
                assert!(
                    (weights[0] - by_chosen).abs() < 1e-6,
                    "{weights:?} {by_chosen}"
                );
                assert!(
                    (weights[1] - by_rejected).abs() < 1e-6,
                    "{weights:?} {by_rejected}"
                );
            }
        }
    }

    #[test]
    fn extreme_margins_stay_finite() {
        let far = |chosen, rejected| {
            dpo_loss(
                &settings(100.0, 0.0),
                sum(chosen, 1),
                sum(rejected, 1),
                [0.0, 0.0],
            )
        };
        let (won, lost) = (far(0.0, 1e5), far(1e5, 0.0));
        assert_eq!((won.loss, won.weights), (0.0, [0.0, -0.0]));
        assert_eq!((lost.loss, lost.weights), (1e7, [100.0, -100.0]));
        assert!(far(f64::NAN, 1.0).loss.is_nan());
    }

    #[test]
    fn statistics_are_means_over_pairs() {
        let settings = settings(1.0, 0.0);
        let mut pairs = DpoTotals::default();
        assert_eq!((pairs.stats(), pairs.loss()), (None, 0.0));
        for (chosen, rejected) in [(1.0, 5.0), (4.0, 2.0)] {
            let (chosen, rejected) = (sum(chosen, 1), sum(rejected, 2));
            let pair = dpo_loss(&settings, chosen, rejected, [-2.0, -2.0]);
            pairs.add(&pair, chosen, rejected);
        }
        let stats = pairs.stats().unwrap();
        assert_eq!((stats.pairs, stats.accuracy, stats.margin), (2, 0.5, 1.0));
        assert_eq!((stats.chosen_loss, stats.rejected_loss), (2.5, 1.75));
        assert_eq!(pairs.tokens(), 6);
    }
}
