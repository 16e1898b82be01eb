//! The small operations between products, by rows in parallel: embedding, norm, SwiGLU, gathering rows.

use crate::device::Device;
use crate::grad::math::silu;
use crate::isa::per_isa;
use crate::linear::Norm;
use crate::norm::rmsnorm_row;
use crate::pool::Scatter;
use crate::tensor::Tensor;
use crate::weights::Weights;

/// Rows a task takes.
pub(crate) const CHUNK: usize = 16;

per_isa! {
    fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            *out = silu(*g) * u;
        }
    }
}

impl Device {
    /// Runs `f(row, out row)` for every row of `out`.
    pub(crate) fn by_rows(&self, out: &mut Tensor, f: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, columns) = (out.rows(), out.columns());
        let out = Scatter::new(out.values_mut());
        self.pool().run(rows.div_ceil(CHUNK), &|task| {
            for row in task * CHUNK..((task + 1) * CHUNK).min(rows) {
                // SAFETY: one task a row.
                f(row, unsafe { out.part(row * columns, columns) });
            }
        });
    }

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
    pub fn gather(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) {
        out.resize(rows.len(), x.columns());
        self.by_rows(out, |row, out| {
            out.copy_from_slice(x.row(rows[row] as usize))
        });
    }
}
