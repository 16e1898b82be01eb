//! The attention's gradients against finite differences, across instruction sets, and with strides.

use super::*;
use crate::cpu::check::*;

/// Causal attention by its formula, in `f64`.
///
/// `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[tokens, head_dim]`; returns the output in the shape of `q`.
fn forward(
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

/// The inputs of one call; `spread` is the size of the scores.
struct Case {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
    dout: Vec<f32>,
}

impl Case {
    fn new(tokens: usize, heads: usize, head_dim: usize, spread: f32) -> Case {
        let n = tokens * head_dim;
        let q: Vec<f32> = numbers(1, n * heads).iter().map(|x| x * spread).collect();
        let (k, v, dout) = (numbers(2, n), numbers(3, n), numbers(4, n * heads));
        let out = forward(
            tokens,
            heads,
            head_dim,
            &to_f64(&q),
            &to_f64(&k),
            &to_f64(&v),
        );
        let out = out.iter().map(|x| *x as f32).collect();
        Case {
            shape: AttentionShape::contiguous(tokens, heads, head_dim),
            q,
            k,
            v,
            out,
            dout,
        }
    }

    fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> f64 {
        let AttentionShape {
            tokens,
            heads,
            head_dim,
            ..
        } = self.shape;
        weighted(&self.dout, &forward(tokens, heads, head_dim, q, k, v))
    }

    fn gradients(&self, isa: Isa, scratch: &mut Vec<f32>) -> [Vec<f32>; 3] {
        self.gradients_by(isa, self.shape.tokens, scratch)
    }

    /// The same in ranges of `length` queries.
    fn gradients_by(&self, isa: Isa, length: usize, scratch: &mut Vec<f32>) -> [Vec<f32>; 3] {
        let mut dq = vec![f32::NAN; self.q.len()];
        let (mut dk, mut dv) = (vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        for range in QueryRange::of_group(self.shape, length) {
            attention_backward(
                isa, self.shape, range, &self.q, &self.k, &self.v, &self.out, &self.dout, &mut dq,
                &mut dk, &mut dv, scratch,
            );
        }
        [dq, dk, dv]
    }
}

/// The gradient by its formulas, in `f64`, for sizes where finite differences take too long.
fn reference(case: &Case) -> [Vec<f64>; 3] {
    let AttentionShape {
        tokens,
        heads,
        head_dim,
        ..
    } = case.shape;
    let [q, k, v, dout] = [&case.q, &case.k, &case.v, &case.dout].map(|x| to_f64(x));
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let scale = 1.0 / (head_dim as f64).sqrt();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for t in 0..tokens {
        for h in 0..heads {
            let row = (t * heads + h) * head_dim..(t * heads + h + 1) * head_dim;
            let key = |s: usize| s * head_dim..(s + 1) * head_dim;
            let e: Vec<f64> = (0..=t)
                .map(|s| (dot(&q[row.clone()], &k[key(s)]) * scale).exp())
                .collect();
            let sum: f64 = e.iter().sum();
            let dp: Vec<f64> = (0..=t)
                .map(|s| dot(&dout[row.clone()], &v[key(s)]))
                .collect();
            let mean: f64 = e.iter().zip(&dp).map(|(e, dp)| e / sum * dp).sum();
            for s in 0..=t {
                let p = e[s] / sum;
                let ds = p * (dp[s] - mean) * scale;
                for d in 0..head_dim {
                    let (i, j) = (row.start + d, s * head_dim + d);
                    dq[i] += ds * k[j];
                    dk[j] += ds * q[i];
                    dv[j] += p * dout[i];
                }
            }
        }
    }
    [dq, dk, dv]
}

#[test]
fn gradients_match_finite_differences_of_the_forward() {
    let mut scratch = Vec::new();
    for (tokens, heads, head_dim) in [(1, 1, 4), (5, 2, 6), (19, 3, 16), (35, 1, 8), (17, 2, 20)] {
        let case = Case::new(tokens, heads, head_dim, 3.0);
        let (q, k, v) = (to_f64(&case.q), to_f64(&case.k), to_f64(&case.v));
        let expected = [
            finite_difference(&case.q, |q| case.forward(q, &k, &v)),
            finite_difference(&case.k, |k| case.forward(&q, k, &v)),
            finite_difference(&case.v, |v| case.forward(&q, &k, v)),
        ];
        let names = ["dq", "dk", "dv"];
        let largest = expected
            .iter()
            .flatten()
            .fold(0.0, |m: f64, x| m.max(x.abs()));
        for isa in isas() {
            for (i, got) in case.gradients(isa, &mut scratch).iter().enumerate() {
                for (got, expected) in got.iter().zip(&expected[i]) {
                    let error = (f64::from(*got) - expected).abs();
                    assert!(
                        error < 2e-6 * largest,
                        "{} {got} is not {expected}",
                        names[i]
                    );
                }
            }
        }
    }
}

#[test]
fn gradients_are_bit_identical_on_every_isa() {
    let mut scratch = Vec::new();
    for (tokens, heads, head_dim) in [
        (1, 3, 64),
        (33, 2, 64),
        (100, 3, 64),
        (49, 1, 80),
        (64, 1, 128),
    ] {
        let case = Case::new(tokens, heads, head_dim, 10.0);
        let scalar = case.gradients(Isa::Scalar, &mut scratch);
        assert_near(
            "gradient",
            &scalar.concat(),
            &reference(&case).concat(),
            1e-5,
        );
        for isa in isas() {
            // The contents of the scratch must not matter.
            scratch.fill(f32::NAN);
            for (got, expected) in case.gradients(isa, &mut scratch).iter().zip(&scalar) {
                assert_same_bits(isa, got, expected);
            }
        }
    }
}

#[test]
fn gradients_by_parts_of_the_queries_have_the_same_bits() {
    let (case, scratch) = (Case::new(100, 3, 16, 10.0), &mut Vec::new());
    let whole = case.gradients(Isa::best(), scratch);
    for length in [1, 16, 40, 99] {
        scratch.fill(f32::NAN);
        assert_eq!(
            case.gradients_by(Isa::best(), length, scratch),
            whole,
            "{length}"
        );
    }
}

#[test]
fn gradients_of_long_sequences_match_the_reference() {
    let case = Case::new(1030, 1, 64, 20.0);
    let gradients = case.gradients(Isa::best(), &mut Vec::new());
    for (got, expected) in gradients.iter().zip(reference(&case)) {
        assert_near("gradient", got, &expected, 1e-5);
    }
}

/// Two kv heads interleaved in one buffer, as the model has them, and nothing written between the rows.
#[test]
fn strided_rows_give_the_same_gradients_as_contiguous_rows() {
    let case = Case::new(21, 2, 16, 2.0);
    let scratch = &mut Vec::new();
    let [dq, dk, dv] = case.gradients(Isa::best(), scratch);
    let spread = |x: &[f32], width: usize, stride: usize, offset: usize| {
        let mut wide = vec![f32::NAN; x.len() / width * stride];
        for (wide, x) in wide.chunks_mut(stride).zip(x.chunks(width)) {
            wide[offset..offset + width].copy_from_slice(x);
        }
        wide
    };
    let shape = AttentionShape {
        q_stride: 70,
        kv_stride: 33,
        out_stride: 64,
        dq_stride: 65,
        dkv_stride: 40,
        ..case.shape
    };
    let (q, out, dout) = (
        spread(&case.q, 32, 70, 5),
        spread(&case.out, 32, 64, 32),
        spread(&case.dout, 32, 64, 32),
    );
    let (k, v) = (spread(&case.k, 16, 33, 17), spread(&case.v, 16, 33, 1));
    let (mut a, mut b, mut c) = (vec![7.0; 21 * 65], vec![7.0; 21 * 40], vec![7.0; 21 * 40]);
    for (rows, offset) in [(&mut b, 0), (&mut c, 24)] {
        rows.chunks_mut(40)
            .for_each(|row| row[offset..offset + 16].fill(0.0));
    }
    for range in QueryRange::of_group(shape, 21) {
        attention_backward(
            Isa::best(),
            shape,
            range,
            &q[5..],
            &k[17..],
            &v[1..],
            &out[32..],
            &dout[32..],
            &mut a[3..],
            &mut b,
            &mut c[24..],
            scratch,
        );
    }
    let gather = |wide: &[f32], width: usize, stride: usize, offset: usize| -> Vec<f32> {
        let outside = wide
            .iter()
            .enumerate()
            .filter(|(i, _)| !(offset..offset + width).contains(&(i % stride)));
        assert!(
            outside.into_iter().all(|(_, x)| *x == 7.0),
            "written between the rows"
        );
        wide.chunks(stride)
            .flat_map(|x| x[offset..offset + width].to_vec())
            .collect()
    };
    assert_eq!(gather(&a, 32, 65, 3), dq);
    assert_eq!(gather(&b, 16, 40, 0), dk);
    assert_eq!(gather(&c, 16, 40, 24), dv);
}

#[test]
fn large_scores_give_finite_gradients_and_empty_sequences_are_accepted() {
    let case = Case::new(40, 1, 16, 1e4);
    for gradient in case.gradients(Isa::best(), &mut Vec::new()) {
        assert!(gradient.iter().all(|x| x.is_finite()));
    }
    let case = Case::new(0, 1, 16, 1.0);
    case.gradients(Isa::best(), &mut Vec::new());
}

#[test]
#[should_panic(expected = "dout is too short")]
fn short_slice_panics_with_its_name() {
    let mut case = Case::new(4, 1, 16, 1.0);
    case.dout.pop();
    case.gradients(Isa::best(), &mut Vec::new());
}
