//! Rotary position embedding, forward and backward: the backward of a rotation is the rotation back.

use crate::cpu::isa::per_isa;
use kernels_common::rope::angles;

/// cos and sin of `position * theta^(-2i / head_dim)`, for every position of the context.
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Rounded from the cosines and sines of [`angles`] in f64.
    pub fn new(
        head_dim: usize,
        positions: usize,
        theta: f32,
        factors: Option<&[f32]>,
    ) -> RopeTable {
        let (cos, sin) = angles(head_dim, positions, theta, factors)
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .unzip();
        RopeTable {
            half: head_dim / 2,
            cos,
            sin,
        }
    }

    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

per_isa! {
    /// Rotates every head of every row in place by the row's angles, or by their negatives if `inverse`.
    ///
    /// `x` is `[rows, heads * head_dim]`; `cos` and `sin` are `[rows, head_dim / 2]`, and they tell the number of
    /// rows. The pairs are (i, i + head_dim / 2), the half rotation of `rotate_half` in the Hugging Face models:
    /// `(a, b)` becomes `(a cos - b sin, b cos + a sin)`.
    ///
    /// # Panics
    /// `head_dim` is odd or 0, or the lengths do not fit together.
    pub fn rope(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], inverse: bool) {
        let half = head_dim / 2;
        assert!(half > 0 && head_dim.is_multiple_of(2), "head_dim {head_dim}");
        assert!(cos.len() == sin.len() && cos.len().is_multiple_of(half));
        let rows = cos.len() / half;
        if rows == 0 {
            assert!(x.is_empty());
            return;
        }
        let width = x.len() / rows;
        assert!(x.len().is_multiple_of(rows) && width.is_multiple_of(head_dim));
        if width == 0 {
            return;
        }
        let direction = if inverse { -1.0 } else { 1.0 };
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (row, (cos, sin)) in x.chunks_exact_mut(width).zip(angles) {
            for head in row.chunks_exact_mut(head_dim) {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let sin = direction * sin;
                    let rotated = a.mul_add(*cos, -(*b * sin));
                    *b = b.mul_add(*cos, *a * sin);
                    *a = rotated;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::check::*;
    use crate::cpu::isa::Isa;

    fn forward(x: &[f64], heads: usize, head_dim: usize, angles: &[f32]) -> Vec<f64> {
        let half = head_dim / 2;
        let mut y = x.to_vec();
        for (i, y) in y.iter_mut().enumerate() {
            let (row, at) = (i / (heads * head_dim), i % head_dim);
            let angle = f64::from(angles[row * half + at % half]);
            // rotate_half: the second half, negated, comes first.
            let other = if at < half { -x[i + half] } else { x[i - half] };
            *y = x[i] * angle.cos() + other * angle.sin();
        }
        y
    }

    #[test]
    fn rope_matches_the_rotation_and_its_inverse_the_finite_difference() {
        for (rows, heads, head_dim) in [(3, 2, 64), (5, 1, 6), (1, 3, 2), (2, 2, 36)] {
            let n = rows * heads * head_dim;
            let x = numbers(1, n);
            let angles: Vec<f32> = numbers(2, rows * head_dim / 2)
                .iter()
                .map(|x| x * 9.0)
                .collect();
            let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
            let mut y = x.clone();
            rope(Isa::Scalar, &mut y, head_dim, &cos, &sin, false);
            assert_near(
                "y",
                &y,
                &forward(&to_f64(&x), heads, head_dim, &angles),
                1e-6,
            );

            let dy = numbers(3, n);
            let mut dx = dy.clone();
            rope(Isa::Scalar, &mut dx, head_dim, &cos, &sin, true);
            let expected =
                finite_difference(&x, |x| weighted(&dy, &forward(x, heads, head_dim, &angles)));
            assert_near("dx", &dx, &expected, 1e-6);
            for isa in isas() {
                let (mut a, mut b) = (x.clone(), dy.clone());
                rope(isa, &mut a, head_dim, &cos, &sin, false);
                rope(isa, &mut b, head_dim, &cos, &sin, true);
                assert_same_bits(isa, &a, &y);
                assert_same_bits(isa, &b, &dx);
            }
        }
    }
}
