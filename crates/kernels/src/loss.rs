//! The loss over the vocabulary.

use crate::device::{Device, Kind};
use crate::tensor::Tensor;

impl Device {
    /// Cross entropy by rows: `logits` become their gradients times `scale[row]`, and row `first + i` of `losses` (one column)
    /// the loss of row `i` in nats, unscaled. Nothing is read back: several calls may fill one tensor.
    ///
    /// # Panics
    /// Lengths that do not fit, or a target past the vocabulary.
    pub fn cross_entropy(
        &self,
        logits: &mut Tensor,
        targets: &[u32],
        scale: &[f32],
        losses: &mut Tensor,
        first: usize,
    ) {
        match self.kind() {
            Kind::Cpu(cpu) => {
                assert_eq!(losses.columns(), 1);
                let losses = &mut losses.form.cpu_mut().values_mut()[first..][..targets.len()];
                cpu.cross_entropy(logits.form.cpu_mut(), targets, scale, losses);
            }
            Kind::Gpu(gpu) => {
                assert_eq!(losses.columns(), 1);
                let (logits, losses) = (logits.form.gpu_mut(), losses.form.gpu_mut());
                gpu.cross_entropy(logits, targets, scale, losses, first);
            }
        }
    }
}
