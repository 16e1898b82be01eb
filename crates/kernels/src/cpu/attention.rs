//! Causal attention over paged keys and values, decode and prefill alike.
//!
//! A line is one query head of one row. A line's scores, softmax and output are chains in the order of the tokens, in
//! blocks counted from position 0, so they do not depend on what else is in the call.

use crate::cpu::device::CpuDevice;
use crate::cpu::gemm::{Element, F16Bits};
use crate::cpu::kv::{KvCache, Pages, store};
use crate::cpu::math::{exp, sum_lanes};
use crate::cpu::rope::{RopeTable, rope};
use crate::cpu::scatter::Scatter;
use crate::cpu::simd::{LANES, Simd, instantiate, unroll};
use crate::cpu::tensor::Tensor;
use crate::rows::BLOCK_TOKENS;
use kernels_common::step::{Sequence, assert_disjoint};
use std::cell::RefCell;

const _: () = assert!(BLOCK_TOKENS == LANES);

/// The number of lines multiplied with a block of keys at once, at most.
const MAX_LINES: usize = 8;

/// Rows that one attention task takes.
const ROW_CHUNK: usize = 8;

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl CpuDevice {
    /// Rotates queries and keys by their positions, in place, and writes keys and values into their pages.
    ///
    /// # Panics
    /// Shapes, positions or block numbers out of range.
    #[allow(clippy::too_many_arguments)]
    pub fn rope_store(
        &self,
        table: &RopeTable,
        q: &mut Tensor,
        k: &mut Tensor,
        v: &Tensor,
        sequences: &[Sequence],
        cache: &mut KvCache,
        layer: usize,
    ) {
        if cfg!(debug_assertions) {
            assert_disjoint(sequences);
        }
        let (shape, blocks) = (cache.shape, cache.blocks);
        let head_dim = shape.head_dim;
        let (q_columns, columns) = (q.columns(), k.columns());
        assert!(layer < cache.layers);
        assert!(
            columns == shape.kv_heads * head_dim && v.columns() == columns && v.rows() == k.rows()
        );
        let rows: Vec<(usize, usize, usize)> = sequences
            .iter()
            .flat_map(|s| {
                (0..s.rows).map(|i| {
                    let position = s.past + i;
                    let block = s.blocks[position / BLOCK_TOKENS] as usize;
                    assert!(block < blocks, "block {block} of {blocks}");
                    (s.first + i, position, block)
                })
            })
            .collect();
        let (q, k) = (Scatter::new(q.values_mut()), Scatter::new(k.values_mut()));
        enum Raw {
            F16(*mut F16Bits),
            F32(*mut f32),
        }
        struct Pointers(Raw);
        // SAFETY: every row of the region writes its own token's place (`assert_disjoint`).
        unsafe impl Sync for Pointers {}
        let pages = Pointers(match &mut cache.pages {
            Pages::F16(pages) => Raw::F16(pages.as_mut_ptr()),
            Pages::F32(pages) => Raw::F32(pages.as_mut_ptr()),
        });
        let pages = &pages;
        let chunk = 16;
        self.pool().run(rows.len().div_ceil(chunk), &|task| {
            for &(row, position, block) in rows.iter().skip(task * chunk).take(chunk) {
                let (cos, sin) = table.at(position);
                // SAFETY: rows are distinct, so are their parts; the block number was checked.
                unsafe {
                    rope(
                        self.isa(),
                        q.part(row * q_columns, q_columns),
                        head_dim,
                        cos,
                        sin,
                        false,
                    );
                    let key = k.part(row * columns, columns);
                    rope(self.isa(), key, head_dim, cos, sin, false);
                    let token = position % BLOCK_TOKENS;
                    match pages.0 {
                        Raw::F16(to) => store(to, shape, layer, block, token, key, v.row(row)),
                        Raw::F32(to) => store(to, shape, layer, block, token, key, v.row(row)),
                    }
                }
            }
        });
    }

    /// Attention of rotated queries over the pages: `out` = softmax(q K^T / sqrt(head_dim)) V, rows x (heads * head_dim).
    ///
    /// # Panics
    /// Shapes or block numbers out of range.
    pub fn attention(
        &self,
        q: &Tensor,
        sequences: &[Sequence],
        cache: &KvCache,
        layer: usize,
        out: &mut Tensor,
    ) {
        if cfg!(debug_assertions) {
            assert_disjoint(sequences);
        }
        let shape = cache.shape;
        let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
        assert!(layer < cache.layers);
        let columns = q.columns();
        let heads = columns / head_dim;
        assert!(columns == heads * head_dim && heads.is_multiple_of(kv_heads));
        assert!(head_dim.is_multiple_of(LANES));
        out.resize(q.rows(), columns);
        let mut tasks = Vec::new();
        for span in sequences {
            assert!(span.first + span.rows <= q.rows());
            let needed = (span.past + span.rows).div_ceil(BLOCK_TOKENS);
            assert!(
                span.blocks.len() >= needed
                    && span.blocks[..needed]
                        .iter()
                        .all(|&b| (b as usize) < cache.blocks)
            );
            // Later rows have more keys, so they are scheduled first: the last task is then a short one.
            for at in (0..span.rows).step_by(ROW_CHUNK).rev() {
                tasks.extend((0..kv_heads).map(|head| (span, at, head)));
            }
        }
        let out = Scatter::new(out.values_mut());
        let group = heads / kv_heads;
        self.pool().run(tasks.len(), &|task| {
            let (span, at, kv_head) = tasks[task];
            SCORES.with_borrow_mut(|scores| {
                let rows = ROW_CHUNK.min(span.rows - at);
                let padded = (span.past + at + rows).next_multiple_of(LANES);
                scores.resize(padded * MAX_LINES, 0.0);
                let first = (span.first + at) * columns + kv_head * group * head_dim;
                for row in 0..rows {
                    out.claim(first + row * columns, group * head_dim);
                }
                let scores = scores.as_mut_ptr();
                let job = |pages: *const u8| Job {
                    q: q.values()[first..].as_ptr(),
                    out: out.pointer(first),
                    columns,
                    rows,
                    group,
                    head_dim,
                    past: span.past + at,
                    blocks: span.blocks.as_ptr(),
                    pages,
                    block: shape.block(),
                    keys: shape.keys(layer, kv_head),
                    values: shape.values(layer, kv_head),
                    scores,
                    padded,
                };
                // SAFETY: shapes and block numbers were asserted; each task writes its own rows and heads.
                unsafe {
                    match &cache.pages {
                        Pages::F16(pages) => attend_f16(self.isa(), job(pages.as_ptr().cast())),
                        Pages::F32(pages) => attend_f32(self.isa(), job(pages.as_ptr().cast())),
                    }
                }
            });
        });
    }
}

/// Some rows of one sequence, the query heads of one kv head.
#[derive(Clone, Copy)]
struct Job {
    q: *const f32,
    out: *mut f32,
    columns: usize,
    rows: usize,
    group: usize,
    head_dim: usize,
    past: usize,
    blocks: *const u32,
    pages: *const u8,
    /// From one block to the next, in values; the place of this head's keys and values in block 0.
    block: usize,
    keys: usize,
    values: usize,
    scores: *mut f32,
    padded: usize,
}

#[inline(always)]
unsafe fn attend_as_f16<S: Simd>(job: Job) {
    // SAFETY: passed on.
    unsafe { attend::<S, F16Bits>(job) }
}
#[inline(always)]
unsafe fn attend_as_f32<S: Simd>(job: Job) {
    // SAFETY: passed on.
    unsafe { attend::<S, f32>(job) }
}
instantiate!(fn attend_f16(job: Job) = attend_as_f16);
instantiate!(fn attend_f32(job: Job) = attend_as_f32);

/// # Safety
/// `Simd`'s contract; `job`'s pointers cover its shapes.
#[inline(always)]
unsafe fn attend<S: Simd, E: Element>(job: Job) {
    let lines = job.rows * job.group;
    let mut line = 0;
    // SAFETY: passed on.
    unsafe {
        if S::REGISTERS >= 32 {
            while lines - line >= 8 {
                attend_lines::<S, E, 8>(&job, line);
                line += 8;
            }
        }
        while lines - line >= 4 {
            attend_lines::<S, E, 4>(&job, line);
            line += 4;
        }
        match lines - line {
            3 => attend_lines::<S, E, 3>(&job, line),
            2 => attend_lines::<S, E, 2>(&job, line),
            1 => attend_lines::<S, E, 1>(&job, line),
            _ => {}
        }
    }
}

/// # Safety
/// As `attend`; lines `first..first + N` are there.
#[inline(always)]
unsafe fn attend_lines<S: Simd, E: Element, const N: usize>(job: &Job, first: usize) {
    // SAFETY: offsets stay inside the shapes of the job.
    unsafe {
        let place = |i: usize| {
            (first + i) / job.group * job.columns + (first + i) % job.group * job.head_dim
        };
        let keys_of = |i: usize| job.past + (first + i) / job.group + 1;
        let q: [*const f32; N] = std::array::from_fn(|i| job.q.add(place(i)));
        let page = |b: usize| {
            let block = *job.blocks.add(b) as usize;
            job.pages.cast::<E>().add(block * job.block + job.keys)
        };
        let scale = S::splat(1.0 / (job.head_dim as f32).sqrt());
        let blocks = keys_of(N - 1).div_ceil(LANES);
        let scores = |i: usize, b: usize| job.scores.add(i * job.padded + b * LANES);
        macro_rules! blocks_from {
            ($b:expr, $count:literal) => {
                let keys: [*const E; $count] = std::array::from_fn(|j| page($b + j));
                let mut acc = [[S::zero(); N]; $count];
                // The next read is elsewhere: the next keys, or at the end the first values.
                let ahead: [*const u8; $count] = std::array::from_fn(|j| {
                    if $b + $count + j < blocks {
                        page($b + $count + j).cast()
                    } else {
                        page(j.min(blocks - 1))
                            .wrapping_add(job.values - job.keys)
                            .cast()
                    }
                });
                for d in 0..job.head_dim {
                    unroll!($count, |j| {
                        S::prefetch(ahead[j].wrapping_add(d * LANES * size_of::<E>()));
                        let k = E::load::<S>(keys[j].add(d * LANES));
                        unroll!(N, |i| {
                            acc[j][i] = S::fma(S::splat(*q[i].add(d)), k, acc[j][i])
                        });
                    });
                }
                unroll!($count, |j| {
                    unroll!(N, |i| {
                        S::store(scores(i, $b + j), S::mul(acc[j][i], scale))
                    });
                });
            };
        }
        // Enough chains to hide the latency of one: with few lines, several blocks of keys are taken at once.
        let mut b = 0;
        while blocks - b >= 4 && N <= 4 && S::REGISTERS >= 32 {
            blocks_from!(b, 4);
            b += 4;
        }
        while blocks - b >= 2 && S::REGISTERS >= 32 {
            blocks_from!(b, 2);
            b += 2;
        }
        while blocks - b >= 1 {
            blocks_from!(b, 1);
            b += 1;
        }
        let mut total = [0f32; N];
        for (i, total) in total.iter_mut().enumerate() {
            let n = keys_of(i);
            let scores = std::slice::from_raw_parts_mut(
                job.scores.add(i * job.padded),
                n.next_multiple_of(LANES),
            );
            *total = softmax(scores, n);
        }
        let shared = keys_of(0);
        let mut d = 0;
        // As many dimensions at once as there are registers for their sums.
        while N <= S::REGISTERS / 8 && job.head_dim - d >= 4 * LANES {
            weigh::<S, E, N, 4>(job, first, d, shared, total);
            d += 4 * LANES;
        }
        while N <= S::REGISTERS / 4 && job.head_dim - d >= 2 * LANES {
            weigh::<S, E, N, 2>(job, first, d, shared, total);
            d += 2 * LANES;
        }
        while d < job.head_dim {
            weigh::<S, E, N, 1>(job, first, d, shared, total);
            d += LANES;
        }
    }
}

/// Scores to unnormalised weights, in place; beyond `n` they become 0. Returns the sum.
#[inline(always)]
fn softmax(scores: &mut [f32], n: usize) -> f32 {
    scores[n..].fill(f32::NEG_INFINITY);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in scores.as_chunks::<LANES>().0 {
        for (m, s) in lanes.iter_mut().zip(chunk) {
            *m = if *s > *m { *s } else { *m };
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        for (a, b) in low.iter_mut().zip(high) {
            *a = if *b > *a { *b } else { *a };
        }
        width /= 2;
    }
    let largest = lanes[0];
    let mut sums = [0f32; LANES];
    for chunk in scores.as_chunks_mut::<LANES>().0 {
        for (sum, s) in sums.iter_mut().zip(chunk) {
            *s = exp(*s - largest);
            *sum += *s;
        }
    }
    sum_lanes(sums)
}

/// Dimensions `d..d + 16 * V` of the outputs of N lines.
///
/// # Safety
/// As `attend`.
#[inline(always)]
unsafe fn weigh<S: Simd, E: Element, const N: usize, const V: usize>(
    job: &Job,
    first: usize,
    d: usize,
    shared: usize,
    total: [f32; N],
) {
    // SAFETY: offsets stay inside the shapes of the job.
    unsafe {
        let value = |t: usize| {
            let block = *job.blocks.add(t / LANES) as usize;
            let at = block * job.block + job.values + t % LANES * job.head_dim + d;
            job.pages.cast::<E>().add(at)
        };
        let mut acc = [[S::zero(); V]; N];
        let add = |acc: &mut [S::F; V], i: usize, t: usize, v: &[S::F; V]| {
            let p = S::splat(*job.scores.add(i * job.padded + t));
            unroll!(V, |j| { acc[j] = S::fma(p, v[j], acc[j]) });
        };
        for t in 0..shared {
            let from = value(t);
            let ahead = value((t + 2 * LANES).min(shared - 1)).cast::<u8>();
            for line in 0..(V * LANES * size_of::<E>()).div_ceil(64) {
                S::prefetch(ahead.wrapping_add(64 * line));
            }
            let v: [S::F; V] = std::array::from_fn(|j| E::load::<S>(from.add(j * LANES)));
            unroll!(N, |i| { add(&mut acc[i], i, t, &v) });
        }
        unroll!(N, |i| {
            let acc = &mut acc[i];
            for t in shared..job.past + (first + i) / job.group + 1 {
                let from = value(t);
                let v: [S::F; V] = std::array::from_fn(|j| E::load::<S>(from.add(j * LANES)));
                add(acc, i, t, &v);
            }
            let out = job.out.add(
                (first + i) / job.group * job.columns + (first + i) % job.group * job.head_dim + d,
            );
            let inverse = S::splat(1.0 / total[i]);
            unroll!(V, |j| {
                S::store(out.add(j * LANES), S::mul(acc[j], inverse))
            });
        });
    }
}
