//! Products of quantized weights with int8 activations: integers inside a group of 32, f32 across groups.
//!
//! For output n and row m, with weights `D*(q - offset) + M` and activations `d*x`:
//!
//! ```text
//! y[m][n] = sum over groups g, in order:  D[g][n]*d[m][g] * sum((q - offset)*x)  +  M[g][n] * d[m][g]*sum(x)
//! ```
//!
//! Each line is one fused multiply-add into a single running f32, whatever the number of rows, so a row's result is the
//! same bits alone and in company, and on every instruction set.

use crate::isa::per_isa;
use crate::simd::{LANES, Simd, instantiate};
use crate::weights::{GROUP, Layout};

/// Rows of activations as int8 in groups of 32, with a scale a group.
#[derive(Default)]
pub(crate) struct Int8Rows {
    pub(crate) groups: usize,
    pub(crate) quants: Vec<i8>,
    /// Scale, a group.
    pub(crate) scales: Vec<f32>,
    /// Sum of the integers, a group.
    pub(crate) sums: Vec<i32>,
    /// scale * sum, a group.
    pub(crate) scaled_sums: Vec<f32>,
}

impl Int8Rows {
    pub(crate) fn resize(&mut self, rows: usize, columns: usize) {
        self.groups = columns / GROUP;
        self.quants.resize(rows * columns, 0);
        self.scales.resize(rows * self.groups, 0.0);
        self.sums.resize(rows * self.groups, 0);
        self.scaled_sums.resize(rows * self.groups, 0.0);
    }
}

per_isa! {
    /// One row to int8: scale = largest magnitude / 127, nearest, ties to even.
    pub(crate) fn quantize_row(x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32], scaled_sums: &mut [f32]) {
        for ((((x, q), d), s), ds) in x.as_chunks::<GROUP>().0.iter().zip(quants.as_chunks_mut::<GROUP>().0)
            .zip(scales).zip(sums).zip(scaled_sums)
        {
            let mut lanes = [0f32; LANES];
            for half in x.as_chunks::<LANES>().0 {
                for (m, v) in lanes.iter_mut().zip(half) {
                    let v = v.abs();
                    *m = if v > *m { v } else { *m };
                }
            }
            let mut largest = 0f32;
            for m in lanes {
                largest = if m > largest { m } else { largest };
            }
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut total = 0i32;
            for (q, v) in q.iter_mut().zip(x) {
                let i = (v * inverse).round_ties_even() as i32;
                *q = i as i8;
                total += i;
            }
            *d = largest / 127.0;
            *s = total;
            *ds = *d * total as f32;
        }
    }
}

/// Rows `first..first + rows` of the activations against one weight tile.
#[derive(Clone, Copy)]
pub(crate) struct TileJob {
    pub(crate) tile: *const u8,
    pub(crate) groups: usize,
    pub(crate) quants: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) sums: *const i32,
    pub(crate) scaled_sums: *const f32,
    pub(crate) rows: usize,
    /// rows x 16, `out_stride` apart.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// Add to what is there instead of replacing it.
    pub(crate) accumulate: bool,
    pub(crate) offset: i32,
}

/// # Safety
/// `Simd`'s contract, and `TileJob`'s pointers cover what its counts say.
#[inline(always)]
unsafe fn rows<
    S: Simd,
    const ROWS: usize,
    const BITS: u8,
    const WIDE: bool,
    const MIN: bool,
    const HALVES: bool,
>(
    job: TileJob,
    first: usize,
) {
    const { assert!(GROUP == 32) };
    // SAFETY: the caller's contract; offsets stay inside the tile and the rows.
    unsafe {
        let layout = Layout {
            bits: BITS,
            offset: 0,
            wide_scales: WIDE,
            minimum: MIN,
            halves: HALVES,
        };
        let columns = job.groups * GROUP;
        let mut y = [S::zero(); ROWS];
        for g in 0..job.groups {
            let block = job.tile.add(g * layout.block());
            let mut w = [S::load_bytes(block); 8];
            if BITS == 4 {
                for i in 0..4 {
                    let both = S::load_bytes(block.add(64 * i));
                    w[2 * i] = S::low_nibbles(both);
                    w[2 * i + 1] = S::high_nibbles(both);
                }
            } else {
                for (i, w) in w.iter_mut().enumerate() {
                    *w = S::load_bytes(block.add(64 * i));
                }
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
            let minimum = if MIN {
                scale(1 + usize::from(HALVES))
            } else {
                S::zero()
            };
            for (m, y) in y.iter_mut().enumerate() {
                let row = first + m;
                let x = job.quants.add(row * columns + g * GROUP);
                let at = row * job.groups + g;
                let d = S::splat(*job.scales.add(at));
                let dot = |acc, w, x| {
                    if BITS == 4 {
                        S::dot_nibbles(acc, w, x)
                    } else {
                        S::dot_bytes(acc, w, x)
                    }
                };
                if HALVES {
                    // Sums of each half: the offset is taken per half, so they are added up here.
                    for (half, scale) in [low, high].into_iter().enumerate() {
                        let x = x.add(16 * half);
                        let mut sum = 0i32;
                        for i in 0..16 {
                            sum += i32::from(*x.add(i));
                        }
                        let mut acc = S::splat_i(-job.offset * sum);
                        for j in 0..4 {
                            acc = dot(acc, w[4 * half + j], x.add(4 * j));
                        }
                        *y = S::fma(S::to_f32(acc), S::mul(scale, d), *y);
                    }
                } else {
                    let mut even = S::splat_i(-job.offset * *job.sums.add(at));
                    let mut odd = S::splat_i(0);
                    for j in 0..4 {
                        even = dot(even, w[2 * j], x.add(8 * j));
                        odd = dot(odd, w[2 * j + 1], x.add(8 * j + 4));
                    }
                    let acc = S::add_i(even, odd);
                    *y = S::fma(S::to_f32(acc), S::mul(low, d), *y);
                }
                if MIN {
                    *y = S::fma(minimum, S::splat(*job.scaled_sums.add(at)), *y);
                }
            }
        }
        for (m, y) in y.iter().enumerate() {
            let out = job.out.add((first + m) * job.out_stride);
            let y = if job.accumulate {
                S::add(S::load(out), *y)
            } else {
                *y
            };
            S::store(out, y);
        }
    }
}

/// # Safety
/// As `rows`.
#[inline(always)]
unsafe fn all_rows<
    S: Simd,
    const BITS: u8,
    const WIDE: bool,
    const MIN: bool,
    const HALVES: bool,
>(
    job: TileJob,
) {
    let mut first = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while job.rows - first >= 8 {
            rows::<S, 8, BITS, WIDE, MIN, HALVES>(job, first);
            first += 8;
        }
        if job.rows - first >= 4 {
            rows::<S, 4, BITS, WIDE, MIN, HALVES>(job, first);
            first += 4;
        }
        if job.rows - first >= 2 {
            rows::<S, 2, BITS, WIDE, MIN, HALVES>(job, first);
            first += 2;
        }
        if job.rows - first >= 1 {
            rows::<S, 1, BITS, WIDE, MIN, HALVES>(job, first);
        }
    }
}

instantiate!(fn on_isa<const BITS: u8, const WIDE: bool, const MIN: bool, const HALVES: bool>(job: TileJob) = all_rows);

/// Multiplies one tile.
///
/// # Safety
/// `job`'s pointers cover what its counts and `layout` say, and `isa` is available.
pub(crate) unsafe fn multiply_tile(isa: crate::Isa, layout: &Layout, job: TileJob) {
    // SAFETY: passed on.
    unsafe {
        match (
            layout.bits,
            layout.wide_scales,
            layout.minimum,
            layout.halves,
        ) {
            (4, false, false, false) => on_isa::<4, false, false, false>(isa, job),
            (4, false, true, false) => on_isa::<4, false, true, false>(isa, job),
            (4, true, true, false) => on_isa::<4, true, true, false>(isa, job),
            (8, false, false, false) => on_isa::<8, false, false, false>(isa, job),
            (8, false, true, false) => on_isa::<8, false, true, false>(isa, job),
            (8, true, true, false) => on_isa::<8, true, true, false>(isa, job),
            (8, true, false, true) => on_isa::<8, true, false, true>(isa, job),
            other => unreachable!("no source type has the layout {other:?}"),
        }
    }
}
