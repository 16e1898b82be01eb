//! The backward of RMSNorm with a frozen weight.

use crate::cpu::isa::per_isa;
use crate::cpu::math::{LANES, dot, sum_lanes};

per_isa! {
    /// Adds to `dx` the gradient of `y = x / sqrt(mean(x^2) + eps) * weight`, row by row.
    ///
    /// `dy`, `x` and `dx` hold the same number of rows of `weight.len()` columns. With `r = 1 / sqrt(..)` and
    /// `g = dy * weight`: `dx += r * (g - x * r^2 * mean(g * x))`.
    ///
    /// # Panics
    /// The slices differ in length, or are not a multiple of a row.
    pub fn rmsnorm_backward(dy: &[f32], x: &[f32], weight: &[f32], eps: f32, dx: &mut [f32]) {
        let columns = weight.len();
        assert!(columns > 0 && x.len().is_multiple_of(columns));
        assert!(dy.len() == x.len() && dx.len() == x.len());
        let rows = dy.chunks_exact(columns).zip(x.chunks_exact(columns));
        for ((dy, x), dx) in rows.zip(dx.chunks_exact_mut(columns)) {
            let r = 1.0 / (dot(x, x) / columns as f32 + eps).sqrt();
            let along = weighted_dot(dy, weight, x) / columns as f32 * r * r;
            for (((dx, dy), x), weight) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
                *dx = r.mul_add(dy.mul_add(*weight, -(x * along)), *dx);
            }
        }
    }
}

/// The sum of `a * b * c`.
#[inline(always)]
fn weighted_dot(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let (c, c_tail) = c.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for j in 0..LANES {
            lanes[j] = (a[j] * b[j]).mul_add(c[j], lanes[j]);
        }
    }
    for (((lane, a), b), c) in lanes.iter_mut().zip(a_tail).zip(b_tail).zip(c_tail) {
        *lane = (a * b).mul_add(*c, *lane);
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::check::*;
    use crate::cpu::isa::Isa;

    fn forward(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
        x.chunks(weight.len())
            .flat_map(|x| {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
                let r = 1.0 / (mean + f64::from(eps)).sqrt();
                x.iter()
                    .zip(weight)
                    .map(move |(x, w)| x * r * f64::from(*w))
            })
            .collect()
    }

    #[test]
    fn gradients_match_finite_differences_of_the_forward() {
        for (rows, columns, eps) in [(3, 48, 1e-5), (2, 37, 1e-2), (1, 1, 0.5), (4, 5, 1e-6)] {
            let x = numbers(1, rows * columns);
            let weight = numbers(2, columns);
            let dy = numbers(3, rows * columns);
            let before = numbers(4, rows * columns);
            let expected: Vec<f64> =
                finite_difference(&x, |x| weighted(&dy, &forward(x, &weight, eps)))
                    .iter()
                    .zip(&before)
                    .map(|(d, before)| d + f64::from(*before))
                    .collect();
            let mut scalar = before.clone();
            rmsnorm_backward(Isa::Scalar, &dy, &x, &weight, eps, &mut scalar);
            assert_near("dx", &scalar, &expected, 1e-6);
            for isa in isas() {
                let mut dx = before.clone();
                rmsnorm_backward(isa, &dy, &x, &weight, eps, &mut dx);
                assert_same_bits(isa, &dx, &scalar);
            }
        }
    }
}
