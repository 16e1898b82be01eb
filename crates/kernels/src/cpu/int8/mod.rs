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

mod activations;

use crate::cpu::simd::{Simd, instantiate, unroll};
use crate::cpu::weights::{GROUP, Layout, TileBytes as _};
use activations::LEAST_OFFSET;
pub(crate) use activations::{CHUNK, ChunkRows, Int8Rows};

/// How far ahead of the products weights are prefetched, in bytes.
const AHEAD: usize = 4096;

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

/// One group of a tile, and the cells of the first row of a chunk's rows that are multiplied with it.
#[derive(Clone, Copy)]
struct Group {
    block: *const u8,
    quants: *const i8,
    scales: *const f32,
    corrections: *const i32,
    scaled_sums: *const f32,
}

/// [`GROUP`] / 8 pairs of a tile's vectors.
const PAIRS: usize = GROUP / 8;

impl Group {
    /// Group `g` of the tile and of rows `first..`.
    ///
    /// # Safety
    /// The group is of the tile and of the rows.
    #[inline(always)]
    unsafe fn of(job: &TileJob, layout: &Layout, g: usize, first: usize) -> Group {
        let x = job.rows;
        let cell = g * x.count + first;
        // SAFETY: the caller's contract.
        unsafe {
            Group {
                block: job.tile.add(g * layout.block()),
                quants: x.quants.add(cell * GROUP),
                scales: x.scales.add(cell),
                corrections: x.corrections.add(cell),
                scaled_sums: x.scaled_sums.add(cell),
            }
        }
    }

    /// Steps 2i and 2i + 1 of the tile.
    ///
    /// # Safety
    /// `Simd`'s contract; `i` is below [`PAIRS`].
    #[inline(always)]
    unsafe fn pair<S: Simd, const BITS: u8>(self, i: usize) -> (S::B, S::B) {
        // SAFETY: the caller's contract.
        unsafe {
            if BITS == 4 {
                let both = S::load_bytes(self.block.add(64 * i));
                (S::low_nibbles(both), S::high_nibbles(both))
            } else {
                (
                    S::load_bytes(self.block.add(128 * i)),
                    S::load_bytes(self.block.add(128 * i + 64)),
                )
            }
        }
    }

    /// All steps of the tile.
    ///
    /// # Safety
    /// `Simd`'s contract.
    #[inline(always)]
    unsafe fn pairs<S: Simd, const BITS: u8>(self) -> [(S::B, S::B); PAIRS] {
        // SAFETY: the caller's contract.
        unsafe {
            [
                self.pair::<S, BITS>(0),
                self.pair::<S, BITS>(1),
                self.pair::<S, BITS>(2),
                self.pair::<S, BITS>(3),
            ]
        }
    }

    /// Adds step `step` of row `m`, whose weights are `w`.
    ///
    /// # Safety
    /// `Simd`'s contract; the row and the step exist.
    #[inline(always)]
    unsafe fn dot<S: Simd, const BITS: u8>(
        self,
        acc: S::I,
        w: S::B,
        m: usize,
        step: usize,
    ) -> S::I {
        // SAFETY: the caller's contract.
        unsafe {
            let x = self.quants.add(m * GROUP + 4 * step);
            if BITS == 4 {
                S::dot_nibbles(acc, w, x)
            } else {
                S::dot_bytes(acc, w, x)
            }
        }
    }

    /// What the sum of row `m` starts from: the weights' offset times the sum of its integers, negated.
    ///
    /// # Safety
    /// `Simd`'s contract; the row exists.
    #[inline(always)]
    unsafe fn start<S: Simd, const OFFSET: i32>(self, m: usize) -> S::I {
        // SAFETY: the caller's contract.
        unsafe {
            match OFFSET {
                0 => S::splat_i(0),
                LEAST_OFFSET => S::splat_i(*self.corrections.add(m)),
                _ => S::splat_i(*self.corrections.add(m) * (OFFSET / LEAST_OFFSET)),
            }
        }
    }

    /// `y` and the integers `acc` of row `m` times the scales of the weights and of the row.
    ///
    /// # Safety
    /// `Simd`'s contract; the row exists.
    #[inline(always)]
    unsafe fn scaled<S: Simd>(self, y: S::F, acc: S::I, scale: S::F, m: usize) -> S::F {
        // SAFETY: the caller's contract.
        unsafe {
            S::fma(
                S::to_f32(acc),
                S::mul(scale, S::splat(*self.scales.add(m))),
                y,
            )
        }
    }

    /// Adds the group's products to `y`, for weights whose half-groups have their own scales, and minima if MIN.
    ///
    /// # Safety
    /// `Simd`'s contract; ROWS rows exist.
    #[inline(always)]
    unsafe fn add_halves<
        S: Simd,
        const ROWS: usize,
        const BITS: u8,
        const OFFSET: i32,
        const MIN: bool,
    >(
        self,
        y: &mut [S::F; ROWS],
        scales: [S::F; 2],
        minimum: impl Fn(usize) -> S::F,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            // The offset is taken from each half, so the sums of the halves are added up here.
            let w = self.pairs::<S, BITS>();
            for (m, y) in y.iter_mut().enumerate() {
                for (half, scale) in scales.into_iter().enumerate() {
                    let x = self.quants.add(m * GROUP + 16 * half);
                    let mut sum = 0i32;
                    for i in 0..16 {
                        sum += i32::from(*x.add(i));
                    }
                    let mut acc = S::splat_i(-OFFSET * sum);
                    unroll!(2, |i| {
                        let (even, odd) = w[2 * half + i];
                        acc = self.dot::<S, BITS>(acc, even, m, 4 * half + 2 * i);
                        acc = self.dot::<S, BITS>(acc, odd, m, 4 * half + 2 * i + 1);
                    });
                    *y = self.scaled::<S>(*y, acc, scale, m);
                    if MIN {
                        let sum = S::splat(*self.scales.add(m) * sum as f32);
                        *y = S::fma(minimum(half), sum, *y);
                    }
                }
            }
        }
    }

    /// Adds the group's products to `y` where there are 32 registers: the tile's vectors stay in them, rows pass by.
    ///
    /// # Safety
    /// `Simd`'s contract; ROWS rows exist.
    #[inline(always)]
    unsafe fn add_by_rows<S: Simd, const ROWS: usize, const BITS: u8, const OFFSET: i32>(
        self,
        y: &mut [S::F; ROWS],
        scale: S::F,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            // Sums of integers are exact in any order, so a few rows may have two chains each to hide a product's latency, and
            // many rows one.
            let w = self.pairs::<S, BITS>();
            unroll!(ROWS, |m| {
                let mut acc = self.start::<S, OFFSET>(m);
                if ROWS < 4 {
                    let mut odd = S::splat_i(0);
                    unroll!(4, |i| {
                        acc = self.dot::<S, BITS>(acc, w[i].0, m, 2 * i);
                        odd = self.dot::<S, BITS>(odd, w[i].1, m, 2 * i + 1);
                    });
                    acc = S::add_i(acc, odd);
                } else {
                    unroll!(4, |i| {
                        acc = self.dot::<S, BITS>(acc, w[i].0, m, 2 * i);
                        acc = self.dot::<S, BITS>(acc, w[i].1, m, 2 * i + 1);
                    });
                }
                y[m] = self.scaled::<S>(y[m], acc, scale, m);
            });
        }
    }

    /// The sums of `pairs` pairs of the tile's vectors, 4 bits each, with all rows: the rows' sums stay in registers, the vectors
    /// pass by. `nibbles` makes the vectors of a pair.
    ///
    /// # Safety
    /// `Simd`'s contract; ROWS rows exist.
    #[inline(always)]
    unsafe fn sums_of_nibbles<S: Simd, const ROWS: usize>(
        self,
        pairs: usize,
        nibbles: impl Fn(usize) -> (S::B, S::B),
    ) -> [S::P; ROWS] {
        // SAFETY: the caller's contract.
        unsafe {
            let mut acc = [S::zero_group(); ROWS];
            for i in 0..pairs {
                let (even, odd) = nibbles(i);
                let x = self.quants.add(8 * i);
                unroll!(ROWS, |m| {
                    acc[m] = S::dot_group(acc[m], even, x.add(m * GROUP));
                    acc[m] = S::dot_group(acc[m], odd, x.add(m * GROUP + 4));
                });
            }
            acc
        }
    }

    /// Adds the group's products to `y` where there are few registers.
    ///
    /// # Safety
    /// `Simd`'s contract; ROWS rows exist.
    #[inline(always)]
    unsafe fn add_by_pairs<S: Simd, const ROWS: usize, const BITS: u8, const OFFSET: i32>(
        self,
        y: &mut [S::F; ROWS],
        scale: S::F,
        pairs: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            if BITS == 4 {
                let acc = self.sums_of_nibbles::<S, ROWS>(pairs, |i| self.pair::<S, BITS>(i));
                unroll!(ROWS, |m| {
                    let acc = S::add_group(self.start::<S, OFFSET>(m), acc[m]);
                    y[m] = self.scaled::<S>(y[m], acc, scale, m)
                });
                return;
            }
            // By nibbles, which need no widening within a group: first the low ones, then the high ones.
            let acc = self.sums_of_nibbles::<S, ROWS>(pairs, |i| {
                let (even, odd) = self.pair::<S, BITS>(i);
                (S::low_nibbles(even), S::low_nibbles(odd))
            });
            let mut low = [S::splat_i(0); ROWS];
            unroll!(ROWS, |m| {
                low[m] = S::add_group(self.start::<S, OFFSET>(m), acc[m])
            });
            let acc = self.sums_of_nibbles::<S, ROWS>(pairs, |i| {
                let (even, odd) = self.pair::<S, BITS>(i);
                (S::high_nibbles(even), S::high_nibbles(odd))
            });
            unroll!(ROWS, |m| {
                let mut high = S::add_group(S::splat_i(0), acc[m]);
                unroll!(4, |_doubled| { high = S::add_i(high, high) });
                y[m] = self.scaled::<S>(y[m], S::add_i(low[m], high), scale, m)
            });
        }
    }
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
        // 4; of several rows, kept from the compiler, which would write the loop out and hold a whole group's vectors, most of
        // them on the stack.
        let pairs = if ROWS < 4 || S::REGISTERS >= 32 {
            PAIRS
        } else {
            std::hint::black_box(PAIRS)
        };
        let mut y = [S::zero(); ROWS];
        for g in 0..job.rows.groups {
            let group = Group::of(&job, &layout, g, first);
            // Weights are stored in the order in which they are read, across tiles too; the hardware's prefetcher stops at
            // the end of every page.
            for line in 0..layout.block().div_ceil(64) {
                S::prefetch(group.block.wrapping_add(AHEAD + 64 * line));
            }
            let scale = |i: usize| {
                let p = group.block.add(layout.quants() + i * layout.scale_bytes());
                if WIDE {
                    S::load(p.cast())
                } else {
                    S::load_f16(p.cast())
                }
            };
            let minimum = |half: usize| scale(layout.scales() + half);
            if HALVES {
                let scales = [scale(0), scale(1)];
                group.add_halves::<S, ROWS, BITS, OFFSET, MIN>(&mut y, scales, minimum);
                continue;
            }
            if S::REGISTERS >= 32 {
                group.add_by_rows::<S, ROWS, BITS, OFFSET>(&mut y, scale(0));
            } else {
                group.add_by_pairs::<S, ROWS, BITS, OFFSET>(&mut y, scale(0), pairs);
            }
            if MIN {
                let minimum = minimum(0);
                unroll!(ROWS, |m| {
                    y[m] = S::fma(minimum, S::splat(*group.scaled_sums.add(m)), y[m])
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
