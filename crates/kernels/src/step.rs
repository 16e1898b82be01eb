//! A step's metadata on the device: uploaded once, read by every layer.

use crate::device::{Device, Form, Kind};
use crate::gpu;
use crate::rows::StepRows;
use kernels_common::step::Step as Checked;

/// The metadata of a step's rows, on a device.
pub struct Step {
    pub(crate) form: Form<Checked, gpu::step::Step>,
}

impl Device {
    /// Uploads the metadata of a step.
    ///
    /// # Panics
    /// A span past the rows or with too few blocks; spans or runs that overlap; two spans that write the same place of a block.
    pub fn step(&self, rows: StepRows) -> Step {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(Checked::new(rows)),
            Kind::Gpu(gpu) => Form::Gpu(gpu.step(rows)),
        };
        Step { form }
    }
}
