//! The backward of the gated activation between the feed-forward's products.

use crate::cpu::isa::per_isa;
use crate::cpu::math::sigmoid;

per_isa! {
    /// Writes the gradients of `y = silu(gate) * up`, element by element.
    ///
    /// With `s = sigmoid(gate)`: `dup = dy * gate * s` and `dgate = dy * up * s * (1 + gate * (1 - s))`.
    /// `dgate` and `dup` are overwritten.
    ///
    /// # Panics
    /// The slices differ in length.
    pub fn swiglu_backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let n = dy.len();
        assert!(gate.len() == n && up.len() == n && dgate.len() == n && dup.len() == n);
        for i in 0..n {
            let (d, g, u) = (dy[i], gate[i], up[i]);
            let s = sigmoid(g);
            let slope = s * g.mul_add(1.0 - s, 1.0);
            dgate[i] = d * u * slope;
            dup[i] = d * (g * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::check::*;
    use crate::cpu::isa::Isa;

    fn forward(gate: &[f64], up: &[f64]) -> Vec<f64> {
        gate.iter()
            .zip(up)
            .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
            .collect()
    }

    #[test]
    fn gradients_match_finite_differences_of_the_forward() {
        for n in [1, 16, 133] {
            let gate: Vec<f32> = numbers(1, n).iter().map(|x| x * 8.0).collect();
            let up = numbers(2, n);
            let dy = numbers(3, n);
            let (mut dgate, mut dup) = (vec![7.0; n], vec![7.0; n]);
            swiglu_backward(Isa::Scalar, &dy, &gate, &up, &mut dgate, &mut dup);
            let by_gate = finite_difference(&gate, |g| weighted(&dy, &forward(g, &to_f64(&up))));
            let by_up = finite_difference(&up, |u| weighted(&dy, &forward(&to_f64(&gate), u)));
            assert_near("dgate", &dgate, &by_gate, 1e-6);
            assert_near("dup", &dup, &by_up, 1e-6);
            for isa in isas() {
                let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
                swiglu_backward(isa, &dy, &gate, &up, &mut a, &mut b);
                assert_same_bits(isa, &a, &dgate);
                assert_same_bits(isa, &b, &dup);
            }
        }
    }

    #[test]
    fn large_gates_give_finite_gradients() {
        for gate in [-1e4, -200.0, -90.0, 90.0, 200.0, 1e4] {
            let (mut dgate, mut dup) = ([9.0], [9.0]);
            swiglu_backward(Isa::Scalar, &[1.0], &[gate], &[2.0], &mut dgate, &mut dup);
            let on = if gate > 0.0 { 1.0 } else { 0.0 };
            assert!((dgate[0] - 2.0 * on).abs() < 1e-30, "{gate}: {}", dgate[0]);
            assert!((dup[0] - gate * on).abs() < 1e-30, "{gate}: {}", dup[0]);
        }
    }
}
