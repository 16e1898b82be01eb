//! Adapters of mixed batches.

use super::*;
use crate::linear::Lora;
use crate::rows::Norm;
use kernels_common::check::{Random, assert_near, random_bytes};
use kernels_common::dtype::SourceType;
use kernels_common::reference;

#[test]
fn a_mixed_batch_of_three_projections_matches_the_reference() {
    let Some(gpu) = gpu() else { return };
    let (inputs, eps) = (96, 1e-5);
    let shapes = [40, 24, 70];
    let weight = numbers(1, inputs);
    let norm_weight = gpu.vector(&weight);
    let types = [LoraType::F32, LoraType::F16, LoraType::Bf16];
    let pairs: Vec<Vec<Pair>> = shapes
        .iter()
        .map(|&outputs| {
            (0..3)
                .map(|i| {
                    pair(
                        gpu,
                        i + 1,
                        (outputs, inputs, [3, 8, 17][i as usize]),
                        types[i as usize],
                    )
                })
                .collect()
        })
        .collect();
    let run = |first, rows, slots: &[(u32, f32)]| Run {
        first,
        rows,
        slots: slots.to_vec(),
    };
    let runs = [
        run(0, 2, &[(0, 1.0)]),
        run(3, 1, &[(1, 0.7), (2, -0.3), (3, 1.0)]),
        run(4, 6, &[(2, 2.0)]),
    ];
    let rows = 11;
    let x = numbers(30, rows * inputs);
    let step = step(gpu, &vec![0; rows], &[], &runs);
    let matrices: Vec<Vec<f32>> = shapes
        .iter()
        .map(|&n| numbers(40 + n as u64, n * inputs))
        .collect();
    let weights: Vec<Weights> = (matrices.iter().zip(shapes))
        .map(|(m, n)| {
            gpu.pack(SourceType::F32, bytemuck::cast_slice(m), (n, inputs), None)
                .unwrap()
        })
        .collect();
    let biases: Vec<Vec<f32>> = shapes.iter().map(|&n| numbers(50, n)).collect();
    let vectors: Vec<_> = biases.iter().map(|b| gpu.vector(b)).collect();
    // The middle projection adds to what is there.
    let mut outs: Vec<Tensor> = shapes
        .iter()
        .map(|&n| upload(gpu, rows, n, &vec![1.0; rows * n]))
        .collect();
    let packs = |p: usize| -> Vec<Option<&LoraPack>> {
        // Slot 3 has no pack for these layers.
        pairs[p]
            .iter()
            .map(|pair| Some(&pair.pack))
            .chain([None])
            .collect()
    };
    let mut projections: Vec<Projection> = outs
        .iter_mut()
        .enumerate()
        .map(|(p, out)| Projection {
            weights: &weights[p],
            bias: (p != 2).then_some(&vectors[p]),
            lora: Some(Lora {
                step: &step,
                packs: packs(p),
            }),
            out,
            accumulate: p == 1,
        })
        .collect();
    let norm = Norm {
        weight: &norm_weight,
        eps,
    };
    let launches = gpu.executor().launches();
    gpu.linear(
        &mut gpu.workspace(),
        &mut gpu.tensor(),
        &upload(gpu, rows, inputs, &x),
        Prologue::Norm(norm),
        &mut projections,
        Compute::F32,
    );
    // Other tests launch at the same time, but rarely.
    assert!(gpu.executor().launches() >= launches + 2);
    for (p, outputs) in shapes.into_iter().enumerate() {
        let mut want = Vec::new();
        for (row, x) in x.chunks(inputs).enumerate() {
            let x = reference::rmsnorm(x, &weight, eps);
            let mut y: Vec<f64> = matrices[p]
                .chunks(inputs)
                .map(|w| w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum())
                .collect();
            for (y, b) in y.iter_mut().zip(&biases[p]) {
                *y += if p != 2 { f64::from(*b) } else { 0.0 } + if p == 1 { 1.0 } else { 0.0 };
            }
            let slots = runs
                .iter()
                .find(|r| (r.first..r.first + r.rows).contains(&row));
            let with: Vec<Option<&Pair>> = pairs[p].iter().map(Some).chain([None]).collect();
            add_adapters(&mut y, &x, &with, slots.map_or(&[], |r| &r.slots));
            want.extend(y);
        }
        assert_near(
            &format!("projection {p} of {outputs}"),
            &read(&outs[p]),
            &want,
            3e-6,
        );
    }
}

#[test]
fn adapters_of_a_row_alone_give_the_bits_of_company_and_of_another_place_in_memory() {
    let Some(gpu) = gpu() else { return };
    let (outputs, inputs, rows) = (40, 320, 9);
    let mut r = Random::new(3);
    let bytes = random_bytes(SourceType::Q4_0, outputs * inputs, &mut r);
    let weights = gpu
        .pack(SourceType::Q4_0, &bytes, (outputs, inputs), None)
        .unwrap();
    let x = r.values(rows * inputs);
    let run = |first, rows, slots: &[(u32, f32)]| Run {
        first,
        rows,
        slots: slots.to_vec(),
    };
    let result = |pairs: &[&Pair], rows: usize, x: &[f32], runs: &[Run]| {
        let step = step(gpu, &vec![0; rows], &[], runs);
        let mut out = gpu.tensor();
        let lora = Lora {
            step: &step,
            packs: pairs.iter().map(|p| Some(&p.pack)).collect(),
        };
        let projection = Projection {
            weights: &weights,
            bias: None,
            lora: Some(lora),
            out: &mut out,
            accumulate: false,
        };
        gpu.linear(
            &mut gpu.workspace(),
            &mut gpu.tensor(),
            &upload(gpu, rows, inputs, x),
            Prologue::None,
            &mut [projection],
            Compute::Int8,
        );
        read(&out)
    };
    let small = pair(gpu, 1, (outputs, inputs, 8), LoraType::Bf16);
    let large = pair(gpu, 2, (outputs, inputs, 33), LoraType::F16);
    let blend = run(4, 1, &[(0, 0.7), (1, 0.3)]);
    let company = result(
        &[&small, &large],
        rows,
        &x,
        &[run(0, 4, &[(1, 1.0)]), blend, run(5, 4, &[(0, 1.0)])],
    );
    // The same adapters in other places and slots, alone.
    let again = pair(gpu, 2, (outputs, inputs, 33), LoraType::F16);
    let alone = result(
        &[&again, &small],
        1,
        &x[4 * inputs..5 * inputs],
        &[run(0, 1, &[(1, 0.7), (0, 0.3)])],
    );
    assert_eq!(bits(&alone), bits(&company[4 * outputs..5 * outputs]));
}

#[test]
fn the_heap_keeps_adapters_when_it_grows_and_takes_freed_room_again() {
    let Some(gpu) = gpu() else { return };
    let (outputs, inputs) = (8, 64);
    let first = pair(gpu, 5, (outputs, inputs, 4), LoraType::F32);
    // More than the heap has at the start.
    let large = gpu
        .lora_arena([(1 << 12, 1 << 12, 256)].into_iter(), LoraType::F32)
        .unwrap();
    let x = numbers(6, inputs);
    let weights = gpu
        .pack(
            SourceType::F32,
            &vec![0; 4 * outputs * inputs],
            (outputs, inputs),
            None,
        )
        .unwrap();
    let runs = [Run {
        first: 0,
        rows: 1,
        slots: vec![(0, 1.0)],
    }];
    let step = step(gpu, &[0], &[], &runs);
    let mut out = gpu.tensor();
    let lora = Lora {
        step: &step,
        packs: vec![Some(&first.pack)],
    };
    let projection = Projection {
        weights: &weights,
        bias: None,
        lora: Some(lora),
        out: &mut out,
        accumulate: false,
    };
    gpu.linear(
        &mut gpu.workspace(),
        &mut gpu.tensor(),
        &upload(gpu, 1, inputs, &x),
        Prologue::None,
        &mut [projection],
        Compute::F32,
    );
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let mut want = vec![0.0; outputs];
    add_adapters(&mut want, &x, &[Some(&first)], &[(0, 1.0)]);
    assert_near("y", &read(&out), &want, 2e-6);
    drop(large);
    for _ in 0..20 {
        gpu.lora_arena([(1 << 12, 1 << 12, 256)].into_iter(), LoraType::F32)
            .unwrap();
    }
}
