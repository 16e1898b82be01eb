//! Products of quantized weights with int8 activations: integers inside a group of 32, f32 across groups.
//!
//! For output n and row m, with weights `D*(q - offset) + M` and activations `d*x`:
//!
//! ```text
//! y[m][n] = sum over groups g, in order:  D[g][n]*d[m][g] * sum((q - offset)*x)  +  M[g][n] * d[m][g]*sum(x)
//! ```
//!
//! If each half-group has its own scale, each adds one term. Each term is one fused multiply-add into a single running f32, for any
//! number of rows, so a row has the same bits alone and in any batch, and on every instruction set.

use crate::cpu::isa::per_isa;
use crate::cpu::pool::Scatter;
use crate::cpu::simd::{Simd, instantiate, unroll};
use crate::cpu::weights::{GROUP, Layout};

/// The number of rows multiplied with a weight tile at once, at most: their sums, the tile's 8 vectors and its scales fill 32 registers.
pub(crate) const CHUNK: usize = 16;

/// How far ahead of the products weights are prefetched, in bytes.
const AHEAD: usize = 4096;

/// Offsets are 0 or a power of two from here on: `corrections` hold a multiple of it.
const LEAST_OFFSET: i32 = 8;

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
    groups: usize,
    quants: *const i8,
    scales: *const f32,
    corrections: *const i32,
    scaled_sums: *const f32,
}

/// A chunk of rows against one weight tile.
#[derive(Clone, Copy)]
pub(crate) struct TileJob {
    pub(crate) tile: *const u8,
    pub(crate) rows: ChunkRows,
    /// rows x 16, `out_stride` apart; the first row is the chunk's.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// Add to what is there instead of replacing it.
    pub(crate) accumulate: bool,
}

/// Rows `first..first + ROWS` of the chunk.
///
/// # Safety
/// `Simd`'s contract, and `TileJob`'s pointers cover what its counts say.
#[inline(always)]
unsafe fn rows<
    S: Simd,
    const ROWS: usize,
    const BITS: u8,
    const OFFSET: i32,
    const WIDE: bool,
    const MIN: bool,
    const HALVES: bool,
>(
    job: TileJob,
    first: usize,
) {
    const { assert!(GROUP == 32) };
    const { assert!(OFFSET == 0 || (OFFSET >= LEAST_OFFSET && OFFSET.count_ones() == 1)) };
    // SAFETY: the caller's contract; offsets stay inside the tile and the rows.
    unsafe {
        let layout = Layout {
            bits: BITS,
            offset: OFFSET,
            wide_scales: WIDE,
            minimum: MIN,
            halves: HALVES,
        };
        let x = job.rows;
        // 4; of several rows, kept from the compiler, which would write the loop out and hold a whole group's vectors, most of
        // them on the stack.
        let pairs = if ROWS < 4 || S::REGISTERS >= 32 {
            GROUP / 8
        } else {
            std::hint::black_box(GROUP / 8)
        };
        let mut y = [S::zero(); ROWS];
        for g in 0..x.groups {
            let block = job.tile.add(g * layout.block());
            // Weights are stored in the order in which they are read, across tiles too; the hardware's prefetcher stops at
            // the end of every page.
            for line in 0..layout.block().div_ceil(64) {
                S::prefetch(block.wrapping_add(AHEAD + 64 * line));
            }
            let scale = |i: usize| {
                let p = block.add(layout.quants() + i * layout.scale_bytes());
                if WIDE {
                    S::load(p.cast())
                } else {
                    S::load_f16(p.cast())
                }
            };
            let low = scale(0);
            let high = if HALVES { scale(1) } else { low };
            let minimum = |half: usize| scale(layout.scales() + half);
            let cell = g * x.count + first;
            let quants = x.quants.add(cell * GROUP);
            let scales = x.scales.add(cell);
            let corrections = x.corrections.add(cell);
            let scaled_sums = x.scaled_sums.add(cell);
            let start = |m: usize| match OFFSET {
                0 => S::splat_i(0),
                LEAST_OFFSET => S::splat_i(*corrections.add(m)),
                _ => S::splat_i(*corrections.add(m) * (OFFSET / LEAST_OFFSET)),
            };
            // Steps 2i and 2i + 1 of the tile.
            let pair = |i: usize| {
                if BITS == 4 {
                    let both = S::load_bytes(block.add(64 * i));
                    (S::low_nibbles(both), S::high_nibbles(both))
                } else {
                    (
                        S::load_bytes(block.add(128 * i)),
                        S::load_bytes(block.add(128 * i + 64)),
                    )
                }
            };
            let dot = |acc, w, m: usize, step: usize| {
                let x = quants.add(m * GROUP + 4 * step);
                if BITS == 4 {
                    S::dot_nibbles(acc, w, x)
                } else {
                    S::dot_bytes(acc, w, x)
                }
            };
            let scaled = |y, acc, scale, m: usize| {
                S::fma(S::to_f32(acc), S::mul(scale, S::splat(*scales.add(m))), y)
            };
            if HALVES {
                // The offset is taken from each half, so the sums of the halves are added up here.
                let w: [(S::B, S::B); 4] = [pair(0), pair(1), pair(2), pair(3)];
                for (m, y) in y.iter_mut().enumerate() {
                    for (half, scale) in [low, high].into_iter().enumerate() {
                        let x = quants.add(m * GROUP + 16 * half);
                        let mut sum = 0i32;
                        for i in 0..16 {
                            sum += i32::from(*x.add(i));
                        }
                        let mut acc = S::splat_i(-OFFSET * sum);
                        unroll!(2, |i| {
                            let (even, odd) = w[2 * half + i];
                            acc = dot(acc, even, m, 4 * half + 2 * i);
                            acc = dot(acc, odd, m, 4 * half + 2 * i + 1);
                        });
                        *y = scaled(*y, acc, scale, m);
                        if MIN {
                            let sum = S::splat(*scales.add(m) * sum as f32);
                            *y = S::fma(minimum(half), sum, *y);
                        }
                    }
                }
            } else if S::REGISTERS >= 32 {
                // The tile's vectors stay in registers, rows pass by. Sums of integers are exact in any order, so a few
                // rows may have two chains each to hide a product's latency, and many rows one.
                let w: [(S::B, S::B); 4] = [pair(0), pair(1), pair(2), pair(3)];
                unroll!(ROWS, |m| {
                    let mut acc = start(m);
                    if ROWS < 4 {
                        let mut odd = S::splat_i(0);
                        unroll!(4, |i| {
                            acc = dot(acc, w[i].0, m, 2 * i);
                            odd = dot(odd, w[i].1, m, 2 * i + 1);
                        });
                        acc = S::add_i(acc, odd);
                    } else {
                        unroll!(4, |i| {
                            acc = dot(acc, w[i].0, m, 2 * i);
                            acc = dot(acc, w[i].1, m, 2 * i + 1);
                        });
                    }
                    y[m] = scaled(y[m], acc, low, m);
                });
            } else if BITS == 4 {
                // Few registers: the rows' sums of the group stay in them, the tile's vectors pass by.
                let mut acc = [S::zero_group(); ROWS];
                for i in 0..pairs {
                    let (even, odd) = pair(i);
                    let x = quants.add(8 * i);
                    unroll!(ROWS, |m| {
                        acc[m] = S::dot_group(acc[m], even, x.add(m * GROUP));
                        acc[m] = S::dot_group(acc[m], odd, x.add(m * GROUP + 4));
                    });
                }
                unroll!(ROWS, |m| {
                    y[m] = scaled(y[m], S::add_group(start(m), acc[m]), low, m)
                });
            } else {
                // By nibbles, which need no widening within a group: first the low ones, then the high ones.
                let mut acc = [S::zero_group(); ROWS];
                for i in 0..pairs {
                    let (even, odd) = pair(i);
                    let (even, odd) = (S::low_nibbles(even), S::low_nibbles(odd));
                    let x = quants.add(8 * i);
                    unroll!(ROWS, |m| {
                        acc[m] = S::dot_group(acc[m], even, x.add(m * GROUP));
                        acc[m] = S::dot_group(acc[m], odd, x.add(m * GROUP + 4));
                    });
                }
                let mut low_sums = [S::splat_i(0); ROWS];
                unroll!(ROWS, |m| {
                    low_sums[m] = S::add_group(start(m), acc[m]);
                    acc[m] = S::zero_group();
                });
                for i in 0..pairs {
                    let (even, odd) = pair(i);
                    let (even, odd) = (S::high_nibbles(even), S::high_nibbles(odd));
                    let x = quants.add(8 * i);
                    unroll!(ROWS, |m| {
                        acc[m] = S::dot_group(acc[m], even, x.add(m * GROUP));
                        acc[m] = S::dot_group(acc[m], odd, x.add(m * GROUP + 4));
                    });
                }
                unroll!(ROWS, |m| {
                    let mut high = S::add_group(S::splat_i(0), acc[m]);
                    unroll!(4, |_doubled| { high = S::add_i(high, high) });
                    y[m] = scaled(y[m], S::add_i(low_sums[m], high), low, m)
                });
            }
            if MIN && !HALVES {
                let minimum = minimum(0);
                unroll!(ROWS, |m| {
                    y[m] = S::fma(minimum, S::splat(*scaled_sums.add(m)), y[m])
                });
            }
        }
        unroll!(ROWS, |m| {
            let out = job.out.add((first + m) * job.out_stride);
            let sum = if job.accumulate {
                S::add(S::load(out), y[m])
            } else {
                y[m]
            };
            S::store(out, sum);
        });
    }
}

/// # Safety
/// As `rows`.
#[inline(always)]
unsafe fn all_rows<
    S: Simd,
    const BITS: u8,
    const OFFSET: i32,
    const WIDE: bool,
    const MIN: bool,
    const HALVES: bool,
>(
    job: TileJob,
) {
    let mut first = 0;
    macro_rules! by {
        ($rows:literal) => {
            while job.rows.count - first >= $rows {
                // SAFETY: the caller's contract.
                unsafe { rows::<S, $rows, BITS, OFFSET, WIDE, MIN, HALVES>(job, first) };
                first += $rows;
            }
        };
    }
    if S::REGISTERS >= 32 && !HALVES {
        by!(16);
        by!(8);
    }
    by!(4);
    by!(2);
    by!(1);
}

instantiate!(fn on_isa<const BITS: u8, const OFFSET: i32, const WIDE: bool, const MIN: bool, const HALVES: bool>(job: TileJob) = all_rows);

/// Multiplies one tile.
///
/// # Safety
/// `job`'s pointers cover what its counts and `layout` say, and `isa` is available.
pub(crate) unsafe fn multiply_tile(isa: crate::cpu::isa::Isa, layout: &Layout, job: TileJob) {
    // SAFETY: passed on.
    unsafe {
        match (
            layout.bits,
            layout.offset,
            layout.wide_scales,
            layout.minimum,
            layout.halves,
        ) {
            (4, 8, false, false, false) => on_isa::<4, 8, false, false, false>(isa, job),
            (4, 0, false, true, false) => on_isa::<4, 0, false, true, false>(isa, job),
            (4, 0, true, true, false) => on_isa::<4, 0, true, true, false>(isa, job),
            (4, 0, true, true, true) => on_isa::<4, 0, true, true, true>(isa, job),
            (4, 8, true, false, true) => on_isa::<4, 8, true, false, true>(isa, job),
            (8, 16, false, false, false) => on_isa::<8, 16, false, false, false>(isa, job),
            (8, 128, false, false, false) => on_isa::<8, 128, false, false, false>(isa, job),
            (8, 128, true, false, false) => on_isa::<8, 128, true, false, false>(isa, job),
            (8, 0, false, true, false) => on_isa::<8, 0, false, true, false>(isa, job),
            (8, 0, true, true, false) => on_isa::<8, 0, true, true, false>(isa, job),
            (8, 32, true, false, true) => on_isa::<8, 32, true, false, true>(isa, job),
            other => unreachable!("no source type has the layout {other:?}"),
        }
    }
}
