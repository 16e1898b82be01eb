//! Every operation on every instruction set of this machine against `reference`, and the promise that a row's result does
//! not depend on the other rows of its batch.

mod attention;
mod candidates;
mod lora;

use crate::cpu::check::{Random, TYPES, random_bytes};
use crate::cpu::device::CpuDevice;
use crate::cpu::isa::Isa;
use crate::cpu::kv::KvCache;
use crate::cpu::linear::{Projection, Workspace};
use crate::cpu::lora::{Dropout, Lora, LoraArena, LoraGrad, LoraPack};
use crate::cpu::norm::Norm;
use crate::cpu::reference;
use crate::cpu::rope::RopeTable;
use crate::cpu::tensor::Tensor;
use crate::cpu::weights::Weights;
use crate::dtype::{Compute, KvShape, KvType, LoraType, SourceType};
use crate::rows::{RowDropout, Run};
use kernels_common::step::Sequence;

fn devices() -> Vec<CpuDevice> {
    Isa::ALL
        .into_iter()
        .filter(|i| i.available())
        .flat_map(|isa| [1, 3].map(|threads| CpuDevice::open(Some(threads), isa).unwrap()))
        .collect()
}

fn rows_of(w: &Weights) -> Vec<f32> {
    let mut out = vec![0f32; w.outputs * w.inputs];
    for (i, row) in out.chunks_exact_mut(w.inputs).enumerate() {
        w.row(i, row);
    }
    out
}

fn project(d: &CpuDevice, x: &Tensor, w: &Weights, lora: Lora, compute: Compute) -> Tensor {
    let mut out = Tensor::default();
    let projection = Projection {
        weights: w,
        bias: None,
        lora,
        out: &mut out,
        accumulate: false,
    };
    d.linear(
        &mut Workspace::default(),
        &mut Tensor::default(),
        x,
        None,
        &mut [projection],
        compute,
    );
    out
}

/// Largest difference, relative to the largest value.
fn difference(got: &[f32], want: &[f64]) -> f64 {
    let largest = want.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    got.iter()
        .zip(want)
        .map(|(g, w)| (f64::from(*g) - w).abs() / largest)
        .fold(
            0.0,
            |m, v| if v.is_nan() { f64::NAN } else { f64::max(m, v) },
        )
}

#[test]
fn products_match_the_reference_in_every_type() {
    for source in TYPES {
        for (outputs, inputs) in [(48, 256), (21, 512)] {
            let mut r = Random::new(source as u64 + outputs as u64);
            let bytes = random_bytes(source, outputs * inputs, &mut r);
            let rows = 11;
            let x = Tensor::from_vec(rows, inputs, r.values(rows * inputs));
            let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
            for d in devices() {
                let w = d.pack(source, &bytes, (outputs, inputs), None).unwrap();
                let want = reference::linear(x.values(), &rows_of(&w), rows, outputs, inputs);
                let float = project(&d, &x, &w, Lora::NONE, Compute::F32);
                let int8 = project(&d, &x, &w, Lora::NONE, Compute::Int8);
                let bf16 = project(&d, &x, &w, Lora::NONE, Compute::Bits16);
                let name = format!("{source:?} {outputs}x{inputs} on {}", d.describe());
                assert!(difference(float.values(), &want) < 2e-6, "float {name}");
                assert!(difference(int8.values(), &want) < 1.5e-2, "int8 {name}");
                assert!(difference(bf16.values(), &want) < 1.5e-2, "bf16 {name}");
                let both = (float.values().to_vec(), int8.values().to_vec());
                match &first {
                    None => first = Some(both),
                    Some(first) => assert!(*first == both, "other bits: {name}"),
                }
            }
        }
    }
}

#[test]
fn int8_products_are_exact_in_their_own_arithmetic() {
    // The int8 path step by step: quantize the row, dequantize it, multiply in f64.
    let mut r = Random::new(5);
    let (outputs, inputs) = (32, 256);
    for source in TYPES.into_iter().filter(|t| t.block_values() > 1) {
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let x = Tensor::from_vec(2, inputs, r.values(2 * inputs));
        let mut rounded = Vec::new();
        for group in x.values().chunks_exact(32) {
            let largest = group.iter().fold(0f32, |m, v| m.max(v.abs()));
            rounded.extend(
                group
                    .iter()
                    .map(|v| (v * (127.0 / largest)).round_ties_even() * (largest / 127.0)),
            );
        }
        for d in devices() {
            let w = d.pack(source, &bytes, (outputs, inputs), None).unwrap();
            let want = reference::linear(&rounded, &rows_of(&w), 2, outputs, inputs);
            let got = project(&d, &x, &w, Lora::NONE, Compute::Int8);
            assert!(
                difference(got.values(), &want) < 3e-6,
                "{source:?} {}",
                d.describe()
            );
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let mut r = Random::new(9);
    let (outputs, inputs, rank) = (80, 256, 8);
    for source in [SourceType::Q4_1, SourceType::Q6_K, SourceType::F16] {
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let packs: Vec<LoraPack> = [LoraType::Bf16, LoraType::F32, LoraType::F16]
            .into_iter()
            .map(|t| {
                LoraPack::new(
                    &LoraArena::default(),
                    &r.values(rank * inputs),
                    &r.values(rank * outputs),
                    (outputs, inputs, rank),
                    1.0,
                    t,
                )
                .unwrap()
            })
            .collect();
        let packs: Vec<Option<&LoraPack>> = packs.iter().map(Some).chain([None]).collect();
        let rows = 37;
        let x = Tensor::from_vec(rows, inputs, r.values(rows * inputs));
        let run = |first, rows, slots: &[(u32, f32)]| Run {
            first,
            rows,
            slots: slots.to_vec(),
        };
        let runs = [
            run(0, 1, &[(0, 2.0)]),
            run(1, 20, &[(1, 0.5), (2, 1.5)]),
            run(25, 3, &[(3, 1.0)]),
            run(30, 7, &[(2, 1.0)]),
        ];
        for d in devices() {
            let w = d.pack(source, &bytes, (outputs, inputs), None).unwrap();
            let lora = Lora {
                runs: &runs,
                packs: &packs,
                dropout: None,
            };
            for compute in [Compute::Int8, Compute::F32, Compute::Bits16] {
                let all = project(&d, &x, &w, lora, compute);
                for row in 0..rows {
                    let alone: Vec<Run> = runs
                        .iter()
                        .filter(|n| (n.first..n.first + n.rows).contains(&row))
                        .map(|n| run(0, 1, &n.slots))
                        .collect();
                    let one = Tensor::from_vec(1, inputs, x.row(row).to_vec());
                    let lora = Lora {
                        runs: &alone,
                        packs: &packs,
                        dropout: None,
                    };
                    let got = project(&d, &one, &w, lora, compute);
                    assert_eq!(
                        got.values(),
                        all.row(row),
                        "row {row} {compute:?} {}",
                        d.describe()
                    );
                }
            }
        }
    }
}

#[test]
fn norms_match_the_reference() {
    let mut r = Random::new(17);
    for columns in [64, 70] {
        let x = Tensor::from_vec(5, columns, r.values(5 * columns));
        let weight = r.values(columns);
        for d in devices() {
            let mut out = Tensor::default();
            let norm = Norm {
                weight: &weight,
                eps: 1e-5,
            };
            d.rmsnorm(&x, norm, &mut out);
            for row in 0..5 {
                let want = reference::rmsnorm(x.row(row), &weight, 1e-5);
                assert!(difference(out.row(row), &want) < 1e-6);
            }
        }
    }
}

#[test]
fn head_backward_equals_linear_backward_and_does_not_depend_on_the_batch() {
    let mut r = Random::new(23);
    let rows = 14;
    for (source, outputs, inputs) in [
        (SourceType::F32, 2100, 72),
        (SourceType::Q8_0, 2100, 96),
        (SourceType::Q4_1, 40, 96),
    ] {
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let mut logits = Tensor::from_vec(rows, outputs, r.values(rows * outputs));
        for value in logits.values_mut() {
            *value *= 30.0;
        }
        let targets: Vec<u32> = (0..rows as u32).map(|m| m * 149 % outputs as u32).collect();
        for d in devices() {
            let w = d.pack(source, &bytes, (outputs, inputs), None).unwrap();
            let mut g = logits.clone();
            d.cross_entropy(&mut g, &targets, &[0.25; 14], &mut [0.0; 14]);
            for compute in [Compute::F32, Compute::Bits16] {
                let (mut want, mut got) =
                    (Tensor::default(), Tensor::from_vec(1, 1, vec![f32::NAN]));
                d.linear_backward(&g, &w, &mut want, false, Compute::F32);
                d.head_backward(&g, &w, &mut got, compute);
                let want: Vec<f64> = want.values().iter().map(|x| f64::from(*x)).collect();
                let tolerance = if compute == Compute::F32 { 1e-6 } else { 1e-2 };
                let off = difference(got.values(), &want);
                assert!(
                    off < tolerance,
                    "{source:?} {compute:?} {}: {off}",
                    d.describe()
                );
                // In another batch, a row has the same bits.
                let (some, mut alone) = (&g.values()[3 * outputs..5 * outputs], Tensor::default());
                let some = Tensor::from_vec(2, outputs, some.to_vec());
                d.head_backward(&some, &w, &mut alone, compute);
                assert_eq!(alone.values(), &got.values()[3 * inputs..5 * inputs]);
            }
        }
    }
}

#[test]
fn backward_of_products_matches_finite_differences_of_the_forward() {
    // y = x W^T + scale (x A^T) B^T is linear in each of x, A, B: the gradient of sum(g * y) is exact in the reference.
    let mut r = Random::new(19);
    let (rows, rank) = (21, 4);
    for (source, outputs, inputs) in [
        (SourceType::F32, 1100, 72),
        (SourceType::Q4_1, 1100, 96),
        (SourceType::Q8_0, 40, 96),
    ] {
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let (a, b) = (r.values(rank * inputs), r.values(rank * outputs));
        let x = Tensor::from_vec(rows, inputs, r.values(rows * inputs));
        let g = Tensor::from_vec(rows, outputs, r.values(rows * outputs));
        let scale = 1.5f32;
        for d in devices() {
            let w = d.pack(source, &bytes, (outputs, inputs), None).unwrap();
            for compute in [Compute::F32, Compute::Bits16] {
                let tolerance = if compute == Compute::F32 {
                    1e-5
                } else {
                    1.5e-2
                };
                let before = r.values(rows * inputs);
                let mut sum = Tensor::from_vec(rows, inputs, before.clone());
                d.linear_backward(&g, &w, &mut sum, true, compute);
                let mut dx = Tensor::from_vec(2, 1, vec![f32::NAN; 2]);
                d.linear_backward(&g, &w, &mut dx, false, compute);
                let flat = rows_of(&w);
                let transposed: Vec<f32> = (0..inputs * outputs)
                    .map(|i| flat[i % outputs * inputs + i / outputs])
                    .collect();
                let mut want = reference::linear(g.values(), &transposed, rows, inputs, outputs);
                assert!(
                    difference(dx.values(), &want) < tolerance,
                    "dx {source:?} {compute:?} {}",
                    d.describe()
                );
                let want_sum: Vec<f64> = want
                    .iter()
                    .zip(&before)
                    .map(|(x, before)| x + f64::from(*before))
                    .collect();
                assert!(
                    difference(sum.values(), &want_sum) < tolerance,
                    "sum {source:?} {compute:?} {}",
                    d.describe()
                );

                // Rows 3..18 carry the adapter.
                let (mut da, mut db) = (vec![0f32; rank * inputs], vec![0f32; rank * outputs]);
                let runs = [Run {
                    first: 3,
                    rows: 15,
                    slots: vec![(0, 1.0)],
                }];
                let mut pair = LoraGrad {
                    a: &a,
                    b: &b,
                    rank,
                    scale,
                    da: &mut da,
                    db: &mut db,
                };
                d.lora_backward(&x, &g, &runs, &mut [Some(&mut pair)], None, &mut dx);
                let (mut want_da, mut want_db) =
                    (vec![0f64; rank * inputs], vec![0f64; rank * outputs]);
                for m in 3..18 {
                    for i in 0..rank {
                        let h: f64 = (0..inputs)
                            .map(|k| f64::from(x.row(m)[k]) * f64::from(a[i * inputs + k]))
                            .sum();
                        let dh: f64 = (0..outputs)
                            .map(|n| f64::from(g.row(m)[n]) * f64::from(b[n * rank + i]))
                            .sum();
                        let s = f64::from(scale);
                        for n in 0..outputs {
                            want_db[n * rank + i] += s * f64::from(g.row(m)[n]) * h;
                        }
                        for k in 0..inputs {
                            want_da[i * inputs + k] += s * dh * f64::from(x.row(m)[k]);
                            want[m * inputs + k] += s * dh * f64::from(a[i * inputs + k]);
                        }
                    }
                }
                assert!(difference(&da, &want_da) < 1e-5);
                assert!(difference(&db, &want_db) < 1e-5);
                assert!(difference(dx.values(), &want) < tolerance);
            }
        }
    }
}

#[test]
fn weights_with_wrong_shapes_are_errors() {
    let d = CpuDevice::open(Some(1), Isa::best()).unwrap();
    for (outputs, inputs, bytes) in [
        (4, 32, 79),
        (4, 33, 80),
        (0, 32, 0),
        (4, 0, 0),
        (usize::MAX, 64, 40),
    ] {
        assert!(
            d.pack(SourceType::Q4_1, &vec![0; bytes], (outputs, inputs), None)
                .is_err()
        );
    }
    assert!(
        d.pack(SourceType::F32, &[0; 8], (2, 1), Some(&[0, 2]))
            .is_err()
    );
    assert!(
        LoraPack::new(
            &LoraArena::default(),
            &[0.0; 6],
            &[0.0; 4],
            (2, 3, 2),
            1.0,
            LoraType::F32
        )
        .is_ok()
    );
    assert!(
        LoraPack::new(
            &LoraArena::default(),
            &[0.0; 5],
            &[0.0; 4],
            (2, 3, 2),
            1.0,
            LoraType::F32
        )
        .is_err()
    );
}
