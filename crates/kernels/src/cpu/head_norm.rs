//! The RMS norm of each head of queries and keys, which Qwen3 applies before the rotation: forward and backward.

use crate::cpu::device::CpuDevice;
use crate::cpu::grad;
use crate::cpu::norm::{Norm, rmsnorm_row};
use crate::cpu::tensor::Tensor;

impl CpuDevice {
    /// RMS norm of every head of every row: rows of `x` are heads of `norm.weight.len()` columns, one after the other.
    ///
    /// # Panics
    /// The columns are not a multiple of the head.
    pub fn norm_heads(&self, x: &Tensor, norm: Norm, out: &mut Tensor) {
        let head_dim = norm.weight.len();
        assert!(head_dim > 0 && x.columns().is_multiple_of(head_dim));
        out.resize(x.rows(), x.columns());
        self.by_rows(out, |row, out| {
            let heads = x.row(row).chunks_exact(head_dim);
            for (x, out) in heads.zip(out.chunks_exact_mut(head_dim)) {
                rmsnorm_row(self.isa(), x, norm.weight, norm.eps, out);
            }
        });
    }

    /// dx += the gradient of [`CpuDevice::norm_heads`], whose input was `x`.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn norm_heads_backward(&self, dy: &Tensor, x: &Tensor, norm: Norm, dx: &mut Tensor) {
        assert!(x.columns().is_multiple_of(norm.weight.len()));
        assert_eq!((dy.rows(), dy.columns()), (x.rows(), x.columns()));
        assert_eq!((dx.rows(), dx.columns()), (x.rows(), x.columns()));
        self.by_rows(dx, |row, dx| {
            // The norm's backward takes the heads of a row as rows.
            let (dy, x) = (dy.row(row), x.row(row));
            grad::rmsnorm_backward(self.isa(), dy, x, norm.weight, norm.eps, dx);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::check::{assert_near, finite_difference, numbers, weighted};
    use crate::cpu::isa::Isa;
    use crate::cpu::reference;

    const HEADS: usize = 3;
    const HEAD_DIM: usize = 48;
    const ROWS: usize = 21;

    fn tensor(seed: u64) -> Tensor {
        let mut tensor = Tensor::zeros(ROWS, HEADS * HEAD_DIM);
        let values = numbers(seed, ROWS * HEADS * HEAD_DIM);
        tensor.values_mut().copy_from_slice(&values);
        tensor
    }

    fn devices() -> impl Iterator<Item = CpuDevice> {
        let isas = Isa::ALL.into_iter().filter(|isa| isa.available());
        isas.map(|isa| CpuDevice::open(Some(2), isa).unwrap())
    }

    fn forward(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
        let of_head = |x: &[f64]| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let r = 1.0 / (mean + f64::from(eps)).sqrt();
            let pairs = x.iter().zip(weight);
            pairs
                .map(|(x, w)| x * r * f64::from(*w))
                .collect::<Vec<_>>()
        };
        x.chunks(weight.len()).flat_map(of_head).collect()
    }

    #[test]
    fn each_head_is_normalised_separately() {
        let (x, weight) = (tensor(1), numbers(2, HEAD_DIM));
        let norm = Norm {
            weight: &weight,
            eps: 1e-5,
        };
        let heads = x.values().chunks(HEAD_DIM);
        let expected: Vec<f64> = heads
            .flat_map(|head| reference::rmsnorm(head, &weight, 1e-5))
            .collect();
        for device in devices() {
            let mut y = Tensor::default();
            device.norm_heads(&x, norm, &mut y);
            assert_near("y", y.values(), &expected, 1e-6);
        }
    }

    #[test]
    fn backward_matches_finite_differences() {
        let (x, dy, weight) = (tensor(1), tensor(3), numbers(2, HEAD_DIM));
        let norm = Norm {
            weight: &weight,
            eps: 1e-5,
        };
        let expected = finite_difference(x.values(), |x| {
            weighted(dy.values(), &forward(x, &weight, 1e-5))
        });
        for device in devices() {
            let mut dx = Tensor::zeros(ROWS, HEADS * HEAD_DIM);
            device.norm_heads_backward(&dy, &x, norm, &mut dx);
            assert_near("dx", dx.values(), &expected, 1e-5);
        }
    }
}
