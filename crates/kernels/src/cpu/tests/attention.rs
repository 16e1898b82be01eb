//! Attention and rotary positions over paged blocks.

use super::*;

/// Tasks write rows and blocks at the same time, so debug builds refuse sequences that share one.
#[test]
#[cfg(debug_assertions)]
fn rope_store_and_attention_panic_when_sequences_overlap() {
    let (heads, dim, rows) = (2, 16, 4);
    let d = CpuDevice::open(Some(2), Isa::Scalar).unwrap();
    let table = RopeTable::new(dim, 64, 10_000.0, None);
    let shape = KvShape {
        layers: 1,
        kv_heads: heads,
        head_dim: dim,
    };
    let sequence = |first: usize, past: usize, blocks: [u32; 2]| Sequence {
        first,
        rows: 2,
        past,
        blocks: blocks.to_vec(),
    };
    let runs = |sequences: &[Sequence]| {
        let run = || {
            let zeros = || Tensor::zeros(rows, heads * dim);
            let (mut q, mut k, v) = (zeros(), zeros(), zeros());
            let mut cache = KvCache::new(shape, 4, KvType::F32).unwrap();
            d.rope_store(&table, &mut q, &mut k, &v, sequences, &mut cache, 0);
        };
        let attend = || {
            let q = Tensor::zeros(rows, heads * dim);
            let cache = KvCache::new(shape, 4, KvType::F32).unwrap();
            d.attention(&q, sequences, &cache, 0, &mut Tensor::default());
        };
        [
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok(),
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(attend)).is_ok(),
        ]
    };
    let disjoint = [sequence(0, 0, [0, 1]), sequence(2, 0, [2, 3])];
    assert_eq!(runs(&disjoint), [true; 2]);
    let same_rows = [sequence(0, 0, [0, 1]), sequence(1, 0, [2, 3])];
    assert_eq!(runs(&same_rows), [false; 2]);
    let same_block = [sequence(0, 15, [0, 1]), sequence(2, 0, [1, 3])];
    assert_eq!(runs(&same_block), [false; 2]);
}

#[test]
fn paged_attention_matches_the_reference_for_any_chunking() {
    let (heads, kv_heads, dim, tokens) = (6, 2, 32, 75);
    let mut r = Random::new(13);
    let table = RopeTable::new(dim, 128, 10_000.0, None);
    let q = Tensor::from_vec(tokens, heads * dim, r.values(tokens * heads * dim));
    let k = Tensor::from_vec(tokens, kv_heads * dim, r.values(tokens * kv_heads * dim));
    let v = Tensor::from_vec(tokens, kv_heads * dim, r.values(tokens * kv_heads * dim));
    let blocks = [7, 2, 9, 0, 4];
    let shape = KvShape {
        layers: 1,
        kv_heads,
        head_dim: dim,
    };
    let slice = |t: &Tensor, from: usize, n: usize| {
        Tensor::from_vec(
            n,
            t.columns(),
            t.values()[from * t.columns()..(from + n) * t.columns()].to_vec(),
        )
    };
    for dtype in [KvType::F32, KvType::F16] {
        let mut first: Option<Vec<f32>> = None;
        for d in devices() {
            for chunks in [vec![75], vec![1; 75], vec![40, 3, 31, 1]] {
                let mut cache = KvCache::new(shape, 10, dtype).unwrap();
                let (mut got, mut rotated_q, mut rotated_k) = (Vec::new(), Vec::new(), Vec::new());
                let mut past = 0;
                for n in chunks {
                    let (mut q, mut k, v) =
                        (slice(&q, past, n), slice(&k, past, n), slice(&v, past, n));
                    let span = [Sequence {
                        first: 0,
                        rows: n,
                        past,
                        blocks: blocks.to_vec(),
                    }];
                    d.rope_store(&table, &mut q, &mut k, &v, &span, &mut cache, 0);
                    let mut out = Tensor::default();
                    d.attention(&q, &span, &cache, 0, &mut out);
                    got.extend_from_slice(out.values());
                    rotated_q.extend_from_slice(q.values());
                    rotated_k.extend_from_slice(k.values());
                    past += n;
                }
                let head = |values: &[f32], width: usize, h: usize| -> Vec<f32> {
                    values
                        .chunks_exact(width * dim)
                        .flat_map(|row| row[h * dim..(h + 1) * dim].to_vec())
                        .collect()
                };
                let tolerance = if dtype == KvType::F32 { 1e-5 } else { 2e-3 };
                for h in 0..heads {
                    let kv = h / (heads / kv_heads);
                    let want = reference::attention(
                        &head(&rotated_q, heads, h),
                        &head(&rotated_k, kv_heads, kv),
                        &head(v.values(), kv_heads, kv),
                        0,
                        dim,
                    );
                    let got = head(&got, heads, h);
                    assert!(
                        difference(&got, &want) < tolerance,
                        "head {h} {}",
                        d.describe()
                    );
                }
                match &first {
                    None => first = Some(got),
                    Some(first) => assert!(*first == got, "other bits on {}", d.describe()),
                }
            }
        }
    }
}

/// A long sequence takes several regions, next to a short one that takes one.
#[test]
fn attention_backward_of_a_long_sequence_equals_that_of_each_head_at_once() {
    use crate::cpu::backward::AttentionInputs;
    use crate::cpu::grad::{AttentionShape, QueryRange, attention_backward};

    let (kv_heads, group, dim, lengths) = (2, 2, 16, [1300, 37]);
    let (heads, rows) = (kv_heads * group, lengths.iter().sum());
    let r = &mut Random::new(5);
    let mut tensor =
        |heads: usize| Tensor::from_vec(rows, heads * dim, r.values(rows * heads * dim));
    let (q, k, v, out, dout) = (
        tensor(heads),
        tensor(kv_heads),
        tensor(kv_heads),
        tensor(heads),
        tensor(heads),
    );
    let sequence = |first, rows, blocks: std::ops::Range<u32>| Sequence {
        first,
        rows,
        past: 0,
        blocks: blocks.collect(),
    };
    let sequences = [sequence(0, 1300, 0..82), sequence(1300, 37, 82..85)];
    let inputs = AttentionInputs {
        q: &q,
        k: &k,
        v: &v,
        out: &out,
    };
    let device = CpuDevice::open(Some(3), Isa::best()).unwrap();
    let mut grads = [0; 3].map(|_| Tensor::default());
    let [dq, dk, dv] = &mut grads;
    device.attention_backward(&inputs, &sequences, dim, &dout, dq, dk, dv);

    for Sequence { first, rows, .. } in &sequences {
        for head in 0..kv_heads {
            // The head's columns in tensors of their own.
            let of = |tensor: &Tensor, heads: usize| -> Vec<f32> {
                let columns = head * heads * dim..(head + 1) * heads * dim;
                let rows = *first..first + rows;
                rows.flat_map(|row| tensor.row(row)[columns.clone()].to_vec())
                    .collect()
            };
            let shape = AttentionShape::contiguous(*rows, group, dim);
            let mut gq = vec![0.0; rows * group * dim];
            let (mut gk, mut gv) = (vec![0.0; rows * dim], vec![0.0; rows * dim]);
            for range in QueryRange::of_group(shape, *rows) {
                attention_backward(
                    device.isa(),
                    shape,
                    range,
                    &of(&q, group),
                    &of(&k, 1),
                    &of(&v, 1),
                    &of(&out, group),
                    &of(&dout, group),
                    &mut gq,
                    &mut gk,
                    &mut gv,
                    &mut Vec::new(),
                );
            }
            let [dq, dk, dv] = &grads;
            assert!(of(dq, group) == gq && of(dk, 1) == gk && of(dv, 1) == gv);
        }
    }
}
