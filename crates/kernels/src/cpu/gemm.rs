//! f32 products over panels: `out[m][n] (+)= sum over p, in order, of a[m][p] * b[p][n]`.
//!
//! Every output element is one chain of fused multiply-adds in the order of p, however many rows share the call: a row's
//! result does not depend on its batch. (Blocked libraries choose the order by shape, so none of them is used here.)

use crate::cpu::simd::{LANES, Simd, instantiate, unroll};
use half::{bf16, f16};

/// The type in which a panel's values are stored.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
    /// The value as f32.
    fn get(self) -> f32;
    /// Rounded to nearest.
    fn from_f32(x: f32) -> Self;
}

/// Bits of an f16.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct F16Bits(pub(crate) u16);
/// Bits of a bf16.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Bf16Bits(pub(crate) u16);

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load(p) }
    }
    fn get(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> f32 {
        x
    }
}
impl Element for F16Bits {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const F16Bits) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load_f16(p.cast()) }
    }
    fn get(self) -> f32 {
        f16::from_bits(self.0).to_f32()
    }
    fn from_f32(x: f32) -> F16Bits {
        F16Bits(f16::from_f32(x).to_bits())
    }
}
impl Element for Bf16Bits {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Bf16Bits) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load_bf16(p.cast()) }
    }
    fn get(self) -> f32 {
        bf16::from_bits(self.0).to_f32()
    }
    fn from_f32(x: f32) -> Bf16Bits {
        Bf16Bits(bf16::from_f32(x).to_bits())
    }
}

/// One product. `a` is strided both ways (so a transpose is free); `b` and `out` have contiguous columns.
#[derive(Clone, Copy)]
pub(crate) struct Gemm<E> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) p: usize,
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_column: usize,
    pub(crate) b: *const E,
    pub(crate) b_row: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_row: usize,
    /// The chain starts from what is there instead of zero.
    pub(crate) accumulate: bool,
}

/// # Safety
/// `Simd`'s contract; the pointers cover the shapes; the block at (row, column) is inside, rounded up to whole vectors.
#[inline(always)]
unsafe fn block<S: Simd, E: Element, const M: usize, const N: usize>(
    g: &Gemm<E>,
    row: usize,
    column: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let out = |m: usize, n: usize| g.out.add((row + m) * g.out_row + column + n * LANES);
        let mut acc = [[S::zero(); N]; M];
        if g.accumulate {
            unroll!(M, |m| {
                unroll!(N, |n| { acc[m][n] = S::load(out(m, n)) });
            });
        }
        let a = g.a.add(row * g.a_row);
        let b = g.b.add(column);
        for p in 0..g.p {
            let mut w = [S::zero(); N];
            unroll!(N, |n| {
                w[n] = E::load::<S>(b.add(p * g.b_row + n * LANES))
            });
            unroll!(M, |m| {
                let x = S::splat(*a.add(m * g.a_row + p * g.a_column));
                unroll!(N, |n| { acc[m][n] = S::fma(x, w[n], acc[m][n]) });
            });
        }
        unroll!(M, |m| {
            unroll!(N, |n| { S::store(out(m, n), acc[m][n]) });
        });
    }
}

/// The columns that fill no whole vector, one element at a time, in the same order.
///
/// # Safety
/// As `block`.
#[inline(always)]
unsafe fn tail<E: Element>(g: &Gemm<E>, from: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for m in 0..g.m {
            for n in from..g.n {
                let out = g.out.add(m * g.out_row + n);
                let mut acc = if g.accumulate { *out } else { 0.0 };
                for p in 0..g.p {
                    let x = *g.a.add(m * g.a_row + p * g.a_column);
                    acc = x.mul_add((*g.b.add(p * g.b_row + n)).get(), acc);
                }
                *out = acc;
            }
        }
    }
}

/// # Safety
/// As `block`.
#[inline(always)]
unsafe fn columns<S: Simd, E: Element, const N: usize>(g: &Gemm<E>, from: usize, column: usize) {
    let mut row = from;
    // SAFETY: the caller's contract.
    unsafe {
        while S::REGISTERS >= 32 && g.m - row >= 8 {
            block::<S, E, 8, N>(g, row, column);
            row += 8;
        }
        while g.m - row >= 4 {
            block::<S, E, 4, N>(g, row, column);
            row += 4;
        }
        if g.m - row >= 2 {
            block::<S, E, 2, N>(g, row, column);
            row += 2;
        }
        if g.m - row >= 1 {
            block::<S, E, 1, N>(g, row, column);
        }
    }
}

/// # Safety
/// As `block`.
#[inline(always)]
unsafe fn product<S: Simd, E: Element>(g: Gemm<E>) {
    let (mut row, mut column) = (0, 0);
    // SAFETY: the caller's contract.
    unsafe {
        // Where there are 16 registers, 6 rows of one vector, which is two of them: sums, the panel's and a factor fill 15.
        // The rows stay in the first cache for all columns; the panel is in the second.
        while S::REGISTERS < 32 && g.m - row >= 6 {
            for column in (0..g.n / LANES * LANES).step_by(LANES) {
                block::<S, E, 6, 1>(&g, row, column);
            }
            row += 6;
        }
        // One row has little to hide the latency of a chain behind: take more columns at once.
        while g.m - row < 4 && g.n - column >= 4 * LANES {
            columns::<S, E, 4>(&g, row, column);
            column += 4 * LANES;
        }
        while (S::REGISTERS >= 32 || g.m - row < 4) && g.n - column >= 2 * LANES {
            columns::<S, E, 2>(&g, row, column);
            column += 2 * LANES;
        }
        while g.n - column >= LANES {
            columns::<S, E, 1>(&g, row, column);
            column += LANES;
        }
        if g.n > column {
            tail(&g, column);
        }
    }
}

#[inline(always)]
unsafe fn product_f32<S: Simd>(g: Gemm<f32>) {
    // SAFETY: passed on.
    unsafe { product::<S, f32>(g) }
}
#[inline(always)]
unsafe fn product_f16<S: Simd>(g: Gemm<F16Bits>) {
    // SAFETY: passed on.
    unsafe { product::<S, F16Bits>(g) }
}
#[inline(always)]
unsafe fn product_bf16<S: Simd>(g: Gemm<Bf16Bits>) {
    // SAFETY: passed on.
    unsafe { product::<S, Bf16Bits>(g) }
}
instantiate!(pub(crate) fn gemm_f32(g: Gemm<f32>) = product_f32);
instantiate!(pub(crate) fn gemm_f16(g: Gemm<F16Bits>) = product_f16);
instantiate!(pub(crate) fn gemm_bf16(g: Gemm<Bf16Bits>) = product_bf16);

/// A product of slices whose shapes are checked: the safe face of [`gemm_f32`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn gemm(
    isa: crate::cpu::isa::Isa,
    (m, n, p): (usize, usize, usize),
    a: &[f32],
    (a_row, a_column): (usize, usize),
    b: &[f32],
    b_row: usize,
    out: &mut [f32],
    out_row: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(p == 0 || a.len() > (m - 1) * a_row + (p - 1) * a_column);
    assert!(p == 0 || b.len() >= (p - 1) * b_row + n);
    assert!(out.len() >= (m - 1) * out_row + n && out_row >= n);
    // SAFETY: the shapes fit the slices, asserted above.
    unsafe {
        gemm_f32(
            isa,
            Gemm {
                m,
                n,
                p,
                a: a.as_ptr(),
                a_row,
                a_column,
                b: b.as_ptr(),
                b_row,
                out: out.as_mut_ptr(),
                out_row,
                accumulate,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;

    /// A triple loop that adds in the same order gives the same bits.
    #[test]
    fn gemm_equals_a_triple_loop_on_every_isa() {
        let mut seed = 7u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for (m, n, p) in [
            (1, 16, 5),
            (3, 70, 33),
            (8, 32, 64),
            (13, 129, 40),
            (5, 7, 9),
        ] {
            let a: Vec<f32> = (0..m * p).map(|_| random()).collect();
            let b: Vec<f32> = (0..p * n).map(|_| random()).collect();
            let start: Vec<f32> = (0..m * n).map(|_| random()).collect();
            for transposed in [false, true] {
                let strides = if transposed { (1, m) } else { (p, 1) };
                let mut want = start.clone();
                for i in 0..m {
                    for j in 0..n {
                        for k in 0..p {
                            let x = a[i * strides.0 + k * strides.1];
                            want[i * n + j] = x.mul_add(b[k * n + j], want[i * n + j]);
                        }
                    }
                }
                for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                    let mut got = start.clone();
                    gemm(isa, (m, n, p), &a, strides, &b, n, &mut got, n, true);
                    assert_eq!(got, want, "{m}x{n}x{p} {}", isa.name());
                }
            }
        }
    }
}
