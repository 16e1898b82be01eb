//! Operations by rows.

use crate::device::GpuDevice;
use crate::executor::{Buffer, Kernel, Launch};
use crate::kernels::{CROSS_ENTROPY, GATHER, NORM, SWIGLU};
use crate::tensor::{Tensor, Vector};

/// An RMS norm.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// A factor for each column.
    pub weight: &'a Vector,
    /// Added to the mean square.
    pub eps: f32,
}

impl GpuDevice {
    /// Normalises rows, or heads: a row is `columns / weights` heads.
    pub fn norm(&self, x: &Tensor, norm: Norm, out: &mut Tensor) {
        let columns = norm.weight.length;
        assert!(x.columns().is_multiple_of(columns));
        out.resize(x.rows(), x.columns());
        let heads = x.rows() * x.columns() / columns;
        self.by_rows(
            &NORM,
            [x.buffer(), &norm.weight.buffer, self.unread(), out.buffer()],
            &[columns as u32, norm.eps.to_bits(), heads as u32],
            [heads.min(1 << 15), heads.div_ceil(1 << 15), 1],
        );
    }

    /// silu(gate) * up.
    pub fn swiglu(&self, gate: &Tensor, up: &Tensor, out: &mut Tensor) {
        let (rows, columns) = (gate.rows(), gate.columns());
        assert_eq!((rows, columns), (up.rows(), up.columns()));
        out.resize(rows, columns);
        self.by_rows(
            &SWIGLU,
            [gate.buffer(), up.buffer(), self.unread(), out.buffer()],
            &[columns as u32, 0, 0],
            [columns.div_ceil(64), rows, 1],
        );
    }

    /// `out` becomes some rows of `x`, in the order given.
    pub fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) {
        assert!(rows.iter().all(|&row| (row as usize) < x.rows()));
        out.resize(rows.len(), x.columns());
        let (tables, at) = self.table(rows.to_vec());
        self.by_rows(
            &GATHER,
            [x.buffer(), self.unread(), &tables, out.buffer()],
            &[x.columns() as u32, 0, at],
            [x.columns().div_ceil(64), rows.len(), 1],
        );
    }

    /// The losses of rows from `first` on; the logits become their gradients.
    pub fn cross_entropy(
        &self,
        logits: &mut Tensor,
        targets: &[u32],
        scale: &[f32],
        losses: &mut Tensor,
        first: usize,
    ) {
        let (rows, columns) = (logits.rows(), logits.columns());
        assert!(targets.len() == rows && scale.len() == rows && first + rows <= losses.rows());
        assert!(targets.iter().all(|&target| (target as usize) < columns));
        let scale = scale.iter().map(|scale| scale.to_bits());
        let (tables, at) = self.table(targets.iter().copied().chain(scale).collect());
        self.executor().launch(&Launch {
            kernel: &CROSS_ENTROPY,
            constants: &[],
            buffers: &[&tables, logits.buffer(), losses.buffer()],
            parameters: &[columns as u32, at, rows as u32, first as u32],
            groups: [rows, 1, 1],
        });
    }

    fn by_rows(
        &self,
        kernel: &Kernel,
        buffers: [&Buffer; 4],
        parameters: &[u32],
        groups: [usize; 3],
    ) {
        self.executor().launch(&Launch {
            kernel,
            constants: &[],
            buffers: &buffers,
            parameters,
            groups,
        });
    }
}
