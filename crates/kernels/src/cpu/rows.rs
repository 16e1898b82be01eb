//! Work split by rows over the pool's threads.

use crate::cpu::device::CpuDevice;
use crate::cpu::scatter::Scatter;
use crate::cpu::tensor::Tensor;

/// Rows of one task.
pub(crate) const CHUNK: usize = 16;

impl CpuDevice {
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
}
