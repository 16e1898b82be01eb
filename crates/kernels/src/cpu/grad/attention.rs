//! The backward of causal attention for one sequence and one kv head with its group of query heads.
//!
//! Blocks of [`BLOCK`] queries, one head after the other, are multiplied with all keys that they see. With `s` for the scale:
//!
//! ```text
//!   P  = softmax(s Q K^T)        dV += P^T dO
//!   dP = dO V^T                  dK += dS^T Q
//!   dS = s P * (dP - D)          dQ  = dS K          D = rowsum(dO * O)
//! ```
//!
//! `D` is that of FlashAttention (Dao et al. 2022, appendix B.2). P and dP of one block are in scratch, so that every
//! product here is a plain matrix product; K and V are transposed once per call.

use std::ops::Range;

use crate::cpu::gemm::gemm;
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::math::{LANES, dot, exp, larger, sum_lanes};

/// Queries per block. Few, because the part of a block above the diagonal is wasted work.
const BLOCK: usize = 16;

/// The sizes of one call. Strides are in floats, from one token's row to the next.
///
/// Every slice starts at the first token's first head of the call: query head `h` of token `t` is at
/// `t * q_stride + h * head_dim`, its output at `t * out_stride + h * head_dim`, the key at `t * kv_stride`.
/// Gradients have separate strides, so that calls on several threads can each have their own buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Length of the sequence.
    pub tokens: usize,
    /// Query heads that share the kv head.
    pub heads: usize,
    /// Floats per head.
    pub head_dim: usize,
    /// Stride of `q`.
    pub q_stride: usize,
    /// Stride of `k` and `v`.
    pub kv_stride: usize,
    /// Stride of `out` and `dout`.
    pub out_stride: usize,
    /// Stride of `dq`.
    pub dq_stride: usize,
    /// Stride of `dk` and `dv`.
    pub dkv_stride: usize,
}

impl AttentionShape {
    /// All heads of a group next to each other and nothing between the rows.
    pub fn contiguous(tokens: usize, heads: usize, head_dim: usize) -> AttentionShape {
        AttentionShape {
            tokens,
            heads,
            head_dim,
            q_stride: heads * head_dim,
            kv_stride: head_dim,
            out_stride: heads * head_dim,
            dq_stride: heads * head_dim,
            dkv_stride: head_dim,
        }
    }

    /// The least length of a slice of rows of `width`, in floats.
    fn reach(&self, stride: usize, width: usize) -> usize {
        assert!(
            stride >= width,
            "stride {stride} is less than a row of {width}"
        );
        (self.tokens - 1) * stride + width
    }

    /// Length of a row of scores: whole vectors, and an odd number of them, as rows that are a power of two apart
    /// would share their places in the cache.
    fn padded(&self) -> usize {
        (self.tokens.div_ceil(LANES) | 1) * LANES
    }

    /// The factor of the scores.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Some queries of one query head of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryRange {
    /// The query head within the group.
    pub head: usize,
    /// The tokens; the first one is a multiple of [`BLOCK`].
    pub tokens: Range<usize>,
}

impl QueryRange {
    /// All queries of a group in ranges of at most `length` tokens, rounded up to whole blocks, in the order in which their gradients are
    /// added: the parts of dK and dV are then added as those of one range for each head would be, to the same bits.
    pub fn of_group(shape: AttentionShape, length: usize) -> impl Iterator<Item = QueryRange> {
        let (tokens, length) = (shape.tokens, length.max(1).next_multiple_of(BLOCK));
        (0..shape.heads).flat_map(move |head| {
            let ranges = (0..tokens).step_by(length);
            ranges.map(move |first| QueryRange {
                head,
                tokens: first..(first + length).min(tokens),
            })
        })
    }
}

/// The gradients of causal attention by some of the queries: `out = softmax(q k^T / sqrt(head_dim)) v`, token `t` seeing tokens
/// `0..=t`.
///
/// `out` is the output of the forward and `dout` its gradient. The rows of `dq` that belong to the queries are overwritten; the
/// parts of `dk` and `dv` are added. `scratch` is resized as needed, and needs no more memory once it has seen the longest sequence.
///
/// # Panics
/// A slice is shorter than the shape says, or `heads` or `head_dim` is 0.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    isa: Isa,
    shape: AttentionShape,
    queries: QueryRange,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let AttentionShape {
        head_dim,
        q_stride,
        kv_stride,
        out_stride,
        dq_stride,
        ..
    } = shape;
    if queries.tokens.is_empty() {
        return;
    }
    assert!(queries.head < shape.heads && queries.tokens.end <= shape.tokens);
    assert!(queries.tokens.start.is_multiple_of(BLOCK));
    check_lengths(shape, [q, out, dout, dq], [k, v, dk, dv]);

    let padded = shape.padded();
    scratch.resize(2 * (head_dim + BLOCK) * padded + LANES, 0.0);
    // Aligned to a cache line, so that fewer vector loads cross two lines.
    let start = scratch.as_ptr().align_offset(64).min(LANES);
    let (kt, rest) = scratch[start..].split_at_mut(head_dim * padded);
    let (vt, rest) = rest.split_at_mut(head_dim * padded);
    let (p, rest) = rest.split_at_mut(BLOCK * padded);
    let ds = &mut rest[..BLOCK * padded];
    // Later keys are not seen.
    transpose(isa, k, kv_stride, queries.tokens.end, kt, padded);
    transpose(isa, v, kv_stride, queries.tokens.end, vt, padded);

    let head = queries.head;
    for first in queries.tokens.clone().step_by(BLOCK) {
        let at = first * out_stride + head * head_dim;
        let block = Queries {
            first,
            q: &q[first * q_stride + head * head_dim..],
            out: &out[at..],
            dout: &dout[at..],
        };
        let dq = &mut dq[first * dq_stride + head * head_dim..];
        let scratch = (&*kt, &*vt, &mut *p, &mut *ds);
        block_gradients(isa, shape, block, k, scratch, dq, dk, dv);
    }
}

/// A block of queries of one head. Each slice starts at the first one.
#[derive(Clone, Copy)]
struct Queries<'a> {
    first: usize,
    q: &'a [f32],
    out: &'a [f32],
    dout: &'a [f32],
}

/// Writes a block's dQ, and adds its part of dK and dV. The scratch is K^T, V^T, and room for P and dS.
#[allow(clippy::too_many_arguments)]
fn block_gradients(
    isa: Isa,
    shape: AttentionShape,
    queries: Queries,
    k: &[f32],
    (kt, vt, p, ds): (&[f32], &[f32], &mut [f32], &mut [f32]),
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let AttentionShape {
        head_dim,
        q_stride,
        kv_stride,
        out_stride,
        dq_stride,
        dkv_stride,
        ..
    } = shape;
    let Queries {
        first,
        q,
        out,
        dout,
    } = queries;
    let padded = shape.padded();
    let rows = BLOCK.min(shape.tokens - first);
    let seen = first + rows;
    let wide = seen.next_multiple_of(LANES);
    let scores = (rows, wide, head_dim);
    let onto_keys = (seen, head_dim, rows);
    let onto_queries = (rows, head_dim, seen);

    // P = softmax(s Q K^T)    dV += P^T dO
    gemm(isa, scores, q, (q_stride, 1), kt, padded, p, padded, false);
    softmax(isa, &mut p[..rows * padded], padded, first, shape.scale());
    gemm(
        isa,
        onto_keys,
        p,
        (1, padded),
        dout,
        out_stride,
        dv,
        dkv_stride,
        true,
    );
    // dP = dO V^T    dS = s P * (dP - D)
    gemm(
        isa,
        scores,
        dout,
        (out_stride, 1),
        vt,
        padded,
        ds,
        padded,
        false,
    );
    score_gradients(isa, shape, first, &p[..rows * padded], out, dout, ds);
    // dK += dS^T Q    dQ = dS K
    gemm(
        isa,
        onto_keys,
        ds,
        (1, padded),
        q,
        q_stride,
        dk,
        dkv_stride,
        true,
    );
    gemm(
        isa,
        onto_queries,
        ds,
        (padded, 1),
        k,
        kv_stride,
        dq,
        dq_stride,
        false,
    );
}

/// # Panics
/// A slice is shorter than the shape says, or `heads` or `head_dim` is 0.
fn check_lengths(
    shape: AttentionShape,
    [q, out, dout, dq]: [&[f32]; 4],
    [k, v, dk, dv]: [&[f32]; 4],
) {
    let AttentionShape {
        heads,
        head_dim,
        q_stride,
        kv_stride,
        out_stride,
        dq_stride,
        dkv_stride,
        ..
    } = shape;
    assert!(
        heads > 0 && head_dim > 0,
        "heads {heads}, head_dim {head_dim}"
    );
    let group = heads * head_dim;
    assert!(q.len() >= shape.reach(q_stride, group), "q is too short");
    assert!(
        k.len() >= shape.reach(kv_stride, head_dim),
        "k is too short"
    );
    assert!(
        v.len() >= shape.reach(kv_stride, head_dim),
        "v is too short"
    );
    assert!(
        out.len() >= shape.reach(out_stride, group),
        "out is too short"
    );
    assert!(
        dout.len() >= shape.reach(out_stride, group),
        "dout is too short"
    );
    assert!(dq.len() >= shape.reach(dq_stride, group), "dq is too short");
    assert!(
        dk.len() >= shape.reach(dkv_stride, head_dim),
        "dk is too short"
    );
    assert!(
        dv.len() >= shape.reach(dkv_stride, head_dim),
        "dv is too short"
    );
}

per_isa! {
    /// `to[d * padded + t] = from[t * stride + d]`, and 0 for the tokens that fill the last vector.
    fn transpose(from: &[f32], stride: usize, tokens: usize, to: &mut [f32], padded: usize) {
        let head_dim = to.len() / padded;
        for first in (0..tokens).step_by(LANES) {
            let present = LANES.min(tokens - first);
            for d in 0..head_dim {
                let to = &mut to[d * padded + first..][..LANES];
                to[present..].fill(0.0);
                for (j, to) in to[..present].iter_mut().enumerate() {
                    *to = from[(first + j) * stride + d];
                }
            }
        }
    }
}

per_isa! {
    /// Rows of products become probabilities; row `i` belongs to token `first + i` and sees as many keys and itself.
    fn softmax(scores: &mut [f32], padded: usize, first: usize, scale: f32) {
        let rows = scores.len() / padded;
        let wide = (first + rows).next_multiple_of(LANES);
        for (row, scores) in scores.chunks_exact_mut(padded).enumerate() {
            let seen = first + row + 1;
            let (scores, unseen) = scores[..wide].split_at_mut(seen.next_multiple_of(LANES));
            scores[seen..].fill(f32::NEG_INFINITY);
            unseen.fill(0.0);
            let scores = scores.as_chunks_mut::<LANES>().0;
            let mut best = [f32::NEG_INFINITY; LANES];
            for scores in scores.iter() {
                for j in 0..LANES {
                    best[j] = larger(scores[j], best[j]);
                }
            }
            let max = best.iter().fold(f32::NEG_INFINITY, |best, x| larger(*x, best));
            let mut lanes = [0f32; LANES];
            for scores in scores.iter_mut() {
                for j in 0..LANES {
                    scores[j] = exp((scores[j] - max) * scale);
                    lanes[j] += scores[j];
                }
            }
            let inverse = 1.0 / sum_lanes(lanes);
            for x in scores.as_flattened_mut() {
                *x *= inverse;
            }
        }
    }
}

per_isa! {
    /// `ds` holds dP and becomes `scale * P * (dP - rowsum(dO * O))`.
    fn score_gradients(shape: AttentionShape, first: usize, p: &[f32], out: &[f32], dout: &[f32], ds: &mut [f32]) {
        let padded = shape.padded();
        let rows = p.len() / padded;
        let wide = (first + rows).next_multiple_of(LANES);
        for (row, (p, ds)) in p.chunks_exact(padded).zip(ds.chunks_exact_mut(padded)).enumerate() {
            let at = row * shape.out_stride;
            let d = dot(&out[at..at + shape.head_dim], &dout[at..at + shape.head_dim]);
            for (p, ds) in p[..wide].iter().zip(&mut ds[..wide]) {
                *ds = shape.scale() * p * (*ds - d);
            }
        }
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
