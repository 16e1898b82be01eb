//! The backward of each operation, in parallel. Only inputs and adapters get gradients: the base is frozen.

use crate::cpu::bf16::{PairGemm, pair_gemm};
use crate::cpu::device::CpuDevice;
use crate::cpu::gemm::{Gemm, gemm_f32};
use crate::cpu::grad::{self, AttentionShape, QueryRange};
use crate::cpu::int16::{self, Int16Rows, Panel, SparseRows};
use crate::cpu::isa::Isa;
use crate::cpu::linear::Path;
use crate::cpu::norm::Norm;
use crate::cpu::rope::{RopeTable, rope};
use crate::cpu::rows::CHUNK;
use crate::cpu::scatter::Scatter;
use crate::cpu::simd::LANES;
use crate::cpu::tensor::Tensor;
use crate::cpu::weights::unpack::pair_bf16;
use crate::cpu::weights::{GROUP, Weights};
use crate::dtype::Compute;
use kernels_common::step::{Sequence, assert_disjoint};
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// The backward of attention takes one region for a sequence of up to so many tokens.
const SHORT_SEQUENCE: usize = 1024;
/// The scores of a kv head in one region of a longer sequence: some ten milliseconds.
const SCORES_OF_PHASE: usize = 1 << 20;
/// Tiles of outputs in one panel.
const PANEL_TILES: usize = int16::PANEL / LANES;

thread_local! {
    static INT16_PANEL: RefCell<Panel> = RefCell::default();
    /// Of the calling thread: a head has many rows, and fresh memory costs as much as a pass over them.
    static INT16_ROWS: Cell<Int16Rows> = Cell::default();
    static SPARSE_ROWS: Cell<SparseRows> = Cell::default();
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PAIR_PANEL: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// One head's gradients of queries, keys and values.
    static HEAD: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The rows of a gradient in the type of its product with the weights.
enum Gradient<'a> {
    F32(&'a Tensor),
    Bf16 {
        rows: usize,
        /// bf16 pairs of outputs, `pairs` words a row.
        words: Vec<u32>,
        pairs: usize,
    },
    Int16 {
        rows: &'a Int16Rows,
        units: &'a [f32],
    },
}

impl Gradient<'_> {
    /// The product of all rows with inputs `32 * g..` of some tiles of weights, onto 32 columns at `to`, rows `to_row` apart:
    /// replacing what is there, or added to it.
    ///
    /// # Safety
    /// `to` covers the rows, and no other thread touches these columns.
    #[allow(clippy::too_many_arguments)]
    unsafe fn multiply(
        &self,
        isa: Isa,
        weights: &Weights,
        g: usize,
        tiles: Range<usize>,
        to: *mut f32,
        to_row: usize,
        add: bool,
    ) {
        let from = tiles.start * LANES;
        let n = (tiles.end * LANES).min(weights.outputs) - from;
        match self {
            Gradient::Int16 { rows, units } => INT16_PANEL.with_borrow_mut(|panel| {
                let index = tiles.start / PANEL_TILES;
                weights.backward_panel_int16(isa, g, tiles, units, panel);
                // SAFETY: the caller's contract; the panel has the shape of the tiles.
                unsafe { int16::multiply(isa, rows, index, panel, to, to_row, add) };
            }),
            Gradient::Bf16 { rows, words, pairs } => PAIR_PANEL.with_borrow_mut(|panel| {
                panel.resize(tiles.len() * LANES / 2 * GROUP, 0);
                weights.backward_panel_bf16(isa, g, tiles, panel);
                let product = PairGemm {
                    m: *rows,
                    n: GROUP,
                    pairs: n.div_ceil(2),
                    a: words[from / 2..].as_ptr(),
                    a_row: *pairs,
                    b: panel.as_ptr(),
                    b_row: GROUP,
                    out: to,
                    out_row: to_row,
                    accumulate: add,
                };
                // SAFETY: the caller's contract; the panel has the shape of the tiles.
                unsafe { pair_gemm(product) };
            }),
            Gradient::F32(dy) => PANEL.with_borrow_mut(|panel| {
                panel.resize(tiles.len() * LANES * GROUP, 0.0);
                weights.backward_panel(isa, g, tiles, panel);
                let product = Gemm {
                    m: dy.rows(),
                    n: GROUP,
                    p: n,
                    a: dy.values()[from..].as_ptr(),
                    a_row: dy.columns(),
                    a_column: 1,
                    b: panel.as_ptr(),
                    b_row: GROUP,
                    out: to,
                    out_row: to_row,
                    accumulate: add,
                };
                // SAFETY: the caller's contract; the panel has the shape of the tiles.
                unsafe { gemm_f32(isa, product) };
            }),
        }
    }
}

/// What attention read and wrote in the forward.
pub struct AttentionInputs<'a> {
    /// Rotated queries, rows x (heads * head_dim).
    pub q: &'a Tensor,
    /// Rotated keys, rows x (kv_heads * head_dim).
    pub k: &'a Tensor,
    /// Values, as the keys.
    pub v: &'a Tensor,
    /// The output, as the queries.
    pub out: &'a Tensor,
}

/// The first values of a sequence's group of query heads and of its kv head.
#[derive(Clone, Copy)]
struct HeadPlace {
    q: usize,
    kv: usize,
}

impl CpuDevice {
    /// dx = dy W, the gradient of `x W^T` by x; or added to dx. `Int8` has no backward of its own: it is that of `F32`.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn linear_backward(
        &self,
        dy: &Tensor,
        weights: &Weights,
        dx: &mut Tensor,
        add: bool,
        compute: Compute,
    ) {
        let (rows, inputs, outputs) = (dy.rows(), weights.inputs, weights.outputs);
        assert_eq!(dy.columns(), outputs);
        if add {
            assert_eq!((dx.rows(), dx.columns()), (rows, inputs));
        } else {
            dx.resize(rows, inputs);
        }
        if rows == 0 {
            return;
        }
        let isa = self.isa();
        let mut int16_rows = INT16_ROWS.take();
        let gradient = self.prepare_gradient(dy, weights, compute, &mut int16_rows);
        let out = Scatter::new(dx.values_mut());
        self.pool().run(weights.input_blocks(), &|g| {
            let first = g * GROUP;
            let columns = GROUP.min(inputs - first);
            // A short last group of inputs goes through a buffer of full vectors.
            let mut short = vec![0f32; if columns < GROUP { rows * GROUP } else { 0 }];
            let (to, to_row) = if columns < GROUP {
                (short.as_mut_ptr(), GROUP)
            } else {
                (out.pointer(first), inputs)
            };
            for tile in (0..weights.tiles()).step_by(PANEL_TILES) {
                let tiles = tile..(tile + PANEL_TILES).min(weights.tiles());
                let add = add || tile > 0;
                // SAFETY: each task writes columns first..first + 32 of every row, or its own buffer.
                unsafe { gradient.multiply(isa, weights, g, tiles, to, to_row, add) };
            }
            for (row, short) in short.chunks_exact(GROUP).enumerate() {
                // SAFETY: this task's columns.
                let to = unsafe { out.part(row * inputs + first, columns) };
                for (to, s) in to.iter_mut().zip(short) {
                    *to = if add { *to + s } else { *s };
                }
            }
        });
        INT16_ROWS.set(int16_rows);
    }

    /// Converts the rows of a gradient to the type of its product.
    fn prepare_gradient<'a>(
        &self,
        dy: &'a Tensor,
        weights: &'a Weights,
        compute: Compute,
        int16_rows: &'a mut Int16Rows,
    ) -> Gradient<'a> {
        let (isa, rows, outputs) = (self.isa(), dy.rows(), dy.columns());
        if self.path(weights, compute) == Path::Bf16 {
            let pairs = outputs.div_ceil(2);
            let mut words = vec![0u32; rows * pairs];
            let to = Scatter::new(&mut words);
            self.pool().run(rows.div_ceil(CHUNK), &|task| {
                for row in task * CHUNK..((task + 1) * CHUNK).min(rows) {
                    // SAFETY: one task a row.
                    pair_bf16(isa, dy.row(row), unsafe { to.part(row * pairs, pairs) });
                }
            });
            Gradient::Bf16 { rows, words, pairs }
        } else if compute == Compute::Bits16 {
            let units = weights.units(isa, self.pool());
            int16_rows.resize(rows, outputs);
            let to = int16_rows.writer();
            self.pool().run(to.groups(), &|group| {
                // SAFETY: one task a group.
                unsafe { to.write(isa, group, dy.values(), units) };
            });
            Gradient::Int16 {
                rows: int16_rows,
                units,
            }
        } else {
            Gradient::F32(dy)
        }
    }

    /// [`CpuDevice::linear_backward`] of a head, in place of dx: `dy` is the gradient of a softmax over the outputs, most of whose values
    /// are tiny. In `Bits16` without bf16 dot products, values below 2^-16 of the row's largest, each weighted by its output's
    /// largest weight, are replaced by the mean of all outputs.
    ///
    /// # Panics
    /// Shapes that do not fit.
    pub fn head_backward(&self, dy: &Tensor, weights: &Weights, dx: &mut Tensor, compute: Compute) {
        let (rows, inputs) = (dy.rows(), weights.inputs);
        let int16 = compute == Compute::Bits16 && self.path(weights, compute) != Path::Bf16;
        if !int16 || rows == 0 {
            return self.linear_backward(dy, weights, dx, false, compute);
        }
        assert_eq!(dy.columns(), weights.outputs);
        let (isa, pool) = (self.isa(), self.pool());
        let units = weights.units(isa, pool);
        let mean = weights.mean(isa, pool);
        let mut sparse = SPARSE_ROWS.take();
        sparse.fill(isa, pool, dy.values(), rows, units);
        dx.resize(rows, inputs);
        let out = Scatter::new(dx.values_mut());
        pool.run(weights.input_blocks(), &|g| {
            let first = g * GROUP;
            let columns = GROUP.min(inputs - first);
            SCRATCH.with_borrow_mut(|sums| {
                // Whole vectors, where the sums of many panels stay in a near cache.
                sums.clear();
                sums.resize(rows * GROUP, 0.0);
                for tile in (0..weights.tiles()).step_by(PANEL_TILES) {
                    let tiles = tile..(tile + PANEL_TILES).min(weights.tiles());
                    INT16_PANEL.with_borrow_mut(|panel| {
                        weights.backward_panel_int16(isa, g, tiles, units, panel);
                        let index = tile / PANEL_TILES;
                        // SAFETY: the buffer is this task's own.
                        unsafe { sparse.multiply(isa, index, panel, sums.as_mut_ptr(), GROUP) };
                    });
                }
                let mean = &mean[first..][..columns];
                for (row, (sums, rest)) in sums.chunks_exact(GROUP).zip(sparse.rest()).enumerate() {
                    // SAFETY: this task's columns.
                    let to = unsafe { out.part(row * inputs + first, columns) };
                    for ((to, sum), mean) in to.iter_mut().zip(sums).zip(mean) {
                        *to = rest.mul_add(*mean, *sum);
                    }
                }
            });
        });
        SPARSE_ROWS.set(sparse);
    }

    /// dx += the gradient of an RMS norm of x.
    pub fn rmsnorm_backward(&self, dy: &Tensor, x: &Tensor, norm: Norm, dx: &mut Tensor) {
        assert_eq!((dx.rows(), dx.columns()), (x.rows(), x.columns()));
        self.by_rows(dx, |row, dx| {
            grad::rmsnorm_backward(
                self.isa(),
                dy.row(row),
                x.row(row),
                norm.weight,
                norm.eps,
                dx,
            )
        });
    }

    /// The gradients of silu(gate) * up.
    pub fn swiglu_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        dgate: &mut Tensor,
        dup: &mut Tensor,
    ) {
        let (rows, columns) = (dy.rows(), dy.columns());
        dgate.resize(rows, columns);
        dup.resize(rows, columns);
        let dup = Scatter::new(dup.values_mut());
        self.by_rows(dgate, |row, dgate| {
            // SAFETY: one task a row.
            let dup = unsafe { dup.part(row * columns, columns) };
            grad::swiglu_backward(
                self.isa(),
                dy.row(row),
                gate.row(row),
                up.row(row),
                dgate,
                dup,
            );
        });
    }

    /// Rotates gradients back, in place: row i was rotated by `positions[i]`.
    pub fn rope_backward(
        &self,
        table: &RopeTable,
        positions: &[u32],
        head_dim: usize,
        dx: &mut Tensor,
    ) {
        assert_eq!(dx.rows(), positions.len());
        self.by_rows(dx, |row, dx| {
            let (cos, sin) = table.at(positions[row] as usize);
            rope(self.isa(), dx, head_dim, cos, sin, true);
        });
    }

    /// The gradients of causal attention for sequences without a past.
    #[allow(clippy::too_many_arguments)]
    pub fn attention_backward(
        &self,
        inputs: &AttentionInputs,
        sequences: &[Sequence],
        head_dim: usize,
        dout: &Tensor,
        dq: &mut Tensor,
        dk: &mut Tensor,
        dv: &mut Tensor,
    ) {
        if cfg!(debug_assertions) {
            assert_disjoint(sequences);
        }
        let (q_columns, columns) = (inputs.q.columns(), inputs.k.columns());
        let kv_heads = columns / head_dim;
        let group = q_columns / head_dim / kv_heads;
        let rows = inputs.q.rows();
        dq.resize(rows, q_columns);
        dk.resize(rows, columns);
        dv.resize(rows, columns);
        // The kernel wants each head's gradient as its own slice, so each task computes into buffers and copies out.
        let shape = |tokens| AttentionShape {
            q_stride: q_columns,
            kv_stride: columns,
            out_stride: q_columns,
            ..AttentionShape::contiguous(tokens, group, head_dim)
        };
        // One region for the queries of short sequences. Those of long ones take several, so that no region is long.
        let phases: Vec<Vec<Vec<QueryRange>>> = sequences
            .iter()
            .map(|sequence| match sequence.rows {
                0 => Vec::new(),
                1..=SHORT_SEQUENCE => {
                    vec![QueryRange::of_group(shape(sequence.rows), SHORT_SEQUENCE).collect()]
                }
                rows => QueryRange::of_group(shape(rows), SCORES_OF_PHASE / rows)
                    .map(|range| vec![range])
                    .collect(),
            })
            .collect();
        for phase in 0..phases.iter().map(Vec::len).max().unwrap_or(0) {
            let grads = [&mut *dq, &mut *dk, &mut *dv].map(|grad| Scatter::new(grad.values_mut()));
            self.pool().run(sequences.len() * kv_heads, &|task| {
                let (sequence, head) = (task / kv_heads, task % kv_heads);
                let Some(ranges) = phases[sequence].get(phase) else {
                    return;
                };
                let Sequence {
                    first,
                    rows: tokens,
                    ..
                } = sequences[sequence];
                assert!(first + tokens <= rows);
                let at = HeadPlace {
                    q: first * q_columns + head * group * head_dim,
                    kv: first * columns + head * head_dim,
                };
                // SAFETY: each task writes its own sequence's rows and head's columns.
                unsafe {
                    self.head_backward_part(
                        shape(tokens),
                        ranges,
                        phase > 0,
                        at,
                        inputs,
                        dout,
                        &grads,
                    );
                }
            });
        }
    }

    /// Adds the part of the gradients of one sequence and kv head that comes from the queries of `ranges`. The parts of K and V are
    /// added to what is there if `add`.
    ///
    /// # Safety
    /// No other thread uses the rows and columns of the sequence and the head in `grads`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn head_backward_part(
        &self,
        shape: AttentionShape,
        ranges: &[QueryRange],
        add: bool,
        at: HeadPlace,
        inputs: &AttentionInputs,
        dout: &Tensor,
        [dq, dk, dv]: &[Scatter<f32>; 3],
    ) {
        let (tokens, head_dim) = (shape.tokens, shape.head_dim);
        let width = shape.heads * head_dim;
        let of_token = |t: usize| at.kv + t * shape.kv_stride;
        SCRATCH.with_borrow_mut(|scratch| {
            HEAD.with_borrow_mut(|grads| {
                grads.resize(tokens * (width + 2 * head_dim), 0.0);
                let (gq, rest) = grads.split_at_mut(tokens * width);
                let (gk, gv) = rest.split_at_mut(tokens * head_dim);
                for (buffer, from) in [(&mut *gk, dk), (&mut *gv, dv)] {
                    if !add {
                        buffer.fill(0.0);
                        continue;
                    }
                    for (t, buffer) in buffer.chunks_exact_mut(head_dim).enumerate() {
                        // SAFETY: the caller's.
                        buffer.copy_from_slice(unsafe { from.part(of_token(t), head_dim) });
                    }
                }
                for range in ranges {
                    grad::attention_backward(
                        self.isa(),
                        shape,
                        range.clone(),
                        &inputs.q.values()[at.q..],
                        &inputs.k.values()[at.kv..],
                        &inputs.v.values()[at.kv..],
                        &inputs.out.values()[at.q..],
                        &dout.values()[at.q..],
                        gq,
                        gk,
                        gv,
                        scratch,
                    );
                    for t in range.tokens.clone() {
                        let column = range.head * head_dim;
                        let from = &gq[t * width + column..][..head_dim];
                        // SAFETY: the caller's.
                        let to = unsafe { dq.part(at.q + t * shape.q_stride + column, head_dim) };
                        to.copy_from_slice(from);
                    }
                }
                for (buffer, to) in [(&*gk, dk), (&*gv, dv)] {
                    for (t, buffer) in buffer.chunks_exact(head_dim).enumerate() {
                        // SAFETY: the caller's.
                        unsafe { to.part(of_token(t), head_dim) }.copy_from_slice(buffer);
                    }
                }
            });
        });
    }

    /// Cross entropy by rows: `logits` become gradients times `scale[row]`, `losses[row]` each row's loss.
    pub fn cross_entropy(
        &self,
        logits: &mut Tensor,
        targets: &[u32],
        scale: &[f32],
        losses: &mut [f32],
    ) {
        let rows = logits.rows();
        assert!(targets.len() == rows && scale.len() == rows && losses.len() == rows);
        let columns = logits.columns();
        let (out, values) = (Scatter::new(losses), Scatter::new(logits.values_mut()));
        self.pool().run(rows, &|row| {
            // SAFETY: one task a row.
            let (logits, loss) = unsafe { (values.part(row * columns, columns), out.part(row, 1)) };
            grad::cross_entropy(
                self.isa(),
                logits,
                &targets[row..=row],
                &scale[row..=row],
                loss,
            );
        });
    }
}
