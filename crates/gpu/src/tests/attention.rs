//! Rotation, the paged cache, and attention over it.

use super::*;
use crate::attention::HeadNorms;
use crate::rows::Norm;
use kernels_common::check::assert_near;
use kernels_common::dtype::{KvShape, KvType};
use kernels_common::reference;

/// Keys, values and queries of one sequence.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

const SHAPE: KvShape = KvShape {
    layers: 2,
    kv_heads: 2,
    head_dim: 16,
};

const HEADS: usize = 6;

fn sequence(seed: u64, tokens: usize) -> Sequence {
    let kv = tokens * SHAPE.kv_heads * SHAPE.head_dim;
    Sequence {
        q: numbers(seed, tokens * HEADS * SHAPE.head_dim)
            .iter()
            .map(|q| 4.0 * q)
            .collect(),
        k: numbers(seed + 1, kv),
        v: numbers(seed + 2, kv),
    }
}

/// Writes and attends to `rows` of each sequence, chunk after chunk; returns the outputs of each sequence.
fn attend(
    gpu: &GpuDevice,
    sequences: &[Sequence],
    chunk: usize,
    dtype: KvType,
    blocks: &[Vec<u32>],
) -> Vec<Vec<f32>> {
    let (q_row, kv_row) = (HEADS * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let most = blocks.iter().flatten().max().unwrap() + 1;
    let mut cache = gpu.kv_cache(SHAPE, most as usize, dtype).unwrap();
    let table = gpu.rope_table(SHAPE.head_dim, 1024, 1e4, None);
    let tokens: Vec<usize> = sequences.iter().map(|s| s.k.len() / kv_row).collect();
    let mut outs = vec![Vec::new(); sequences.len()];
    for past in (0..*tokens.iter().max().unwrap()).step_by(chunk) {
        let (mut spans, mut first) = (Vec::new(), 0);
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (i, s) in sequences.iter().enumerate() {
            let rows = chunk.min(tokens[i].saturating_sub(past));
            if rows == 0 {
                continue;
            }
            spans.push((
                i,
                Span {
                    first,
                    rows,
                    past,
                    blocks: &blocks[i],
                },
            ));
            first += rows;
            q.extend(&s.q[past * q_row..][..rows * q_row]);
            k.extend(&s.k[past * kv_row..][..rows * kv_row]);
            v.extend(&s.v[past * kv_row..][..rows * kv_row]);
        }
        let only: Vec<Span> = spans.iter().map(|s| s.1).collect();
        let step = step(gpu, &vec![0; first], &only, &[]);
        let (mut q, mut k) = (
            upload(gpu, first, q_row, &q),
            upload(gpu, first, kv_row, &k),
        );
        let (v, mut out) = (upload(gpu, first, kv_row, &v), gpu.tensor());
        gpu.rope_store(&table, None, &mut q, &mut k, &v, &step, &mut cache, 1);
        gpu.attention(&q, &step, &cache, 1, &mut out);
        let out = read(&out);
        for (i, span) in spans {
            outs[i].extend(&out[span.first * q_row..][..span.rows * q_row]);
        }
    }
    outs
}

/// Rotates as `rotate_half` does.
fn rotated(x: &[f32], heads: usize) -> Vec<f32> {
    let (dim, half) = (SHAPE.head_dim, SHAPE.head_dim / 2);
    let mut out = x.to_vec();
    for (i, out) in out.iter_mut().enumerate() {
        let (position, at) = (i / (heads * dim), i % dim);
        let angle = position as f64 * 1e4f64.powf(-2.0 * (at % half) as f64 / dim as f64);
        let other = if at < half { -x[i + half] } else { x[i - half] };
        *out = (f64::from(x[i]) * angle.cos() + f64::from(other) * angle.sin()) as f32;
    }
    out
}

#[test]
fn heads_are_normalised_before_they_are_rotated() {
    let Some(gpu) = gpu() else { return };
    let (rows, dim, eps) = (21, SHAPE.head_dim, 1e-5);
    let Sequence { q, k, v } = sequence(11, rows);
    let (q_weight, k_weight) = (numbers(12, dim), numbers(13, dim));
    let normed = |x: &[f32], weight: &[f32]| -> Vec<f32> {
        x.chunks(dim)
            .flat_map(|head| reference::rmsnorm(head, weight, eps))
            .map(|x| x as f32)
            .collect()
    };
    let want_q = rotated(&normed(&q, &q_weight), HEADS);
    let want_k = rotated(&normed(&k, &k_weight), SHAPE.kv_heads);
    let table = gpu.rope_table(dim, 64, 1e4, None);
    let mut cache = gpu.kv_cache(SHAPE, 2, KvType::F16).unwrap();
    let span = Span {
        first: 0,
        rows,
        past: 0,
        blocks: &[1, 0],
    };
    let step = step(gpu, &vec![0; rows], &[span], &[]);
    let (q_weight, k_weight) = (gpu.vector(&q_weight), gpu.vector(&k_weight));
    let norms = HeadNorms {
        plain_q: &upload(gpu, rows, HEADS * dim, &q),
        q_norm: Norm {
            weight: &q_weight,
            eps,
        },
        plain_k: &upload(gpu, rows, SHAPE.kv_heads * dim, &k),
        k_norm: Norm {
            weight: &k_weight,
            eps,
        },
    };
    let v = upload(gpu, rows, SHAPE.kv_heads * dim, &v);
    let (mut q, mut k) = (gpu.tensor(), gpu.tensor());
    gpu.rope_store(
        &table,
        Some(norms),
        &mut q,
        &mut k,
        &v,
        &step,
        &mut cache,
        0,
    );
    let f64s = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    assert_near("queries", &read(&q), &f64s(&want_q), 2e-6);
    assert_near("keys", &read(&k), &f64s(&want_k), 2e-6);
}

#[test]
fn attention_over_pages_matches_the_reference() {
    let Some(gpu) = gpu() else { return };
    let dim = SHAPE.head_dim;
    let sequences = [sequence(1, 5), sequence(4, 300)];
    let blocks = [vec![3], (0..20).map(|i| 40 - 2 * i).collect()];
    for (dtype, tolerance) in [(KvType::F32, 1e-5), (KvType::F16, 2e-3)] {
        // Chunks of 300 rows are walked, chunks of 60 split.
        for chunk in [300, 60] {
            let outs = attend(gpu, &sequences, chunk, dtype, &blocks);
            for (s, out) in sequences.iter().zip(outs) {
                let (q, k) = (rotated(&s.q, HEADS), rotated(&s.k, SHAPE.kv_heads));
                let head = |x: &[f32], heads: usize, h: usize| -> Vec<f32> {
                    x.chunks(dim)
                        .skip(h)
                        .step_by(heads)
                        .flatten()
                        .copied()
                        .collect()
                };
                for h in 0..HEADS {
                    let kv = h / (HEADS / SHAPE.kv_heads);
                    let (k, v) = (head(&k, SHAPE.kv_heads, kv), head(&s.v, SHAPE.kv_heads, kv));
                    let want = reference::attention(&head(&q, HEADS, h), &k, &v, 0, dim);
                    assert_near(
                        &format!("{dtype:?} head {h}"),
                        &head(&out, HEADS, h),
                        &want,
                        tolerance,
                    );
                }
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_alone_in_company_in_chunks_and_on_other_pages() {
    let Some(gpu) = gpu() else { return };
    let pages = |first: u32| (0..20).map(|i| first + 3 * i).collect::<Vec<u32>>();
    let alone = attend(gpu, &[sequence(4, 300)], 300, KvType::F16, &[pages(0)]);
    for (chunk, first) in [(1, 1), (16, 0), (37, 2)] {
        let company = [sequence(1, 200), sequence(4, 300), sequence(9, 17)];
        let others = [pages(first + 60), pages(first), pages(first + 120)];
        let outs = attend(gpu, &company, chunk, KvType::F16, &others);
        assert!(bits(&outs[1]) == bits(&alone[0]), "chunks of {chunk}");
    }
}
