//! Weight tiles against all rows, in each path's type.

use crate::cpu::bf16::{PairGemm, pair_gemm};
use crate::cpu::gemm::{Bf16Bits, Element, F16Bits, Gemm, gemm_bf16, gemm_f16, gemm_f32};
use crate::cpu::int8::{CHUNK, Int8Rows, TileJob, multiply_tile};
use crate::cpu::simd::LANES;
use crate::cpu::tensor::Tensor;
use crate::cpu::weights::{Data, GROUP, Layout, TileBytes as _, Weights};
use std::cell::RefCell;

thread_local! {
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PAIR_PANEL: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// The columns of the output that some tiles are about, in all rows.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) pointer: *mut f32,
    pub(super) row: usize,
    pub(super) columns: usize,
    pub(super) accumulate: bool,
}

/// # Safety
/// `out` covers rows x columns and the tiles are the weights'.
pub(super) unsafe fn int8_tiles(
    isa: crate::cpu::isa::Isa,
    weights: &Weights,
    x: &Int8Rows,
    tiles: std::ops::Range<usize>,
    out: Target,
) {
    let Data::Quantized { layout, bytes } = &weights.data else {
        unreachable!("int8 products are of quantized weights")
    };
    let tile_bytes = layout.block() * weights.groups();
    // Chunks outside: a chunk of rows stays in the first cache while the tiles pass.
    for rows in x.chunks() {
        for (i, tile) in tiles.clone().enumerate() {
            let valid = (out.columns - i * LANES).min(LANES);
            // SAFETY: the caller's contract; a short last tile goes through a buffer of whole vectors.
            unsafe {
                let to = out.pointer.add(rows.first * out.row + i * LANES);
                let job = TileJob {
                    tile: bytes[tile * tile_bytes..].as_ptr(),
                    rows,
                    out: to,
                    out_stride: out.row,
                    accumulate: out.accumulate,
                };
                if valid == LANES {
                    multiply_tile(isa, layout, job);
                    continue;
                }
                multiply_short_tile(isa, layout, job, valid);
            }
        }
    }
}

/// The last tile, of which only `valid` outputs exist. Out of line: its buffer would be cleared for every tile otherwise.
///
/// # Safety
/// As `multiply_tile`, for `valid` columns of `job.out`.
#[cold]
unsafe fn multiply_short_tile(
    isa: crate::cpu::isa::Isa,
    layout: &Layout,
    job: TileJob,
    valid: usize,
) {
    let mut y = [0f32; CHUNK * LANES];
    // SAFETY: the caller's contract; the buffer holds a whole chunk.
    unsafe {
        let whole = TileJob {
            out: y.as_mut_ptr(),
            out_stride: LANES,
            accumulate: false,
            ..job
        };
        multiply_tile(isa, layout, whole);
        for (m, y) in y.chunks_exact(LANES).take(job.rows.count).enumerate() {
            for (j, y) in y[..valid].iter().enumerate() {
                let to = job.out.add(m * job.out_stride + j);
                *to = if job.accumulate { *to + y } else { *y };
            }
        }
    }
}

/// # Safety
/// As `int8_tiles`.
pub(super) unsafe fn f32_tiles(
    isa: crate::cpu::isa::Isa,
    weights: &Weights,
    x: &Tensor,
    tiles: std::ops::Range<usize>,
    out: Target,
) {
    let inputs = weights.inputs;
    let product = |columns: usize, to: *mut f32| Gemm {
        m: x.rows(),
        n: columns,
        p: inputs,
        a: x.values().as_ptr(),
        a_row: inputs,
        a_column: 1,
        b: std::ptr::null::<f32>(),
        b_row: LANES,
        out: to,
        out_row: out.row,
        // The chain of a row starts at zero, as in the other paths, unless it starts from the residual.
        accumulate: out.accumulate,
    };
    // SAFETY: the caller's contract.
    unsafe {
        if weights.is_quantized() {
            PANEL.with_borrow_mut(|panel| {
                panel.resize(inputs * 2 * LANES, 0.0);
                for (i, tile) in tiles.enumerate() {
                    weights.forward_panel(isa, tile, &mut panel[i * LANES..], 2 * LANES);
                }
                let mut g = product(out.columns, out.pointer);
                g.b = panel.as_ptr();
                g.b_row = 2 * LANES;
                gemm_f32(isa, g);
            });
            return;
        }
        for (i, tile) in tiles.enumerate() {
            let g = product(
                (out.columns - i * LANES).min(LANES),
                out.pointer.add(i * LANES),
            );
            let at = tile * inputs * LANES;
            match &weights.data {
                Data::F32(v) => gemm_f32(
                    isa,
                    Gemm {
                        b: v[at..].as_ptr(),
                        ..g
                    },
                ),
                Data::F16(v) => gemm_f16(isa, typed(g, v[at..].as_ptr().cast::<F16Bits>())),
                Data::Bf16(v) => gemm_bf16(isa, typed(g, v[at..].as_ptr().cast::<Bf16Bits>())),
                Data::Quantized { .. } => unreachable!("handled above"),
            }
        }
    }
}

/// The same product with `b` of another type.
fn typed<E: Element>(g: Gemm<f32>, b: *const E) -> Gemm<E> {
    Gemm {
        m: g.m,
        n: g.n,
        p: g.p,
        a: g.a,
        a_row: g.a_row,
        a_column: g.a_column,
        b,
        b_row: g.b_row,
        out: g.out,
        out_row: g.out_row,
        accumulate: g.accumulate,
    }
}

/// # Safety
/// As `int8_tiles`; the machine has the bf16 dot product.
pub(super) unsafe fn bf16_tiles(
    isa: crate::cpu::isa::Isa,
    weights: &Weights,
    x: &[u32],
    rows: usize,
    tiles: std::ops::Range<usize>,
    out: Target,
) {
    let pairs = weights.inputs.div_ceil(2);
    // SAFETY: the caller's contract; short tiles go through a buffer of whole vectors.
    unsafe {
        PAIR_PANEL.with_borrow_mut(|panel| {
            let width = tiles.len() * LANES;
            panel.resize(weights.input_blocks() * GROUP / 2 * 2 * LANES, 0);
            for (i, tile) in tiles.enumerate() {
                weights.forward_panel_bf16(isa, tile, &mut panel[i * LANES..], 2 * LANES);
            }
            let g = |out: *mut f32, out_row: usize, accumulate: bool| PairGemm {
                m: rows,
                n: width,
                pairs,
                a: x.as_ptr(),
                a_row: pairs,
                b: panel.as_ptr(),
                b_row: 2 * LANES,
                out,
                out_row,
                accumulate,
            };
            if out.columns == width {
                pair_gemm(g(out.pointer, out.row, out.accumulate));
            } else {
                let mut y = vec![0f32; rows * width];
                pair_gemm(g(y.as_mut_ptr(), width, false));
                for (m, y) in y.chunks_exact(width).enumerate() {
                    for (j, y) in y[..out.columns].iter().enumerate() {
                        let to = out.pointer.add(m * out.row + j);
                        *to = if out.accumulate { *to + y } else { *y };
                    }
                }
            }
        });
    }
}
