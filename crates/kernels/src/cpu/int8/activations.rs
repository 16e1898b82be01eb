//! Rows of activations as int8.

use crate::cpu::isa::per_isa;
use crate::cpu::scatter::Scatter;
use crate::cpu::weights::GROUP;

/// The number of rows multiplied with a weight tile at once, at most: their sums, the tile's 8 vectors and its scales fill 32 registers.
pub(crate) const CHUNK: usize = 16;

/// Offsets are 0 or a power of two from here on: `corrections` hold a multiple of it.
pub(super) const LEAST_OFFSET: i32 = 8;

/// Rows of activations as int8 in groups of 32, with a scale a group.
///
/// Values that a tile reads together are adjacent: rows in chunks of [`CHUNK`], then groups, then the rows of the chunk.
/// Group g of row r is cell `first * groups + g * count + (r - first)`, for the chunk of `count` rows from `first` on.
#[derive(Default)]
pub(crate) struct Int8Rows {
    pub(crate) groups: usize,
    rows: usize,
    /// 32 a cell.
    quants: Vec<i8>,
    /// Scale, a cell.
    scales: Vec<f32>,
    /// -8 * sum of the integers, a cell.
    corrections: Vec<i32>,
    /// scale * sum of the integers, a cell.
    scaled_sums: Vec<f32>,
}

/// [`Int8Rows`] while tasks fill them, each its own rows.
pub(crate) struct Int8Writer<'a> {
    groups: usize,
    rows: usize,
    quants: Scatter<'a, i8>,
    scales: Scatter<'a, f32>,
    corrections: Scatter<'a, i32>,
    scaled_sums: Scatter<'a, f32>,
}

impl Int8Rows {
    pub(crate) fn resize(&mut self, rows: usize, columns: usize) {
        self.groups = columns / GROUP;
        self.rows = rows;
        self.quants.resize(rows * columns, 0);
        self.scales.resize(rows * self.groups, 0.0);
        self.corrections.resize(rows * self.groups, 0);
        self.scaled_sums.resize(rows * self.groups, 0.0);
    }

    pub(crate) fn writer(&mut self) -> Int8Writer<'_> {
        Int8Writer {
            groups: self.groups,
            rows: self.rows,
            quants: Scatter::new(&mut self.quants),
            scales: Scatter::new(&mut self.scales),
            corrections: Scatter::new(&mut self.corrections),
            scaled_sums: Scatter::new(&mut self.scaled_sums),
        }
    }

    /// The chunks, each against any tile whose `out` points to the chunk's first row.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = ChunkRows> {
        (0..self.rows).step_by(CHUNK).map(move |first| {
            let cell = first * self.groups;
            ChunkRows {
                first,
                count: CHUNK.min(self.rows - first),
                groups: self.groups,
                quants: self.quants[cell * GROUP..].as_ptr(),
                scales: self.scales[cell..].as_ptr(),
                corrections: self.corrections[cell..].as_ptr(),
                scaled_sums: self.scaled_sums[cell..].as_ptr(),
            }
        })
    }
}

impl Int8Writer<'_> {
    /// Quantizes row `row`.
    ///
    /// # Safety
    /// No other thread writes this row meanwhile.
    pub(crate) unsafe fn write(&self, isa: crate::cpu::isa::Isa, row: usize, x: &[f32]) {
        assert!(row < self.rows && x.len() == self.groups * GROUP);
        let first = row / CHUNK * CHUNK;
        let cell = first * self.groups + row - first;
        let to = RowCells {
            stride: CHUNK.min(self.rows - first),
            quants: self.quants.pointer(cell * GROUP),
            scales: self.scales.pointer(cell),
            corrections: self.corrections.pointer(cell),
            scaled_sums: self.scaled_sums.pointer(cell),
        };
        quantize_row(isa, x, to);
    }
}

/// Where the groups of one row go, `stride` cells apart. Made by [`Int8Writer::write`] alone, which saw that there is room.
#[derive(Clone, Copy)]
struct RowCells {
    stride: usize,
    quants: *mut i8,
    scales: *mut f32,
    corrections: *mut i32,
    scaled_sums: *mut f32,
}

per_isa! {
    /// One row to int8: scale = largest magnitude / 127, nearest, ties to even.
    fn quantize_row(x: &[f32], to: RowCells) {
        // Added to a number below 2^22, this leaves the nearest integer in the low bits of the sum.
        const MAGIC: f32 = 12_582_912.0;
        for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut lanes = [0f32; GROUP];
            for (m, v) in lanes.iter_mut().zip(x) {
                *m = v.abs();
            }
            let mut width = GROUP / 2;
            while width > 0 {
                let (low, high) = lanes.split_at_mut(width);
                for (a, b) in low.iter_mut().zip(high) {
                    *a = if *b > *a { *b } else { *a };
                }
                width /= 2;
            }
            let largest = lanes[0];
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut q = [0i8; GROUP];
            let mut total = 0i32;
            for (q, v) in q.iter_mut().zip(x) {
                let i = (v * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
                *q = i as i8;
                total += i32::from(*q);
            }
            let cell = g * to.stride;
            // SAFETY: `RowCells` has room for all groups of the row, and its maker's caller keeps other threads off it.
            unsafe {
                to.quants.add(cell * GROUP).cast::<[i8; GROUP]>().write(q);
                *to.scales.add(cell) = largest / 127.0;
                *to.corrections.add(cell) = -LEAST_OFFSET * total;
                *to.scaled_sums.add(cell) = largest / 127.0 * total as f32;
            }
        }
    }
}

/// One chunk of [`Int8Rows`].
#[derive(Clone, Copy)]
pub(crate) struct ChunkRows {
    pub(crate) first: usize,
    /// At most [`CHUNK`].
    pub(crate) count: usize,
    pub(super) groups: usize,
    pub(super) quants: *const i8,
    pub(super) scales: *const f32,
    pub(super) corrections: *const i32,
    pub(super) scaled_sums: *const f32,
}
