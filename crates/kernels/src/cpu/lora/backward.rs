//! The backward of adapters, in f32.

use super::dropout::Dropout;
use crate::cpu::device::CpuDevice;
use crate::cpu::gemm::{Gemm, gemm, gemm_f32};
use crate::cpu::rows::CHUNK;
use crate::cpu::scatter::Scatter;
use crate::cpu::tensor::Tensor;
use crate::rows::Run;
use std::cell::RefCell;
use std::ops::Range;

/// Columns of a gradient that a task takes.
const COLUMNS: usize = 64;
/// Rows whose part of a gradient is added up at a time: [`COLUMNS`] of them fit the first cache.
const ROWS: usize = 64;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// One adapter's pair for one linear layer while it trains, with the gradients it gathers.
pub struct LoraGrad<'a> {
    /// rank x inputs.
    pub a: &'a [f32],
    /// outputs x rank.
    pub b: &'a [f32],
    /// Rank.
    pub rank: usize,
    /// The scale of the forward.
    pub scale: f32,
    /// Gradient of `a`, added to.
    pub da: &'a mut [f32],
    /// Gradient of `b`, added to.
    pub db: &'a mut [f32],
}

/// The rows of one adapter.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    /// The first one's index in the batch.
    first: usize,
    count: usize,
    /// Where something is dropped.
    dropout: Option<Dropout<'a>>,
}

impl CpuDevice {
    /// The backward of the adapters next to a product: gradients of each pair, and dx.
    ///
    /// With m for the mask of `dropout`, whose values are 0 or 1 / (1 - share), or 1 without dropout:
    ///
    /// ```text
    /// h = (m * x) A^T    y = scale * h B^T
    /// dh = scale * dy B    dB += scale * dy^T h    dA += dh^T (m * x)    dx += m * (dh A)
    /// ```
    ///
    /// `runs[i]` names the rows of one adapter; its `slots` say which of `pairs` (the scale is the pair's).
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn lora_backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        runs: &[Run],
        pairs: &mut [Option<&mut LoraGrad>],
        dropout: Option<Dropout>,
        dx: &mut Tensor,
    ) {
        let (inputs, outputs) = (x.columns(), dy.columns());
        assert_eq!(x.rows(), dy.rows());
        assert_eq!((dx.rows(), dx.columns()), (x.rows(), inputs));
        assert!(dropout.is_none_or(|dropout| dropout.rows.len() == x.rows()));
        for run in runs {
            let of_run = run.first..run.first + run.rows;
            let part = |columns: usize| run.first * columns..of_run.end * columns;
            let rows = Rows {
                x: &x.values()[part(inputs)],
                dy: &dy.values()[part(outputs)],
                first: run.first,
                count: run.rows,
                dropout: dropout.filter(|dropout| dropout.drops(of_run.clone())),
            };
            for &(slot, _) in &run.slots {
                if let Some(pair) = &mut pairs[slot as usize] {
                    let dx = &mut dx.values_mut()[part(inputs)];
                    self.pair_backward(rows, (inputs, outputs), pair, dx);
                }
            }
        }
    }

    fn pair_backward(
        &self,
        rows: Rows,
        (inputs, outputs): (usize, usize),
        pair: &mut LoraGrad,
        dx: &mut [f32],
    ) {
        let (isa, r, n) = (self.isa(), pair.rank, rows.count);
        assert!(pair.a.len() == r * inputs && pair.da.len() == r * inputs);
        assert!(pair.b.len() == r * outputs && pair.db.len() == r * outputs);
        // A^T, so that lanes run over the rank; h and dh are rows x rank.
        let mut at = vec![0f32; r * inputs];
        for (i, row) in pair.a.chunks_exact(inputs).enumerate() {
            for (k, v) in row.iter().enumerate() {
                at[k * r + i] = *v;
            }
        }
        let (mut h, mut dh) = (vec![0f32; n * r], vec![0f32; n * r]);
        {
            let (h, dh, dx) = (
                Scatter::new(&mut h),
                Scatter::new(&mut dh),
                Scatter::new(dx),
            );
            let (a, b, scale) = (pair.a, pair.b, pair.scale);
            self.pool().run(n.div_ceil(CHUNK), &|task| {
                let from = task * CHUNK;
                let m = CHUNK.min(n - from);
                // SAFETY: each task takes its own rows.
                let (h, dh, dx) = unsafe {
                    (
                        h.part(from * r, m * r),
                        dh.part(from * r, m * r),
                        dx.part(from * inputs, m * inputs),
                    )
                };
                let x = &rows.x[from * inputs..][..m * inputs];
                let dy = &rows.dy[from * outputs..];
                gemm(isa, (m, r, outputs), dy, (outputs, 1), b, r, dh, r, false);
                for v in dh.iter_mut() {
                    *v *= scale;
                }
                let through_a = |x: &[f32], h: &mut [f32]| {
                    gemm(isa, (m, r, inputs), x, (inputs, 1), &at, r, h, r, false);
                };
                let back = |dx: &mut [f32], add: bool| {
                    gemm(isa, (m, inputs, r), dh, (r, 1), a, inputs, dx, inputs, add);
                };
                match rows.dropout {
                    None => {
                        through_a(x, h);
                        back(dx, true);
                    }
                    Some(dropout) => SCRATCH.with_borrow_mut(|masked| {
                        masked.clear();
                        masked.extend_from_slice(x);
                        dropout.apply_rows(isa, rows.first + from, inputs, masked);
                        through_a(masked, h);
                        back(masked, false);
                        dropout.apply_rows(isa, rows.first + from, inputs, masked);
                        for (dx, d) in dx.iter_mut().zip(masked.iter()) {
                            *dx += d;
                        }
                    }),
                }
                for v in h.iter_mut() {
                    *v *= scale;
                }
            });
        }
        self.add_pair_gradients(rows, (inputs, outputs), pair, &h, &dh);
    }

    /// Adds dB and dA; `h` and `dh` are rows x rank.
    fn add_pair_gradients(
        &self,
        rows: Rows,
        (inputs, outputs): (usize, usize),
        pair: &mut LoraGrad,
        h: &[f32],
        dh: &[f32],
    ) {
        let (isa, r, n) = (self.isa(), pair.rank, rows.count);
        // dB by blocks of outputs, dA by blocks of inputs: each element is one chain over the rows, in order. A block's columns
        // are gathered first: read in place, rows would evict each other from the cache.
        let (da, db) = (Scatter::new(pair.da), Scatter::new(pair.db));
        let db_tasks = outputs.div_ceil(COLUMNS);
        self.pool()
            .run(db_tasks + inputs.div_ceil(COLUMNS), &|task| {
                SCRATCH.with_borrow_mut(|columns| {
                    for first in (0..n).step_by(ROWS) {
                        let m = ROWS.min(n - first);
                        if task < db_tasks {
                            let from = task * COLUMNS;
                            let width = COLUMNS.min(outputs - from);
                            let dy = &rows.dy[first * outputs..][..m * outputs];
                            gather(dy, outputs, from..from + width, columns);
                            // SAFETY: each task takes its own outputs.
                            let db = unsafe { db.part(from * r, width * r) };
                            let h = &h[first * r..];
                            gemm(isa, (width, r, m), columns, (1, width), h, r, db, r, true);
                            continue;
                        }
                        let from = (task - db_tasks) * COLUMNS;
                        let width = COLUMNS.min(inputs - from);
                        let x = &rows.x[first * inputs..][..m * inputs];
                        gather(x, inputs, from..from + width, columns);
                        if let Some(dropout) = rows.dropout {
                            for (i, columns) in columns.chunks_exact_mut(width).enumerate() {
                                dropout.apply(isa, rows.first + first + i, from, columns);
                            }
                        }
                        // SAFETY: each task writes its own columns of da's rows; the pointer covers r rows of `inputs`.
                        unsafe {
                            gemm_f32(
                                isa,
                                Gemm {
                                    m: r,
                                    n: width,
                                    p: m,
                                    a: dh[first * r..].as_ptr(),
                                    a_row: 1,
                                    a_column: r,
                                    b: columns.as_ptr(),
                                    b_row: width,
                                    out: da.pointer(from),
                                    out_row: inputs,
                                    accumulate: true,
                                },
                            );
                        }
                    }
                });
            });
    }
}

/// Some columns of rows of `width` values, row after row.
fn gather(x: &[f32], width: usize, columns: Range<usize>, out: &mut Vec<f32>) {
    out.clear();
    for row in x.chunks_exact(width) {
        out.extend_from_slice(&row[columns.clone()]);
    }
}
