//! RMS norms, of rows and of heads (Zhang and Sennrich, 2019).

use crate::cpu;
use crate::device::{Device, Kind, no_backward};
use crate::gpu;
use crate::tensor::{Tensor, Vector};

/// An RMS norm: y = x / sqrt(mean(x^2) + eps) * weight.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// A factor for each column.
    pub weight: &'a Vector,
    /// Added to the mean square.
    pub eps: f32,
}

impl<'a> Norm<'a> {
    pub(crate) fn cpu(self) -> cpu::norm::Norm<'a> {
        cpu::norm::Norm {
            weight: self.weight.form.cpu(),
            eps: self.eps,
        }
    }

    pub(crate) fn gpu(self) -> gpu::rows::Norm<'a> {
        gpu::rows::Norm {
            weight: self.weight.form.gpu(),
            eps: self.eps,
        }
    }
}

impl Device {
    /// Normalises rows.
    ///
    /// # Panics
    /// The weight has not one factor for each column.
    pub fn rmsnorm(&self, x: &Tensor, norm: Norm, out: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.rmsnorm(x.form.cpu(), norm.cpu(), out.form.cpu_mut()),
            Kind::Gpu(gpu) => {
                assert_eq!(x.columns(), norm.weight.len());
                gpu.norm(x.form.gpu(), norm.gpu(), out.form.gpu_mut());
            }
        }
    }

    /// dx += the gradient of [`Device::rmsnorm`], whose input was `x`.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn rmsnorm_backward(&self, dy: &Tensor, x: &Tensor, norm: Norm, dx: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => {
                cpu.rmsnorm_backward(dy.form.cpu(), x.form.cpu(), norm.cpu(), dx.form.cpu_mut())
            }
            Kind::Gpu(_) => no_backward(),
        }
    }

    /// Normalises every head of every row: a row of `x` is heads of as many columns as the weight has factors, one after the
    /// other. (Qwen3 does so to queries and keys.)
    ///
    /// # Panics
    /// The columns are not whole heads.
    pub fn norm_heads(&self, x: &Tensor, norm: Norm, out: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.norm_heads(x.form.cpu(), norm.cpu(), out.form.cpu_mut()),
            Kind::Gpu(gpu) => gpu.norm(x.form.gpu(), norm.gpu(), out.form.gpu_mut()),
        }
    }

    /// dx += the gradient of [`Device::norm_heads`], whose input was `x`.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn norm_heads_backward(&self, dy: &Tensor, x: &Tensor, norm: Norm, dx: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => {
                cpu.norm_heads_backward(dy.form.cpu(), x.form.cpu(), norm.cpu(), dx.form.cpu_mut())
            }
            Kind::Gpu(_) => no_backward(),
        }
    }
}
