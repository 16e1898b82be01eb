//! Activations: rows of f32 in the device's memory. Their values cross to the host only in [`Device::upload`] and
//! [`Tensor::read_into`].

use crate::cpu;
use crate::device::{Device, Form, Kind, no_backward};
use crate::gpu;

/// `rows x columns` of f32 on a device. Keeps its memory when it shrinks, so a step allocates nothing.
pub struct Tensor {
    pub(crate) form: Form<cpu::tensor::Tensor, gpu::tensor::Tensor>,
}

impl Tensor {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match &self.form {
            Form::Cpu(tensor) => tensor.rows(),
            Form::Gpu(tensor) => tensor.rows(),
        }
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        match &self.form {
            Form::Cpu(tensor) => tensor.columns(),
            Form::Gpu(tensor) => tensor.columns(),
        }
    }

    /// Copies all values to the host, row after row, in place of what `values` held. Waits for the device.
    pub fn read_into(&self, values: &mut Vec<f32>) {
        values.clear();
        match &self.form {
            Form::Cpu(tensor) => values.extend_from_slice(tensor.values()),
            Form::Gpu(tensor) => tensor.read_into(values),
        }
    }

    /// [`Tensor::read_into`] a new vector.
    pub fn read(&self) -> Vec<f32> {
        let mut values = Vec::new();
        self.read_into(&mut values);
        values
    }
}

/// A vector of f32 that a device keeps: a norm's weight or a bias.
pub struct Vector {
    pub(crate) form: Form<Vec<f32>, gpu::tensor::Vector>,
}

impl Vector {
    /// Number of values.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Cpu(vector) => vector.len(),
            Form::Gpu(vector) => vector.length,
        }
    }
}

impl Device {
    /// A tensor without rows. Whatever writes to it gives it its shape.
    pub fn tensor(&self) -> Tensor {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::tensor::Tensor::default()),
            Kind::Gpu(gpu) => Form::Gpu(gpu.tensor()),
        };
        Tensor { form }
    }

    /// A tensor of zeros.
    pub fn zeros(&self, rows: usize, columns: usize) -> Tensor {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::tensor::Tensor::zeros(rows, columns)),
            Kind::Gpu(gpu) => {
                let mut tensor = gpu.tensor();
                tensor.clear(rows, columns);
                Form::Gpu(tensor)
            }
        };
        Tensor { form }
    }

    /// A tensor of row-major values from the host.
    ///
    /// # Panics
    /// The number of values is not rows * columns.
    pub fn upload(&self, rows: usize, columns: usize, values: &[f32]) -> Tensor {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(cpu::tensor::Tensor::from_vec(
                rows,
                columns,
                values.to_vec(),
            )),
            Kind::Gpu(gpu) => {
                let mut tensor = gpu.tensor();
                tensor.write(rows, columns, values);
                Form::Gpu(tensor)
            }
        };
        Tensor { form }
    }

    /// A vector of values from the host.
    pub fn vector(&self, values: &[f32]) -> Vector {
        let form = match self.kind() {
            Kind::Cpu(_) => Form::Cpu(values.to_vec()),
            Kind::Gpu(gpu) => Form::Gpu(gpu.vector(values)),
        };
        Vector { form }
    }

    /// `tensor` becomes rows x columns zeros.
    pub fn clear(&self, tensor: &mut Tensor, rows: usize, columns: usize) {
        match self.kind() {
            Kind::Cpu(_) => {
                let tensor = tensor.form.cpu_mut();
                tensor.resize(rows, columns);
                tensor.clear();
            }
            Kind::Gpu(_) => tensor.form.gpu_mut().clear(rows, columns),
        }
    }

    /// `to` takes the shape and values of `from`.
    pub fn copy(&self, from: &Tensor, to: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(_) => to.form.cpu_mut().copy_from(from.form.cpu()),
            Kind::Gpu(_) => to.form.gpu_mut().copy_from(from.form.gpu()),
        }
    }

    /// `to` becomes some rows of `from`, in the order given.
    ///
    /// # Panics
    /// A row past the last.
    pub fn gather_rows(&self, from: &Tensor, rows: &[u32], to: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.gather_rows(from.form.cpu(), rows, to.form.cpu_mut()),
            Kind::Gpu(gpu) => gpu.gather_rows(from.form.gpu(), rows, to.form.gpu_mut()),
        }
    }

    /// Writes row `i` of `from` to row `rows[i]` of `to`; the rows are distinct.
    ///
    /// # Panics
    /// A row past the last, or shapes that do not fit.
    pub fn scatter_rows(&self, from: &Tensor, rows: &[u32], to: &mut Tensor) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.scatter_rows(from.form.cpu(), rows, to.form.cpu_mut()),
            Kind::Gpu(_) => no_backward(),
        }
    }

    /// Multiplies row `rows[i]` of `tensor` by `factors[i]`; the rows are distinct.
    ///
    /// # Panics
    /// A row past the last, or not as many factors as rows.
    pub fn scale_rows(&self, tensor: &mut Tensor, rows: &[u32], factors: &[f32]) {
        match self.kind() {
            Kind::Cpu(cpu) => cpu.scale_rows(tensor.form.cpu_mut(), rows, factors),
            Kind::Gpu(_) => no_backward(),
        }
    }
}
