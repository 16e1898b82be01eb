//! Rows of f32 on the card.

use crate::device::GpuDevice;
use crate::executor::{Buffer, Executor};
use std::sync::Arc;

/// A buffer that grows when more is needed, and then loses its contents.
pub(crate) struct Growing {
    executor: Arc<Executor>,
    buffer: Option<Buffer>,
}

impl Growing {
    pub(crate) fn new(executor: &Arc<Executor>) -> Growing {
        Growing {
            executor: executor.clone(),
            buffer: None,
        }
    }

    /// The buffer, with room for `words` words.
    ///
    /// # Panics
    /// The card has no memory.
    pub(crate) fn with_room(&mut self, words: usize) -> &Buffer {
        let bytes = 4 * words as u64;
        if self.buffer.as_ref().is_some_and(|b| b.bytes() < bytes) {
            self.buffer = None;
        }
        self.buffer.get_or_insert_with(|| {
            let most = self.executor.largest_buffer();
            let room = bytes.next_power_of_two().min(most).max(bytes);
            self.executor.buffer(room).unwrap_or_else(|e| panic!("{e}"))
        })
    }
}

/// `rows x columns` of f32, row-major. Keeps its memory when it shrinks.
pub struct Tensor {
    executor: Arc<Executor>,
    rows: usize,
    columns: usize,
    values: Growing,
}

impl Tensor {
    fn new(executor: &Arc<Executor>) -> Tensor {
        Tensor {
            executor: executor.clone(),
            rows: 0,
            columns: 0,
            values: Growing::new(executor),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Another shape; the contents are unspecified until written.
    pub(crate) fn resize(&mut self, rows: usize, columns: usize) {
        (self.rows, self.columns) = (rows, columns);
        self.values.with_room(rows * columns);
    }

    /// # Panics
    /// It was never given a shape.
    pub(crate) fn buffer(&self) -> &Buffer {
        match &self.values.buffer {
            Some(buffer) => buffer,
            None => panic!("a tensor without a shape is read"),
        }
    }

    fn bytes(&self) -> u64 {
        4 * (self.rows * self.columns) as u64
    }

    /// Gives it a shape, and values from the host.
    ///
    /// # Panics
    /// The number of values is not rows * columns.
    pub fn write(&mut self, rows: usize, columns: usize, values: &[f32]) {
        assert_eq!(values.len(), rows * columns);
        self.resize(rows, columns);
        self.executor
            .write(self.buffer(), 0, bytemuck::cast_slice(values));
    }

    /// Becomes rows x columns zeros.
    pub fn clear(&mut self, rows: usize, columns: usize) {
        self.resize(rows, columns);
        self.executor.clear(self.buffer(), self.bytes());
    }

    /// Takes the shape and values of `from`.
    pub fn copy_from(&mut self, from: &Tensor) {
        self.resize(from.rows, from.columns);
        if from.bytes() > 0 {
            self.executor
                .copy(from.buffer(), self.buffer(), from.bytes());
        }
    }

    /// Copies all values to the host. Waits for the card.
    ///
    /// # Panics
    /// The card has failed.
    pub fn read_into(&self, values: &mut Vec<f32>) {
        values.clear();
        values.resize(self.rows * self.columns, 0.0);
        if !values.is_empty() {
            self.executor
                .read(self.buffer(), bytemuck::cast_slice_mut(values));
        }
    }
}

/// A norm's weight or a bias.
pub struct Vector {
    pub(crate) buffer: Buffer,
    /// Number of values.
    pub length: usize,
}

impl GpuDevice {
    /// A tensor without a shape.
    pub fn tensor(&self) -> Tensor {
        Tensor::new(self.executor())
    }

    /// A vector of values from the host.
    ///
    /// # Panics
    /// The card has no memory.
    pub fn vector(&self, values: &[f32]) -> Vector {
        let bytes = size_of_val(values) as u64;
        let buffer = self
            .executor()
            .buffer(bytes)
            .unwrap_or_else(|e| panic!("{e}"));
        self.executor()
            .write_unused(&buffer, 0, bytemuck::cast_slice(values));
        Vector {
            buffer,
            length: values.len(),
        }
    }
}
