//! The backward of causal attention for one sequence and one kv head with its group of query heads.
//!
//! Queries go in blocks of [`ROWS`]. A block's scores against all keys that it sees stay in scratch, in panels of
//! `N` keys that are turned from scores into probabilities and then into score gradients:
//!
//! ```text
//!              panel 0        panel 1     ...          S = Q K^T / sqrt(d)       kt  [panel][d] of N keys
//!           ┌─ N keys ──┐  ┌─ N keys ──┐               P = softmax(S)
//!  ROWS     │           │  │        ╲  │               dV += P^T dO              dout rows
//!  queries  │           │  │  masked ╲ │               dS = P * (dO V^T - D)     vt  [panel][d] of N keys
//!           └───────────┘  └───────────┘               dK += dS^T Q, dQ += dS K  query rows, k rows
//! ```
//!
//! `D = rowsum(dO * O)`, as in FlashAttention (Dao et al. 2022, appendix B.2). The division by the softmax's sum is
//! folded into dO and D. Rows are kept in columns of `N` floats, so that a tile of `M x N` sums stays in registers.

use super::math::{LANES, dot, exp, larger, sum_lanes};
use crate::isa::{Isa, per_isa};

/// Query rows a block.
const ROWS: usize = 16;

/// The sizes of one call. Strides are in floats, from one token's row to the next.
///
/// Every slice starts at the first token's first head that the call is about: query head `h` of token `t` is at
/// `t * q_stride + h * head_dim`, its output at `t * out_stride + h * head_dim`, the key at `t * kv_stride`.
/// Gradients have strides of their own, so that calls on several threads can each have their own buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Length of the sequence.
    pub tokens: usize,
    /// Query heads that share the kv head.
    pub heads: usize,
    /// Floats a head.
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

    /// Floats that a slice of rows of `width` must at least have.
    fn reach(&self, stride: usize, width: usize) -> usize {
        assert!(
            stride >= width,
            "stride {stride} is less than a row of {width}"
        );
        (self.tokens - 1) * stride + width
    }
}

/// The gradients of causal attention: `out = softmax(q k^T / sqrt(head_dim)) v`, token `t` seeing tokens `0..=t`.
///
/// `out` is what the forward gave and `dout` its gradient. `dq`, `dk` and `dv` are overwritten where the shape
/// says that rows lie, and not between; `dk` and `dv` are summed over the group's query heads. `scratch` is resized
/// as needed, and needs no memory once it has seen the longest sequence.
///
/// # Panics
/// A slice is shorter than the shape says, or `heads` or `head_dim` is 0.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    isa: Isa,
    shape: AttentionShape,
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
    if shape.tokens == 0 {
        return;
    }
    let inputs = Inputs { q, k, v, out, dout };
    let gradients = Gradients { dq, dk, dv };
    // Tiles as large as the registers hold; both add in the same order and give the same bits.
    if isa == Isa::Avx512 {
        with_32_registers(isa, shape, inputs, gradients, scratch);
    } else {
        with_16_registers(isa, shape, inputs, gradients, scratch);
    }
}

struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    dout: &'a [f32],
}

struct Gradients<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

per_isa! {
    fn with_32_registers(shape: AttentionShape, inputs: Inputs<'_>, gradients: Gradients<'_>, scratch: &mut Vec<f32>) {
        backward::<4, 32>(shape, inputs, gradients, scratch);
    }
}

per_isa! {
    fn with_16_registers(shape: AttentionShape, inputs: Inputs<'_>, gradients: Gradients<'_>, scratch: &mut Vec<f32>) {
        backward::<4, 32>(shape, inputs, gradients, scratch);
    }
}

#[inline(always)]
fn backward<const M: usize, const N: usize>(
    shape: AttentionShape,
    inputs: Inputs<'_>,
    gradients: Gradients<'_>,
    scratch: &mut Vec<f32>,
) {
    let AttentionShape {
        tokens,
        heads,
        head_dim,
        ..
    } = shape;
    assert!(
        heads > 0 && head_dim > 0,
        "heads {heads}, head_dim {head_dim}"
    );
    let group = heads * head_dim;
    assert!(
        inputs.q.len() >= shape.reach(shape.q_stride, group),
        "q is too short"
    );
    assert!(
        inputs.k.len() >= shape.reach(shape.kv_stride, head_dim),
        "k is too short"
    );
    assert!(
        inputs.v.len() >= shape.reach(shape.kv_stride, head_dim),
        "v is too short"
    );
    assert!(
        inputs.out.len() >= shape.reach(shape.out_stride, group),
        "out is too short"
    );
    assert!(
        inputs.dout.len() >= shape.reach(shape.out_stride, group),
        "dout is too short"
    );
    assert!(
        gradients.dq.len() >= shape.reach(shape.dq_stride, group),
        "dq is too short"
    );
    assert!(
        gradients.dk.len() >= shape.reach(shape.dkv_stride, head_dim),
        "dk is too short"
    );
    assert!(
        gradients.dv.len() >= shape.reach(shape.dkv_stride, head_dim),
        "dv is too short"
    );

    let panels = tokens.div_ceil(N);
    let columns = head_dim.div_ceil(N);
    let padded = panels * N;
    let scale = 1.0 / (head_dim as f32).sqrt();

    let sizes = [
        panels * head_dim * N,
        padded * columns * N,
        ROWS * columns * N,
        head_dim * ROWS,
        padded * ROWS,
    ];
    let needed = 2 * sizes[0] + 3 * sizes[1] + 3 * sizes[2] + 2 * sizes[3] + sizes[4];
    scratch.resize(needed + LANES, 0.0);
    // To a cache line, so that no load of a register crosses two.
    let start = scratch.as_ptr().align_offset(64).min(LANES);
    let mut rest = &mut scratch[start..];
    let kt = carve::<N>(&mut rest, sizes[0]);
    let vt = carve::<N>(&mut rest, sizes[0]);
    let k_rows = carve::<N>(&mut rest, sizes[1]);
    let dk_rows = carve::<N>(&mut rest, sizes[1]);
    let dv_rows = carve::<N>(&mut rest, sizes[1]);
    let q_rows = carve::<N>(&mut rest, sizes[2]);
    let dout_rows = carve::<N>(&mut rest, sizes[2]);
    let dq_rows = carve::<N>(&mut rest, sizes[2]);
    let qt = carve::<ROWS>(&mut rest, sizes[3]);
    let doutt = carve::<ROWS>(&mut rest, sizes[3]);
    let scores = carve::<N>(&mut rest, sizes[4]);

    pack_panels(inputs.k, shape.kv_stride, tokens, head_dim, kt);
    pack_panels(inputs.v, shape.kv_stride, tokens, head_dim, vt);
    pack_rows(inputs.k, shape.kv_stride, tokens, head_dim, &[1.0], k_rows);
    dk_rows.as_flattened_mut().fill(0.0);
    dv_rows.as_flattened_mut().fill(0.0);

    for head in 0..heads {
        for first in (0..tokens).step_by(ROWS) {
            let rows = ROWS.min(tokens - first);
            let q = &inputs.q[first * shape.q_stride + head * head_dim..];
            let at = first * shape.out_stride + head * head_dim;
            let (out, dout) = (&inputs.out[at..], &inputs.dout[at..]);
            let used = (first + rows).div_ceil(N);

            pack_rows(q, shape.q_stride, rows, head_dim, &[scale; ROWS], q_rows);
            transpose(q_rows, qt);
            let scores = &mut scores[..used * ROWS];
            for (panel, (scores, kt)) in scores
                .chunks_exact_mut(ROWS)
                .zip(kt.chunks_exact(head_dim))
                .enumerate()
            {
                for (m, scores) in scores.chunks_exact_mut(M).enumerate() {
                    let tile = product::<M, N, ROWS>(qt, m * M, kt);
                    scores.copy_from_slice(&tile);
                }
                mask(scores, first, panel * N);
            }
            let inverse_sums = softmax(scores);

            let mut dots = [0f32; ROWS];
            for row in 0..rows {
                let at = row * shape.out_stride;
                let d = dot(&out[at..at + head_dim], &dout[at..at + head_dim]);
                dots[row] = d * inverse_sums[row];
            }
            pack_rows(
                dout,
                shape.out_stride,
                rows,
                head_dim,
                &inverse_sums,
                dout_rows,
            );
            transpose(dout_rows, doutt);

            dq_rows.as_flattened_mut().fill(0.0);
            for (panel, scores) in scores.chunks_exact_mut(ROWS).enumerate() {
                let keys = panel * N..(panel + 1) * N;
                for (dv, dout) in dv_rows
                    .chunks_exact_mut(padded)
                    .zip(dout_rows.chunks_exact(ROWS))
                {
                    add_transposed::<M, N>(scores, dout, &mut dv[keys.clone()]);
                }
                let vt = &vt[panel * head_dim..(panel + 1) * head_dim];
                for m in 0..ROWS / M {
                    let tile = product::<M, N, ROWS>(doutt, m * M, vt);
                    for r in 0..M {
                        let row = &mut scores[m * M + r];
                        for j in 0..N {
                            row[j] *= tile[r][j] - dots[m * M + r];
                        }
                    }
                }
                for (dk, q) in dk_rows
                    .chunks_exact_mut(padded)
                    .zip(q_rows.chunks_exact(ROWS))
                {
                    add_transposed::<M, N>(scores, q, &mut dk[keys.clone()]);
                }
                for (dq, k) in dq_rows
                    .chunks_exact_mut(ROWS)
                    .zip(k_rows.chunks_exact(padded))
                {
                    add_product::<M, N>(scores, &k[keys.clone()], dq);
                }
            }
            let dq = &mut gradients.dq[first * shape.dq_stride + head * head_dim..];
            unpack_rows(dq_rows, scale, dq, shape.dq_stride, rows, head_dim);
        }
    }
    unpack_rows(
        dk_rows,
        1.0,
        gradients.dk,
        shape.dkv_stride,
        tokens,
        head_dim,
    );
    unpack_rows(
        dv_rows,
        1.0,
        gradients.dv,
        shape.dkv_stride,
        tokens,
        head_dim,
    );
}

/// The next `size` floats of `rest`, as rows of `W`.
#[inline(always)]
fn carve<'a, const W: usize>(rest: &mut &'a mut [f32], size: usize) -> &'a mut [[f32; W]] {
    let (taken, left) = std::mem::take(rest).split_at_mut(size);
    *rest = left;
    taken.as_chunks_mut().0
}

/// Rows of keys, transposed: `to[panel * head_dim + d]` holds dimension `d` of the panel's `N` keys, 0 past the end.
#[inline(always)]
fn pack_panels<const N: usize>(
    from: &[f32],
    stride: usize,
    tokens: usize,
    head_dim: usize,
    to: &mut [[f32; N]],
) {
    for (panel, to) in to.chunks_exact_mut(head_dim).enumerate() {
        let first = panel * N;
        let present = N.min(tokens - first);
        if present < N {
            to.as_flattened_mut().fill(0.0);
        }
        for j in 0..present {
            let at = (first + j) * stride;
            for (to, x) in to.iter_mut().zip(&from[at..at + head_dim]) {
                to[j] = *x;
            }
        }
    }
}

/// Rows in columns of `N`, times `scale[row]` (or the only scale): `to[column * rows_padded + row]`, 0 past the end.
#[inline(always)]
fn pack_rows<const N: usize>(
    from: &[f32],
    stride: usize,
    rows: usize,
    head_dim: usize,
    scale: &[f32],
    to: &mut [[f32; N]],
) {
    let columns = head_dim.div_ceil(N);
    let padded = to.len() / columns;
    for (column, to) in to.chunks_exact_mut(padded).enumerate() {
        let width = N.min(head_dim - column * N);
        for row in 0..rows {
            let at = row * stride + column * N;
            let scale = if scale.len() == 1 {
                scale[0]
            } else {
                scale[row]
            };
            if width < N {
                to[row] = [0.0; N];
            }
            for (to, x) in to[row][..width].iter_mut().zip(&from[at..at + width]) {
                *to = x * scale;
            }
        }
        to[rows..].as_flattened_mut().fill(0.0);
    }
}

/// A block of packed rows, transposed: `to[d]` holds dimension `d` of the block's rows.
#[inline(always)]
fn transpose<const N: usize>(from: &[[f32; N]], to: &mut [[f32; ROWS]]) {
    for (from, to) in from.chunks_exact(ROWS).zip(to.chunks_mut(N)) {
        for (row, from) in from.iter().enumerate() {
            for (to, x) in to.iter_mut().zip(from) {
                to[row] = *x;
            }
        }
    }
}

#[inline(always)]
fn unpack_rows<const N: usize>(
    from: &[[f32; N]],
    scale: f32,
    to: &mut [f32],
    stride: usize,
    rows: usize,
    head_dim: usize,
) {
    let columns = head_dim.div_ceil(N);
    let padded = from.len() / columns;
    for (column, from) in from.chunks_exact(padded).enumerate() {
        let width = N.min(head_dim - column * N);
        for (row, from) in from[..rows].iter().enumerate() {
            let at = row * stride + column * N;
            for (to, x) in to[at..at + width].iter_mut().zip(from) {
                *to = x * scale;
            }
        }
    }
}

/// `A B` for rows `first..first + M` of A, which comes transposed: `at[i][row]`.
#[inline(always)]
fn product<const M: usize, const N: usize, const W: usize>(
    at: &[[f32; W]],
    first: usize,
    b: &[[f32; N]],
) -> [[f32; N]; M] {
    let mut sums = [[0f32; N]; M];
    for (a, b) in at.iter().zip(b) {
        let a: &[f32; M] = a[first..].first_chunk().expect("M divides W");
        for r in 0..M {
            for j in 0..N {
                sums[r][j] = a[r].mul_add(b[j], sums[r][j]);
            }
        }
    }
    sums
}

/// `c += A^T B`: A is a panel of `ROWS x N keys`, B the block's rows in one column, C the keys' rows.
#[inline(always)]
fn add_transposed<const M: usize, const N: usize>(
    a: &[[f32; N]],
    b: &[[f32; N]],
    c: &mut [[f32; N]],
) {
    for (m, c) in c.as_chunks_mut::<M>().0.iter_mut().enumerate() {
        let mut sums = *c;
        for (a, b) in a.iter().zip(b) {
            let a: &[f32; M] = a[m * M..].first_chunk().expect("M divides N");
            for r in 0..M {
                for j in 0..N {
                    sums[r][j] = a[r].mul_add(b[j], sums[r][j]);
                }
            }
        }
        *c = sums;
    }
}

/// `c += A B`: A is a panel of `ROWS x N keys`, B the keys' rows in one column, C the block's rows.
#[inline(always)]
fn add_product<const M: usize, const N: usize>(a: &[[f32; N]], b: &[[f32; N]], c: &mut [[f32; N]]) {
    let b: &[[f32; N]; N] = b.first_chunk().expect("a panel has N keys");
    for (a, c) in a.as_chunks::<M>().0.iter().zip(c.as_chunks_mut::<M>().0) {
        let mut sums = *c;
        for key in 0..N {
            for r in 0..M {
                for j in 0..N {
                    sums[r][j] = a[r][key].mul_add(b[key][j], sums[r][j]);
                }
            }
        }
        *c = sums;
    }
}

#[inline(always)]
fn add<const M: usize, const N: usize>(sums: [[f32; N]; M], c: &mut [[f32; N]; M]) {
    for r in 0..M {
        for j in 0..N {
            c[r][j] += sums[r][j];
        }
    }
}

/// Takes away the keys that come after the row's token; rows start at token `first`, keys at `first_key`.
#[inline(always)]
fn mask<const N: usize>(scores: &mut [[f32; N]], first: usize, first_key: usize) {
    if first_key + N <= first + 1 {
        return;
    }
    for (row, scores) in scores.iter_mut().enumerate() {
        for (j, score) in scores.iter_mut().enumerate() {
            if first_key + j > first + row {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Scores become `exp(score - max of the row)`; returns one over each row's sum.
#[inline(always)]
fn softmax<const N: usize>(scores: &mut [[f32; N]]) -> [f32; ROWS] {
    let mut inverse = [0f32; ROWS];
    for (row, inverse) in inverse.iter_mut().enumerate() {
        let mut best = [f32::NEG_INFINITY; N];
        for panel in scores.chunks_exact(ROWS) {
            for j in 0..N {
                best[j] = larger(panel[row][j], best[j]);
            }
        }
        let max = best
            .iter()
            .fold(f32::NEG_INFINITY, |best, x| larger(*x, best));
        let mut lanes = [0f32; LANES];
        for panel in scores.chunks_exact_mut(ROWS) {
            for chunk in panel[row].as_chunks_mut::<LANES>().0 {
                for j in 0..LANES {
                    chunk[j] = exp(chunk[j] - max);
                    lanes[j] += chunk[j];
                }
            }
        }
        *inverse = 1.0 / sum_lanes(lanes);
    }
    inverse
}

/// Causal attention as the formula reads, in `f64`: what tests compare with.
///
/// `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[tokens, head_dim]`; returns the output in the shape of `q`.
pub fn attention_forward_reference(
    tokens: usize,
    heads: usize,
    head_dim: usize,
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> Vec<f64> {
    let mut out = vec![0.0; tokens * heads * head_dim];
    for t in 0..tokens {
        for h in 0..heads {
            let at = (t * heads + h) * head_dim;
            let q = &q[at..at + head_dim];
            let scores: Vec<f64> = (0..=t)
                .map(|s| {
                    let k = &k[s * head_dim..(s + 1) * head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    dot / (head_dim as f64).sqrt()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            for (s, score) in scores.iter().enumerate() {
                let p = (score - max).exp() / sum;
                for d in 0..head_dim {
                    out[at + d] += p * v[s * head_dim + d];
                }
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
