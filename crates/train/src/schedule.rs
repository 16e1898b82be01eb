//! The learning rate of each optimizer step: a warm-up, then constant, linear or cosine.
//!
//! Knows steps and a peak rate; does not know optimizers.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrDecay {
    /// Stays at its peak.
    Constant,
    /// Falls in a straight line, to 0 just after the last step.
    #[default]
    Linear,
    /// Falls along half a cosine, to 0 just after the last step.
    Cosine,
}

/// The learning rate of a whole run, as plain numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    /// The shape after the warm-up.
    pub decay: LrDecay,
    /// The highest rate.
    pub peak: f64,
    /// Optimizer steps of warm-up.
    pub warmup: u64,
    /// Optimizer steps of the run.
    pub steps: u64,
}

impl LrSchedule {
    /// A schedule over `steps` steps, of which the share `warmup_ratio` (rounded up) warms up.
    #[must_use]
    pub fn new(decay: LrDecay, peak: f64, warmup_ratio: f64, steps: u64) -> Self {
        let warmup = ((warmup_ratio * steps as f64).ceil() as u64).min(steps);
        Self {
            decay,
            peak,
            warmup,
            steps,
        }
    }

    /// The rate of step `step`, counted from 0.
    ///
    /// Hugging Face's schedulers give the first step a rate of 0; here warm-up starts one step later on the same line,
    /// so that no step is spent on nothing: step k of a warm-up of w has the rate peak * (k + 1) / w.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let rest = (self.steps - self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / rest).min(1.0);
        match self.decay {
            LrDecay::Constant => self.peak,
            LrDecay::Linear => self.peak * (1.0 - progress),
            LrDecay::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: LrDecay, ratio: f64, steps: u64) -> Vec<f64> {
        let schedule = LrSchedule::new(decay, 1.0, ratio, steps);
        (0..steps).map(|step| schedule.rate(step)).collect()
    }

    #[test]
    fn linear_warms_up_to_the_peak_and_stays_above_zero() {
        let rates = rates(LrDecay::Linear, 0.2, 10);
        assert_eq!(
            rates,
            [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
        );
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let schedule = LrSchedule::new(LrDecay::Cosine, 2.0, 0.0, 100);
        assert_eq!(schedule.rate(0), 2.0);
        assert!((schedule.rate(50) - 1.0).abs() < 1e-12);
        assert!(schedule.rate(99) > 0.0 && schedule.rate(99) < 0.01);
        assert!(schedule.rate(100).abs() < 1e-12);
    }

    #[test]
    fn constant_schedule_holds_the_rate_and_tiny_runs_work() {
        assert_eq!(rates(LrDecay::Constant, 0.05, 3), [1.0, 1.0, 1.0]);
        assert_eq!(rates(LrDecay::Linear, 0.05, 1), [1.0]);
        assert!(rates(LrDecay::Linear, 0.99, 3).iter().all(|r| *r > 0.0));
        assert!(rates(LrDecay::Linear, 0.0, 0).is_empty());
    }
}
