//! The gated activation of the feed-forward part.

use crate::device::{Device, Kind, no_backward};
use crate::tensor::Tensor;

impl Device {
    /// out = silu(gate) * up.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn swiglu(&self, gate: &Tensor, up: &Tensor, out: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.swiglu(gate.form.cpu(), up.form.cpu(), out.form.cpu_mut()),
            Kind::Gpu(gpu) => gpu.swiglu(gate.form.gpu(), up.form.gpu(), out.form.gpu_mut()),
        }
    }

    /// The gradients of [`Device::swiglu`].
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn swiglu_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        dgate: &mut Tensor,
        dup: &mut Tensor,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.swiglu_backward(
                dy.form.cpu(),
                gate.form.cpu(),
                up.form.cpu(),
                dgate.form.cpu_mut(),
                dup.form.cpu_mut(),
            ),
            Kind::Gpu(_) => no_backward(),
        }
    }
}
