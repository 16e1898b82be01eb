//! The small operations between products, by rows in parallel: embedding, norm, SwiGLU, gathering rows.

use crate::cpu::device::CpuDevice;
use crate::cpu::isa::per_isa;
use crate::cpu::math::silu;
use crate::cpu::norm::{Norm, rmsnorm_row};
use crate::cpu::tensor::Tensor;
use crate::cpu::weights::Weights;

per_isa! {
    fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            *out = silu(*g) * u;
        }
    }
}

impl CpuDevice {
    /// Looks up the rows of an embedding table: `out` becomes tokens x inputs.
    ///
    /// # Panics
    /// A token past the table.
    pub fn embed(&self, table: &Weights, tokens: &[u32], out: &mut Tensor) {
        assert!(tokens.iter().all(|&t| (t as usize) < table.outputs));
        out.resize(tokens.len(), table.inputs);
        self.by_rows(out, |row, out| table.row(tokens[row] as usize, out));
    }

    /// y = x / sqrt(mean(x^2) + eps) * weight, by rows.
    pub fn rmsnorm(&self, x: &Tensor, norm: Norm, out: &mut Tensor) {
        assert_eq!(x.columns(), norm.weight.len());
        out.resize(x.rows(), x.columns());
        self.by_rows(out, |row, out| {
            rmsnorm_row(self.isa(), x.row(row), norm.weight, norm.eps, out)
        });
    }

    /// out = silu(gate) * up.
    pub fn swiglu(&self, gate: &Tensor, up: &Tensor, out: &mut Tensor) {
        assert_eq!((gate.rows(), gate.columns()), (up.rows(), up.columns()));
        out.resize(gate.rows(), gate.columns());
        self.by_rows(out, |row, out| {
            swiglu_row(self.isa(), gate.row(row), up.row(row), out)
        });
    }

    /// Copies some rows of x, in the order given.
    pub fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) {
        out.resize(rows.len(), x.columns());
        self.by_rows(out, |row, out| {
            out.copy_from_slice(x.row(rows[row] as usize))
        });
    }

    /// Copies the rows of x to some rows of `out`.
    pub fn scatter_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) {
        assert_eq!((x.rows(), x.columns()), (rows.len(), out.columns()));
        debug_assert!(are_distinct(rows), "a row is written twice");
        for (i, row) in rows.iter().enumerate() {
            out.row_mut(*row as usize).copy_from_slice(x.row(i));
        }
    }

    /// Multiplies some rows of x, each by its factor.
    pub fn scale_rows(&self, x: &mut Tensor, rows: &[u32], factors: &[f32]) {
        assert_eq!(rows.len(), factors.len());
        debug_assert!(are_distinct(rows), "a row is multiplied twice");
        for (row, factor) in rows.iter().zip(factors) {
            x.row_mut(*row as usize)
                .iter_mut()
                .for_each(|x| *x *= factor);
        }
    }
}

fn are_distinct(rows: &[u32]) -> bool {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    rows.windows(2).all(|pair| pair[0] != pair[1])
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn rows_are_scattered_and_scaled_and_debug_builds_panic_on_a_repeated_row() {
        let device = CpuDevice::open(Some(2), Isa::Scalar).unwrap();
        let from = Tensor::from_vec(2, 2, vec![1.0, 2.0, 3.0, 4.0]);
        let mut to = Tensor::zeros(3, 2);
        device.scatter_rows(&from, &[2, 0], &mut to);
        device.scale_rows(&mut to, &[2], &[10.0]);
        assert_eq!(to.values(), [3.0, 4.0, 0.0, 0.0, 10.0, 20.0]);
        if cfg!(debug_assertions) {
            let repeated = AssertUnwindSafe(|| device.scatter_rows(&from, &[1, 1], &mut to));
            assert!(catch_unwind(repeated).is_err());
            let repeated = AssertUnwindSafe(|| device.scale_rows(&mut to, &[1, 1], &[2.0, 2.0]));
            assert!(catch_unwind(repeated).is_err());
        }
    }
}
