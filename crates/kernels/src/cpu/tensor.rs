//! Rows of f32 activations.

/// `rows x columns` of f32, row-major. Keeps its memory when it shrinks, so a step allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Tensor {
    rows: usize,
    columns: usize,
    data: Vec<f32>,
}

impl Tensor {
    /// Zeros.
    pub fn zeros(rows: usize, columns: usize) -> Tensor {
        let mut t = Tensor::default();
        t.resize(rows, columns);
        t
    }

    /// From row-major values.
    ///
    /// # Panics
    /// The number of values is not rows * columns.
    pub fn from_vec(rows: usize, columns: usize, data: Vec<f32>) -> Tensor {
        assert_eq!(data.len(), rows * columns);
        Tensor {
            rows,
            columns,
            data,
        }
    }

    /// Another shape; the contents are unspecified until written (what was there, or zeros).
    pub fn resize(&mut self, rows: usize, columns: usize) {
        self.rows = rows;
        self.columns = columns;
        self.data.resize(rows * columns, 0.0);
    }

    /// All zeros.
    pub fn clear(&mut self) {
        self.data.fill(0.0);
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.columns..][..self.columns]
    }

    /// A row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.columns..][..self.columns]
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.data
    }

    /// All values, row after row.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Takes over the shape and contents of another.
    pub fn copy_from(&mut self, other: &Tensor) {
        self.rows = other.rows;
        self.columns = other.columns;
        self.data.clear();
        self.data.extend_from_slice(&other.data);
    }
}
