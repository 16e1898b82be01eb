//! The step of AdamW (Loshchilov and Hutter, 2019), element by element.

use crate::isa::per_isa;

/// The settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay: a step takes `lr * weight_decay` of the parameter away.
    pub weight_decay: f32,
    /// `1 - beta1^step`.
    pub bias_correction1: f32,
    /// `1 - beta2^step`.
    pub bias_correction2: f32,
}

impl AdamW {
    /// The same settings with the bias corrections of the `step`th step; the first one is 1.
    pub fn at_step(self, step: u64) -> AdamW {
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(step as f64)) as f32;
        AdamW {
            bias_correction1: correction(self.beta1),
            bias_correction2: correction(self.beta2),
            ..self
        }
    }
}

per_isa! {
    /// One step: updates `param` and the moments `m` and `v` from `grad * clip_scale`.
    ///
    /// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, and
    /// `param = param (1 - lr weight_decay) - lr (m / correction1) / (sqrt(v / correction2) + eps)`.
    ///
    /// # Panics
    /// The slices differ in length.
    pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: AdamW, clip_scale: f32) {
        let n = param.len();
        assert!(grad.len() == n && m.len() == n && v.len() == n);
        let AdamW { lr, beta1, beta2, eps, .. } = settings;
        let keep = 1.0 - lr * settings.weight_decay;
        let step = lr / settings.bias_correction1;
        let root = 1.0 / settings.bias_correction2.sqrt();
        for i in 0..n {
            let g = grad[i] * clip_scale;
            m[i] = beta1.mul_add(m[i], (1.0 - beta1) * g);
            v[i] = beta2.mul_add(v[i], (1.0 - beta2) * g * g);
            let denominator = v[i].sqrt().mul_add(root, eps);
            param[i] = param[i].mul_add(keep, -(step * m[i] / denominator));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::check::*;
    use crate::isa::Isa;

    const SETTINGS: AdamW = AdamW {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        bias_correction1: 1.0,
        bias_correction2: 1.0,
    };

    /// The paper's algorithm 2, in f64.
    fn reference(param: &mut [f64], grad: &[f32], m: &mut [f64], v: &mut [f64], step: i32) {
        let s = SETTINGS;
        let (lr, b1, b2) = (f64::from(s.lr), f64::from(s.beta1), f64::from(s.beta2));
        for i in 0..param.len() {
            let g = f64::from(grad[i]) * 0.5;
            m[i] = b1 * m[i] + (1.0 - b1) * g;
            v[i] = b2 * v[i] + (1.0 - b2) * g * g;
            let (mh, vh) = (m[i] / (1.0 - b1.powi(step)), v[i] / (1.0 - b2.powi(step)));
            param[i] -=
                lr * (mh / (vh.sqrt() + f64::from(s.eps)) + f64::from(s.weight_decay) * param[i]);
        }
    }

    #[test]
    fn follows_the_reference_for_many_steps_on_every_isa() {
        let n = 77;
        let start = numbers(1, n);
        let (mut p, mut m, mut v) = (to_f64(&start), vec![0.0; n], vec![0.0; n]);
        let mut runs: Vec<_> = isas()
            .map(|isa| (isa, start.clone(), vec![0.0; n], vec![0.0; n]))
            .collect();
        for step in 1..=50 {
            let grad = numbers(100 + step, n);
            reference(&mut p, &grad, &mut m, &mut v, step as i32);
            for (isa, p, m, v) in &mut runs {
                adamw(*isa, p, &grad, m, v, SETTINGS.at_step(step), 0.5);
            }
        }
        let (_, scalar, scalar_m, scalar_v) = &runs[0];
        assert_near("param", scalar, &p, 2e-6);
        assert_near("m", scalar_m, &m, 2e-6);
        assert_near("v", scalar_v, &v, 2e-6);
        for (isa, p, m, v) in &runs {
            assert_same_bits(*isa, p, scalar);
            assert_same_bits(*isa, m, scalar_m);
            assert_same_bits(*isa, v, scalar_v);
        }
    }

    #[test]
    fn a_zero_gradient_only_decays() {
        let (mut p, mut m, mut v) = ([2.0], [0.0], [0.0]);
        adamw(
            Isa::best(),
            &mut p,
            &[0.0],
            &mut m,
            &mut v,
            SETTINGS.at_step(1),
            1.0,
        );
        assert_eq!((p, m, v), ([2.0 * (1.0 - 0.01 * 0.1)], [0.0], [0.0]));
    }
}
