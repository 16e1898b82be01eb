//! Frozen weights in the device's own layout.

use crate::cpu;
use crate::device::{Device, Form, Kind};
use crate::dtype::SourceType;
use crate::error::KernelError;
use crate::gpu;
use crate::step::Step;
use crate::tensor::Tensor;

/// The frozen weights of a linear layer, `outputs x inputs`.
pub struct Weights {
    pub(crate) form: Form<cpu::weights::Weights, gpu::weights::Weights>,
}

impl Weights {
    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        match &self.form {
            Form::Cpu(weights) => weights.outputs,
            Form::Gpu(weights) => weights.outputs,
        }
    }

    /// Columns of the matrix.
    pub fn inputs(&self) -> usize {
        match &self.form {
            Form::Cpu(weights) => weights.inputs,
            Form::Gpu(weights) => weights.inputs,
        }
    }

    /// Bytes in the device's memory.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Cpu(weights) => weights.bytes(),
            Form::Gpu(weights) => weights.bytes(),
        }
    }
}

impl Device {
    /// Packs a linear layer's weights, `outputs x inputs` row-major as `source` encodes them, for products on this device.
    /// Output `i` is source row `order[i]` (default: row `i`).
    ///
    /// # Errors
    /// The bytes do not fit the shape, or there is no memory.
    pub fn pack(
        &self,
        source: SourceType,
        bytes: &[u8],
        shape: (usize, usize),
        order: Option<&[u32]>,
    ) -> Result<Weights, KernelError> {
        let form = match self.kind() {
            Kind::Cpu(cpu) => Form::Cpu(cpu.pack(source, bytes, shape, order)?),
            Kind::Gpu(gpu) => Form::Gpu(gpu.pack(source, bytes, shape, order)?),
        };
        Ok(Weights { form })
    }

    /// Looks up the rows of an embedding table: `out` becomes the step's tokens x inputs.
    ///
    /// # Panics
    /// A token past the table.
    pub fn embed(&self, table: &Weights, step: &Step, out: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.embed(
                table.form.cpu(),
                &step.form.cpu().tokens,
                out.form.cpu_mut(),
            ),
            Kind::Gpu(gpu) => gpu.embed(table.form.gpu(), step.form.gpu(), out.form.gpu_mut()),
        }
    }
}
