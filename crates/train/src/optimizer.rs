//! AdamW with decoupled weight decay, and clipping by the global norm. Each adapter has one instance.
//!
//! Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), with torch's order of operations. All arithmetic is
//! in f32 and in a fixed order, so that a run has the same bits each time.

use crate::params::{self, LoraGrads, LoraParams};
use crate::settings::TrainSettings;

/// The hyperparameters of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Weight decay; a step multiplies it by the learning rate.
    pub weight_decay: f64,
    /// Decay rate of the mean of gradients.
    pub beta1: f64,
    /// Decay rate of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// The learning rate of every B, as a multiple of that of its A: LoRA+ (Hayou et al., "LoRA+: Efficient Low Rank
    /// Adaptation of Large Models", 2024). Its decay follows, as in torch's groups of parameters.
    pub lora_plus_ratio: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self::of(&TrainSettings::default())
    }
}

impl AdamWConfig {
    /// The hyperparameters in `settings`.
    #[must_use]
    pub fn of(settings: &TrainSettings) -> Self {
        Self {
            weight_decay: settings.weight_decay,
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            lora_plus_ratio: settings.lora_plus_ratio,
        }
    }
}

/// The state of AdamW for one adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Its hyperparameters.
    pub hyper: AdamWConfig,
    /// Steps done.
    pub step: u64,
    /// Running means of the gradients.
    pub mean: LoraGrads,
    /// Running means of their squares.
    pub square: LoraGrads,
}

impl AdamW {
    /// The state before the first step.
    #[must_use]
    pub fn new(params: &LoraParams, hyper: AdamWConfig) -> Self {
        let zeros = LoraGrads::zeros_like(params);
        Self {
            hyper,
            step: 0,
            mean: zeros.clone(),
            square: zeros,
        }
    }

    /// Updates `params` with `grads`, of the same shapes. `lr` is the learning rate of every A.
    pub fn step(&mut self, params: &mut LoraParams, grads: &LoraGrads, lr: f64) {
        self.step += 1;
        let (hyper, steps) = (self.hyper, self.step as f64);
        let (beta1, beta2, epsilon) = (hyper.beta1, hyper.beta2, hyper.epsilon as f32);
        let root = (1.0 - beta2.powf(steps)).sqrt() as f32;
        let (keep, mean_part, square_part) =
            (beta2 as f32, (1.0 - beta1) as f32, (1.0 - beta2) as f32);
        // The tensors come as A and B of each pair in turn.
        let rates = [lr, lr * hyper.lora_plus_ratio].map(|lr| {
            (
                (lr / (1.0 - beta1.powf(steps))) as f32,
                (1.0 - lr * hyper.weight_decay) as f32,
            )
        });
        let state = self.mean.tensors_mut().zip(self.square.tensors_mut());
        let tensors = params::tensors_mut(params).zip(grads.tensors()).zip(state);
        for (((params, grads), (mean, square)), (step_size, decay)) in
            tensors.zip(rates.into_iter().cycle())
        {
            for (((p, &g), m), s) in params.iter_mut().zip(grads).zip(mean).zip(square) {
                *p *= decay;
                *m += (g - *m) * mean_part;
                *s = *s * keep + g * g * square_part;
                *p -= step_size * (*m / (s.sqrt() / root + epsilon));
            }
        }
    }
}

/// Scales `grads` down to the global norm `max_norm` if theirs is larger (0: never). Returns the norm before clipping.
pub fn clip_grad_norm(grads: &mut LoraGrads, max_norm: f64) -> f64 {
    let norm = norm(grads);
    if max_norm > 0.0 && norm > max_norm {
        // torch's margin: the clipped norm never rounds up past the limit.
        let scale = (max_norm / (norm + 1e-6)) as f32;
        grads.tensors_mut().flatten().for_each(|g| *g *= scale);
    }
    norm
}

/// The square root of the sum of all squares, summed in f64 in the tensors' order.
#[must_use]
pub fn norm(grads: &LoraGrads) -> f64 {
    grads
        .tensors()
        .flatten()
        .map(|&g| f64::from(g) * f64::from(g))
        .sum::<f64>()
        .sqrt()
}

#[cfg(test)]
mod tests {
    use formats::peft::{LoraPair, Module};

    use super::*;
    use crate::params::PairGrads;
    use crate::rng::Rng;

    fn params(a: &[f32], b: &[f32]) -> LoraParams {
        let pair = LoraPair {
            layer: 0,
            module: Module::Q,
            rank: 1,
            inputs: a.len(),
            outputs: b.len(),
            scale: 1.0,
            a: a.to_vec(),
            b: b.to_vec(),
        };
        LoraParams { pairs: vec![pair] }
    }

    fn grads(a: &[f32], b: &[f32]) -> LoraGrads {
        LoraGrads {
            pairs: vec![PairGrads {
                a: a.to_vec(),
                b: b.to_vec(),
            }],
        }
    }

    /// By hand: the first step is lr * sign(g) for any size of the gradient; the second follows from the definition.
    #[test]
    fn two_steps_match_a_calculation_by_hand() {
        let mut p = params(&[1.0], &[-2.0]);
        let mut adam = AdamW::new(&p, AdamWConfig::default());
        adam.step(&mut p, &grads(&[0.5], &[-1e-3]), 0.1);
        assert!((p.pairs[0].a[0] - 0.9).abs() < 1e-6);
        assert!((p.pairs[0].b[0] + 1.9).abs() < 1e-5);
        // m = 0.9*0.05 + 0.1*-0.25 = 0.02, m^ = 0.02/0.19; v = 0.999*0.00025 + 0.001*0.0625 = 0.00031225,
        // v^ = v/0.001999 = 0.15620310; p = 0.9 - 0.1 * 0.10526316/0.39522539 = 0.87336627
        adam.step(&mut p, &grads(&[-0.25], &[0.0]), 0.1);
        assert!(
            (p.pairs[0].a[0] - 0.873_366_3).abs() < 1e-6,
            "{}",
            p.pairs[0].a[0]
        );
    }

    /// The reference is the paper's algorithm 2 in f64, written plainly. LoRA+ has another learning rate for B.
    #[test]
    fn hundred_steps_match_the_paper() {
        let usual = AdamWConfig {
            weight_decay: 0.1,
            ..AdamWConfig::default()
        };
        let unusual = AdamWConfig {
            beta1: 0.7,
            beta2: 0.95,
            epsilon: 1e-3,
            lora_plus_ratio: 8.0,
            ..usual
        };
        for hyper in [usual, unusual] {
            let mut rng = Rng::new(11, &[]);
            let mut p = params(&[0.3, -0.7, 0.01], &[1.5, 0.0]);
            let mut adam = AdamW::new(&p, hyper);
            let mut slow: Vec<f64> = params::tensors(&p)
                .flatten()
                .map(|x| f64::from(*x))
                .collect();
            let (mut m, mut v) = (vec![0.0f64; 5], vec![0.0f64; 5]);
            for t in 1..=100 {
                let g: Vec<f32> = (0..5)
                    .map(|i| (rng.unit() - 0.4) * 10f32.powi(i - 3))
                    .collect();
                adam.step(&mut p, &grads(&g[..3], &g[3..]), 3e-3);
                for i in 0..5 {
                    let g = f64::from(g[i]);
                    let rate = if i < 3 {
                        3e-3
                    } else {
                        3e-3 * hyper.lora_plus_ratio
                    };
                    m[i] = hyper.beta1 * m[i] + (1.0 - hyper.beta1) * g;
                    v[i] = hyper.beta2 * v[i] + (1.0 - hyper.beta2) * g * g;
                    let (m, v) = (
                        m[i] / (1.0 - hyper.beta1.powi(t)),
                        v[i] / (1.0 - hyper.beta2.powi(t)),
                    );
                    slow[i] -=
                        rate * (m / (v.sqrt() + hyper.epsilon) + hyper.weight_decay * slow[i]);
                }
            }
            for (fast, slow) in params::tensors(&p).flatten().zip(slow) {
                assert!((f64::from(*fast) - slow).abs() < 3e-6, "{fast} {slow}");
            }
        }
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let mut g = grads(&[3.0, 0.0], &[0.0, -4.0]);
        assert_eq!(clip_grad_norm(&mut g, 1.0), 5.0);
        assert!((norm(&g) - 1.0).abs() < 1e-6 && norm(&g) <= 1.0);
        assert!((g.pairs[0].a[0] - 0.6).abs() < 1e-6 && (g.pairs[0].b[1] + 0.8).abs() < 1e-6);
        let before = g.clone();
        assert!(clip_grad_norm(&mut g, 2.0) <= 1.0);
        assert_eq!(clip_grad_norm(&mut g, 0.0), norm(&g));
        assert_eq!(g, before);
    }
}
