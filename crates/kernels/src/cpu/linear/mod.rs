//! The linear layers of a step: several projections of the same rows in one fork-join, mixed LoRA included.
//!
//! ```text
//! region 1, by rows:     normalise, round to the path's type, shrink LoRA (h = scale * x A^T)
//! region 2, by outputs:  a weight tile against all rows, then h B^T onto the same outputs
//! ```

mod tiles;

use crate::cpu::device::CpuDevice;
use crate::cpu::int8::Int8Rows;
use crate::cpu::isa::Isa;
use crate::cpu::lora::{ExpandTo, Expansion, Lora, LoraPack, expand, expand_dot};
use crate::cpu::norm::{Norm, rmsnorm_row};
use crate::cpu::scatter::Scatter;
use crate::cpu::simd::LANES;
use crate::cpu::tensor::Tensor;
use crate::cpu::weights::Weights;
use crate::cpu::weights::unpack::pair_bf16;
use crate::dtype::Compute;
use crate::rows::Run;
use std::ops::Range;
use tiles::{Target, bf16_tiles, f32_tiles, int8_tiles};

/// One projection of the shared rows.
pub struct Projection<'a> {
    /// Frozen weights.
    pub weights: &'a Weights,
    /// Added to every row before LoRA.
    pub bias: Option<&'a [f32]>,
    /// Adapters.
    pub lora: Lora<'a>,
    /// rows x outputs.
    pub out: &'a mut Tensor,
    /// Add to `out` (the residual stream) rather than replace it.
    pub accumulate: bool,
}

/// Buffers that a caller keeps from step to step.
#[derive(Default)]
pub(crate) struct Workspace {
    int8: Int8Rows,
    pairs: Vec<u32>,
    shrunk: Vec<Vec<f32>>,
}

/// The most rows of a task in region 1. With few rows, tasks are smaller, so that every thread has one.
const ROW_CHUNK: usize = 16;
/// From so many rows on, two tiles take longer than it takes to begin a task.
const MANY_ROWS: usize = 128;

/// The layout of a projection's shrunk rows: row-major, `entries` slots of `padded` values a row.
#[derive(Clone, Copy)]
struct Shrunk {
    padded: usize,
    entries: usize,
}

impl Shrunk {
    fn of(lora: &Lora) -> Shrunk {
        Shrunk {
            padded: lora
                .packs
                .iter()
                .flatten()
                .map(|p| p.padded)
                .max()
                .unwrap_or(0),
            entries: lora.runs.iter().map(|r| r.slots.len()).max().unwrap_or(0),
        }
    }
    fn stride(self) -> usize {
        self.padded * self.entries
    }
}

impl CpuDevice {
    /// Projects the rows of `x`: for each projection, `out (+)= norm(x) W^T + bias + sum of scale * (norm(x) A^T) B^T`.
    ///
    /// # Panics
    /// Shapes that do not fit, or a run past the rows.
    pub fn linear(
        &self,
        workspace: &mut Workspace,
        normed: &mut Tensor,
        x: &Tensor,
        norm: Option<Norm>,
        projections: &mut [Projection],
        compute: Compute,
    ) {
        let (rows, columns) = (x.rows(), x.columns());
        for p in projections.iter_mut() {
            assert_eq!(p.weights.inputs, columns);
            let outputs = p.weights.outputs;
            if p.accumulate {
                assert_eq!((p.out.rows(), p.out.columns()), (rows, outputs));
            } else {
                p.out.resize(rows, outputs);
            }
            assert!(p.lora.dropout.is_none_or(|d| d.rows.len() == rows));
            for run in p.lora.runs {
                assert!(run.first + run.rows <= rows);
                for &(slot, _) in &run.slots {
                    if let Some(pack) = p.lora.packs[slot as usize] {
                        assert_eq!((pack.inputs, pack.outputs), (columns, outputs));
                    }
                }
            }
        }
        if rows == 0 {
            return;
        }
        let paths = projections.iter().map(|p| self.path(p.weights, compute));
        // Where activations are rounded anyway, LoRA may round them too. Dropout masks apply to unrounded activations.
        let lora_dot = compute != Compute::F32
            && self.bf16_dot()
            && projections.iter().all(|p| p.lora.dropout.is_none());
        let arithmetic = Arithmetic {
            paths: paths.collect(),
            lora_dot,
        };
        self.prepare(workspace, normed, x, norm, projections, &arithmetic);
        let x = if norm.is_some() { &*normed } else { x };
        self.multiply(workspace, x, projections, &arithmetic);
    }

    pub(crate) fn path(&self, weights: &Weights, compute: Compute) -> Path {
        match compute {
            Compute::Int8 if weights.is_quantized() => Path::Int8,
            Compute::Bits16 if self.bf16_dot() => Path::Bf16,
            _ => Path::F32,
        }
    }

    /// Region 1, by rows.
    fn prepare(
        &self,
        workspace: &mut Workspace,
        normed: &mut Tensor,
        x: &Tensor,
        norm: Option<Norm>,
        projections: &[Projection],
        arithmetic: &Arithmetic,
    ) {
        let Arithmetic { paths, lora_dot } = arithmetic;
        let (rows, columns, isa) = (x.rows(), x.columns(), self.isa());
        let int8 = paths.contains(&Path::Int8);
        let paired = |p: &Projection| p.lora.packs.iter().flatten().any(|pack| pack.is_paired());
        let bf16 = paths.contains(&Path::Bf16) || (*lora_dot && projections.iter().any(paired));
        let pairs = columns.div_ceil(2);
        if norm.is_some() {
            normed.resize(rows, columns);
        }
        if int8 {
            workspace.int8.resize(rows, columns);
        }
        if bf16 {
            workspace.pairs.resize(rows * pairs, 0);
        }
        let shapes = workspace.resize_shrunk(rows, projections);
        let lora = shapes.iter().any(|s| s.stride() > 0);
        let runs = shared_runs(projections);
        if norm.is_none() && !int8 && !bf16 && !lora {
            return;
        }
        let normed = Scatter::new(normed.values_mut());
        let quantized = workspace.int8.writer();
        let words = Scatter::new(&mut workspace.pairs);
        let shrunk: Vec<Scatter<f32>> = workspace
            .shrunk
            .iter_mut()
            .map(|h| Scatter::new(h))
            .collect();
        let chunk = rows.div_ceil(self.pool().threads()).min(ROW_CHUNK);
        self.pool().run(rows.div_ceil(chunk), &|task| {
            let first = task * chunk;
            let count = chunk.min(rows - first);
            let mut source = &x.values()[first * columns..][..count * columns];
            // SAFETY (this block): each task writes the parts of its own rows only.
            unsafe {
                if let Some(norm) = norm {
                    let out = normed.part(first * columns, count * columns);
                    for (out, x) in out
                        .chunks_exact_mut(columns)
                        .zip(source.chunks_exact(columns))
                    {
                        rmsnorm_row(isa, x, norm.weight, norm.eps, out);
                    }
                    source = out;
                }
                for (i, x) in source.chunks_exact(columns).enumerate() {
                    let row = first + i;
                    if int8 {
                        quantized.write(isa, row, x);
                    }
                    if bf16 {
                        pair_bf16(isa, x, words.part(row * pairs, pairs));
                    }
                }
                // All projections of one run, then the next run: the A of one adapter are adjacent.
                for (i, from, n) in overlapping(runs, first, count) {
                    for ((p, shape), h) in projections.iter().zip(&shapes).zip(&shrunk) {
                        if let Some(run) = p.lora.runs.get(i) {
                            let rows = RunRows {
                                from,
                                n,
                                x: &source[(from - first) * columns..][..n * columns],
                                words: (*lora_dot && bf16)
                                    .then(|| words.pointer(from * pairs).cast_const()),
                            };
                            shrink_run(isa, rows, p, run, *shape, h);
                        }
                    }
                }
            }
        });
    }

    /// Region 2, by outputs.
    fn multiply(
        &self,
        workspace: &Workspace,
        x: &Tensor,
        projections: &mut [Projection],
        arithmetic: &Arithmetic,
    ) {
        let rows = x.rows();
        let parts: Vec<Part> = projections
            .iter_mut()
            .zip(&arithmetic.paths)
            .zip(&workspace.shrunk)
            .map(|((p, &path), shrunk)| Part {
                weights: p.weights,
                bias: p.bias,
                expansions: [true, false].map(|paired| {
                    expansions(&p.lora, shrunk, |pack| {
                        (arithmetic.lora_dot && pack.is_paired()) == paired
                    })
                }),
                out: Scatter::new(p.out.values_mut()),
                accumulate: p.accumulate,
                path,
            })
            .collect();
        // Tasks small enough to even out, large enough to stream; panels of the float paths are two tiles wide.
        let total: usize = parts.iter().map(|p| p.weights.tiles()).sum();
        let per_task = if rows >= MANY_ROWS {
            2
        } else {
            total
                .div_ceil(self.pool().threads() * 6)
                .clamp(2, 64)
                .next_multiple_of(2)
        };
        let tasks: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(i, p)| {
                (0..p.weights.tiles())
                    .step_by(per_task)
                    .map(move |t| (i, t))
            })
            .collect();
        let isa = self.isa();
        self.pool().run(tasks.len(), &|task| {
            let (i, first) = tasks[task];
            let part = &parts[i];
            let last = (first + per_task).min(part.weights.tiles());
            for tile in (first..last).step_by(2) {
                // SAFETY: tasks write disjoint columns; pointers cover the shapes asserted in `linear`.
                unsafe { part.multiply_tiles(isa, workspace, x, tile..(tile + 2).min(last)) };
            }
        });
    }
}

impl Workspace {
    /// Makes room for the rows shrunk through each projection's adapters; the layouts of the rows.
    fn resize_shrunk(&mut self, rows: usize, projections: &[Projection]) -> Vec<Shrunk> {
        self.shrunk
            .resize_with(projections.len().max(self.shrunk.len()), Vec::new);
        let shapes: Vec<Shrunk> = projections.iter().map(|p| Shrunk::of(&p.lora)).collect();
        for (h, shape) in self.shrunk.iter_mut().zip(&shapes) {
            h.resize(rows * shape.stride(), 0.0);
        }
        shapes
    }
}

/// The runs of a step, which its projections share; those without adapters have none.
fn shared_runs<'a>(projections: &[Projection<'a>]) -> &'a [Run] {
    let runs = projections
        .iter()
        .map(|p| p.lora.runs)
        .max_by_key(|runs| runs.len());
    let runs = runs.unwrap_or_default();
    assert!(
        projections
            .iter()
            .all(|p| p.lora.runs.is_empty() || p.lora.runs == runs)
    );
    runs
}

/// Rows of one run that a task shrinks.
struct RunRows<'a> {
    /// The first one's index in the batch.
    from: usize,
    n: usize,
    x: &'a [f32],
    /// The same rows in pairs of bf16, where adapters multiply these.
    words: Option<*const u32>,
}

/// h = scale * x A^T for the adapters of one run, into the rows of `h`.
///
/// # Safety
/// No other task touches these rows of `h`; the shapes are those that `linear` asserted.
unsafe fn shrink_run(
    isa: Isa,
    rows: RunRows,
    p: &Projection,
    run: &Run,
    shape: Shrunk,
    h: &Scatter<f32>,
) {
    let RunRows { from, n, x, words } = rows;
    let mut masked = Vec::new();
    let dropout = p.lora.dropout.filter(|d| d.drops(from..from + n));
    if let Some(dropout) = dropout {
        masked.extend_from_slice(x);
        dropout.apply_rows(isa, from, p.weights.inputs, &mut masked);
    }
    let x = if dropout.is_some() { &masked } else { x };
    for (e, &(slot, scale)) in run.slots.iter().enumerate() {
        let Some(pack) = p.lora.packs[slot as usize] else {
            continue;
        };
        let h = h.pointer(from * shape.stride() + e * shape.padded);
        // SAFETY: the caller's contract.
        unsafe {
            match words {
                Some(words) if pack.is_paired() => {
                    pack.shrink_dot(words, n, scale, h, shape.stride());
                }
                _ => pack.shrink(isa, x.as_ptr(), n, scale, h, shape.stride()),
            }
        }
    }
}

/// One projection while tasks multiply its tiles.
struct Part<'a> {
    weights: &'a Weights,
    bias: Option<&'a [f32]>,
    /// Those by bf16 pairs, and the others.
    expansions: [Vec<Expansion<'a>>; 2],
    out: Scatter<'a, f32>,
    accumulate: bool,
    path: Path,
}

// SAFETY: the pointers of `expansions` are to shrunk rows, which nobody writes in this region.
unsafe impl Sync for Part<'_> {}

impl Part<'_> {
    /// The products of some tiles with all rows, their bias, and the adapters' products with B.
    ///
    /// # Safety
    /// No other task touches the tiles' columns of `out`; the shapes are those that `linear` asserted.
    unsafe fn multiply_tiles(
        &self,
        isa: Isa,
        workspace: &Workspace,
        x: &Tensor,
        tiles: Range<usize>,
    ) {
        let (rows, outputs) = (x.rows(), self.weights.outputs);
        let columns = tiles.start * LANES..(tiles.end * LANES).min(outputs);
        let out = Target {
            pointer: self.out.pointer(columns.start),
            row: outputs,
            columns: columns.len(),
            accumulate: self.accumulate,
        };
        for run in self.expansions.iter().flatten() {
            run.pack.prefetch(isa, columns.clone());
        }
        // SAFETY: the caller's contract.
        unsafe {
            match self.path {
                Path::Int8 => int8_tiles(isa, self.weights, &workspace.int8, tiles, out),
                Path::F32 => f32_tiles(isa, self.weights, x, tiles, out),
                Path::Bf16 => bf16_tiles(isa, self.weights, &workspace.pairs, rows, tiles, out),
            }
            if let Some(bias) = self.bias {
                for m in 0..rows {
                    for (j, b) in bias[columns.clone()].iter().enumerate() {
                        *out.pointer.add(m * outputs + j) += b;
                    }
                }
            }
            let to = ExpandTo {
                out: out.pointer,
                out_row: outputs,
                first_column: columns.start,
                columns: columns.len(),
            };
            let [paired, others] = &self.expansions;
            if !paired.is_empty() {
                expand_dot(paired, to);
            }
            if !others.is_empty() {
                expand(isa, others, to);
            }
        }
    }
}

/// How the projections of one call are multiplied.
struct Arithmetic {
    /// The path of each projection's weights.
    paths: Vec<Path>,
    /// Whether adapters multiply pairs of bf16.
    lora_dot: bool,
}

/// The type in which one projection is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Int8,
    F32,
    Bf16,
}

/// The runs of `lora` whose pack `takes` accepts, slot by slot in their order, with the place of their rows in `shrunk`.
fn expansions<'a>(
    lora: &Lora<'a>,
    shrunk: &'a [f32],
    takes: impl Fn(&LoraPack) -> bool,
) -> Vec<Expansion<'a>> {
    let shape = Shrunk::of(lora);
    let mut expansions = Vec::new();
    for run in lora.runs {
        for (e, &(slot, _)) in run.slots.iter().enumerate() {
            if let Some(pack) = lora.packs[slot as usize].filter(|pack| takes(pack)) {
                let at = run.first * shape.stride() + e * shape.padded;
                expansions.push(Expansion {
                    pack,
                    h: shrunk[at..].as_ptr(),
                    h_row: shape.stride(),
                    first: run.first,
                    rows: run.rows,
                });
            }
        }
    }
    expansions
}

/// The runs that have some of the rows `first..first + count`: (index, first row, rows).
fn overlapping(
    runs: &[Run],
    first: usize,
    count: usize,
) -> impl Iterator<Item = (usize, usize, usize)> {
    runs.iter().enumerate().filter_map(move |(i, run)| {
        let from = run.first.max(first);
        let to = (run.first + run.rows).min(first + count);
        (from < to).then(|| (i, from, to - from))
    })
}
