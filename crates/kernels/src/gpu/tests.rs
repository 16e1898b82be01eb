//! Every kernel against the reference in f64, and the promise that a row's result does not depend on the other rows of its
//! batch. They need a Vulkan driver; Mesa's llvmpipe is enough. `LORY_TEST_GPU=required` fails without one.

use crate::cpu::check::{Random, TYPES, assert_near, numbers, random_bytes};
use crate::cpu::device::CpuDevice;
use crate::cpu::isa::Isa;
use crate::cpu::reference;
use crate::dtype::{Compute, KvShape, KvType, LoraType, SourceType};
use crate::gpu::attention::HeadNorms;
use crate::gpu::device::GpuDevice;
use crate::gpu::kernels;
use crate::gpu::linear::{Lora, Projection, Prologue};
use crate::gpu::lora::LoraPack;
use crate::gpu::rows::Norm;
use crate::gpu::step::Step;
use crate::gpu::tensor::Tensor;
use crate::gpu::weights::Weights;
use crate::gpu_info::GpuApi;
use crate::rows::{Run, Span, StepRows};
use std::sync::OnceLock;

/// The first Vulkan card, opened once for all tests; none if there is no driver.
fn gpu() -> Option<&'static GpuDevice> {
    static DEVICE: OnceLock<Option<GpuDevice>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| match GpuDevice::open(GpuApi::Vulkan, 0) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("LORY_TEST_GPU").is_ok_and(|value| value == "required");
            assert!(!required, "LORY_TEST_GPU=required: {error}");
            println!("skipped: {error}");
            None
        }
    });
    device.as_ref()
}

#[test]
fn kernels_have_distinct_entries() {
    let mut entries: Vec<&str> = kernels::ALL.iter().map(|k| k.entry).collect();
    entries.sort_unstable();
    entries.dedup();
    assert_eq!(entries.len(), kernels::ALL.len());
}

fn upload(gpu: &GpuDevice, rows: usize, columns: usize, values: &[f32]) -> Tensor {
    let mut tensor = gpu.tensor();
    tensor.write(rows, columns, values);
    tensor
}

fn read(tensor: &Tensor) -> Vec<f32> {
    let mut values = Vec::new();
    tensor.read_into(&mut values);
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn norms_match_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (rows, columns, heads) in [(3, 64, 1), (1, 576, 1), (2, 100, 1), (5, 32, 4)] {
        let x = numbers(1, rows * columns * heads);
        let weight = numbers(2, columns);
        let vector = gpu.vector(&weight);
        let mut out = gpu.tensor();
        let norm = Norm {
            weight: &vector,
            eps: 1e-5,
        };
        gpu.norm(&upload(gpu, rows, columns * heads, &x), norm, &mut out);
        let want: Vec<f64> = x
            .chunks(columns)
            .flat_map(|x| reference::rmsnorm(x, &weight, 1e-5))
            .collect();
        assert_near("norm", &read(&out), &want, 1e-6);
    }
}

#[test]
fn swiglu_matches_the_reference() {
    let Some(gpu) = gpu() else { return };
    let gate: Vec<f32> = numbers(3, 600).iter().map(|x| x * 100.0).collect();
    let up = numbers(4, 600);
    let mut out = gpu.tensor();
    gpu.swiglu(
        &upload(gpu, 3, 200, &gate),
        &upload(gpu, 3, 200, &up),
        &mut out,
    );
    let silu = |g: f64| g / (1.0 + (-g).exp());
    let want: Vec<f64> = gate
        .iter()
        .zip(&up)
        .map(|(g, u)| silu(f64::from(*g)) * f64::from(*u))
        .collect();
    assert_near("swiglu", &read(&out), &want, 1e-6);
    for (got, want) in read(&out).iter().zip(&want) {
        assert!(
            (f64::from(*got) - want).abs() <= 1e-6 * want.abs() + 1e-30,
            "{got} is not {want}"
        );
    }
}

#[test]
fn products_of_gated_rows_match_the_reference() {
    let Some(gpu) = gpu() else { return };
    let (rows, inputs, outputs) = (3, 160, 40);
    let gate: Vec<f32> = numbers(3, rows * inputs).iter().map(|x| 6.0 * x).collect();
    let up = numbers(4, rows * inputs);
    let gated: Vec<f32> = gate
        .iter()
        .zip(&up)
        .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
        .collect();
    for (source, compute, tolerance) in [
        (SourceType::F32, Compute::F32, 3e-6),
        (SourceType::Q8_0, Compute::Int8, 1.5e-2),
    ] {
        let bytes = random_bytes(source, outputs * inputs, &mut Random::new(5));
        let values = values_of(source, &bytes, (outputs, inputs));
        let weights = gpu.pack(source, &bytes, (outputs, inputs), None).unwrap();
        let pair = pair(gpu, 1, (outputs, inputs, 5), LoraType::F32);
        let runs = [Run {
            first: 1,
            rows: 1,
            slots: vec![(0, 1.0)],
        }];
        let step = step(gpu, &vec![0; rows], &[], &runs);
        let mut out = gpu.tensor();
        let projection = Projection {
            weights: &weights,
            bias: None,
            lora: Some(Lora {
                step: &step,
                packs: vec![Some(&pair.pack)],
            }),
            out: &mut out,
            accumulate: false,
        };
        gpu.linear(
            &mut gpu.workspace(),
            &mut gpu.tensor(),
            &upload(gpu, rows, inputs, &gate),
            Prologue::Swiglu(&upload(gpu, rows, inputs, &up)),
            &mut [projection],
            compute,
        );
        let mut want = reference::linear(&gated, &values, rows, outputs, inputs);
        let x: Vec<f64> = gated[inputs..2 * inputs]
            .iter()
            .map(|x| f64::from(*x))
            .collect();
        let with_adapter = &mut want[outputs..2 * outputs];
        add_adapters(with_adapter, &x, &[Some(&pair)], &runs[0].slots);
        assert_near(&format!("{source:?}"), &read(&out), &want, tolerance);
    }
}

#[test]
fn rows_are_gathered_in_the_order_given() {
    let Some(gpu) = gpu() else { return };
    let x = numbers(5, 4 * 70);
    let mut out = gpu.tensor();
    gpu.gather_rows(&upload(gpu, 4, 70, &x), &[3, 0, 3], &mut out);
    assert_eq!(read(&out), [&x[210..], &x[..70], &x[210..]].concat());
}

#[test]
fn cross_entropy_matches_the_reference() {
    let Some(gpu) = gpu() else { return };
    let (rows, columns) = (3, 300);
    let x: Vec<f32> = numbers(6, rows * columns).iter().map(|x| 8.0 * x).collect();
    let (targets, scale) = ([0, 299, 17], [1.0, 0.0, -2.0]);
    let mut logits = upload(gpu, rows, columns, &x);
    let mut losses = upload(gpu, 5, 1, &[9.0; 5]);
    gpu.cross_entropy(&mut logits, &targets, &scale, &mut losses, 1);
    let (mut want, mut gradients) = (vec![9.0], Vec::new());
    for (row, x) in x.chunks(columns).enumerate() {
        let sum: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
        want.push(sum.ln() - f64::from(x[targets[row] as usize]));
        gradients.extend(x.iter().enumerate().map(|(k, x)| {
            let one = if k == targets[row] as usize { 1.0 } else { 0.0 };
            f64::from(scale[row]) * (f64::from(*x).exp() / sum - one)
        }));
    }
    want.push(9.0);
    assert_near("losses", &read(&losses), &want, 1e-6);
    assert_near("gradients", &read(&logits), &gradients, 1e-6);
}

/// The values of a matrix, as the CPU's slow way reads them.
fn values_of(source: SourceType, bytes: &[u8], shape: (usize, usize)) -> Vec<f32> {
    let cpu = CpuDevice::open(Some(1), Isa::Scalar).unwrap();
    let weights = cpu.pack(source, bytes, shape, None).unwrap();
    let mut values = vec![0.0; shape.0 * shape.1];
    for (i, row) in values.chunks_exact_mut(shape.1).enumerate() {
        weights.row(i, row);
    }
    values
}

fn project(gpu: &GpuDevice, x: &Tensor, weights: &Weights, compute: Compute) -> Vec<f32> {
    let mut out = gpu.tensor();
    let projection = Projection {
        weights,
        bias: None,
        lora: None,
        out: &mut out,
        accumulate: false,
    };
    gpu.linear(
        &mut gpu.workspace(),
        &mut gpu.tensor(),
        x,
        Prologue::None,
        &mut [projection],
        compute,
    );
    read(&out)
}

#[test]
fn products_match_the_reference_in_every_type() {
    let Some(gpu) = gpu() else { return };
    for source in TYPES {
        // One slice; three slices, the last one short, and outputs that fill no tile.
        for (outputs, inputs) in [(48, 256), (21, 768)] {
            let mut r = Random::new(source as u64 + outputs as u64);
            let bytes = random_bytes(source, outputs * inputs, &mut r);
            let values = values_of(source, &bytes, (outputs, inputs));
            let weights = gpu.pack(source, &bytes, (outputs, inputs), None).unwrap();
            for rows in [3, 11] {
                let x = r.values(rows * inputs);
                let want = reference::linear(&x, &values, rows, outputs, inputs);
                let x = upload(gpu, rows, inputs, &x);
                let name = format!("{source:?} {outputs}x{inputs}, {rows} rows");
                assert_near(
                    &format!("float {name}"),
                    &project(gpu, &x, &weights, Compute::F32),
                    &want,
                    2e-6,
                );
                assert_near(
                    &format!("int8 {name}"),
                    &project(gpu, &x, &weights, Compute::Int8),
                    &want,
                    1.5e-2,
                );
            }
        }
    }
}

#[test]
fn inputs_of_odd_eights_are_multiplied() {
    let Some(gpu) = gpu() else { return };
    for source in [SourceType::F32, SourceType::F16, SourceType::BF16] {
        let (outputs, inputs, rows) = (33, 296, 2);
        let mut r = Random::new(7);
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let values = values_of(source, &bytes, (outputs, inputs));
        let weights = gpu.pack(source, &bytes, (outputs, inputs), None).unwrap();
        let x = r.values(rows * inputs);
        let want = reference::linear(&x, &values, rows, outputs, inputs);
        assert_near(
            "float",
            &project(gpu, &upload(gpu, rows, inputs, &x), &weights, Compute::F32),
            &want,
            2e-6,
        );
    }
}

#[test]
fn packing_refuses_shapes_that_the_kernels_do_not_take() {
    let Some(gpu) = gpu() else { return };
    for (shape, bytes) in [((2, 12), 96), ((2, 16), 127), ((0, 16), 0)] {
        assert!(
            gpu.pack(SourceType::F32, &vec![0; bytes], shape, None)
                .is_err(),
            "{shape:?}"
        );
    }
}

#[test]
fn outputs_follow_the_order_given_and_bytes_are_those_of_the_estimate() {
    let Some(gpu) = gpu() else { return };
    let values = numbers(9, 3 * 32);
    let bytes = bytemuck::cast_slice(&values);
    let weights = gpu
        .pack(SourceType::F32, bytes, (3, 32), Some(&[2, 0, 1]))
        .unwrap();
    let x = numbers(10, 32);
    let want = reference::linear(&x, &[&values[64..], &values[..64]].concat(), 1, 3, 32);
    assert_near(
        "ordered",
        &project(gpu, &upload(gpu, 1, 32, &x), &weights, Compute::F32),
        &want,
        1e-6,
    );
    let estimate = crate::gpu::weights::packed_bytes(SourceType::F32, 3, 32);
    assert_eq!(Some(weights.bytes() as u64), estimate);
}

#[test]
fn matrix_in_several_buffers_gives_the_bits_of_one_buffer() {
    let Some(gpu) = gpu() else { return };
    let (outputs, inputs, rows) = (50, 256, 9);
    // With the words of an output's values.
    for (source, words) in [
        (SourceType::F32, 256),
        (SourceType::Q4_0, 32),
        (SourceType::Q8_0, 64),
    ] {
        let mut r = Random::new(60 + source as u64);
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let shape = (outputs, inputs);
        let whole = gpu.pack(source, &bytes, shape, None).unwrap();
        let of_16_outputs = 16 * 4 * words;
        let parts = gpu.pack_within(of_16_outputs, source, &bytes, shape, None);
        let parts = parts.unwrap();
        assert_eq!((whole.parts.len(), parts.parts.len()), (1, 4));
        let x = r.values(rows * inputs);
        for count in [1, rows] {
            let x = upload(gpu, count, inputs, &x[..count * inputs]);
            let [whole, parts] = [&whole, &parts].map(|w| project(gpu, &x, w, Compute::Int8));
            assert!(bits(&whole) == bits(&parts), "{source:?} {count}");
        }
        let tokens = [49, 0, 17];
        let step = step(gpu, &tokens, &[], &[]);
        let [whole, parts] = [&whole, &parts].map(|table| {
            let mut out = gpu.tensor();
            gpu.embed(table, &step, &mut out);
            read(&out)
        });
        assert_eq!(bits(&whole), bits(&parts), "{source:?}");
    }
    let one = gpu.pack_within(64, SourceType::F32, &[0; 128], (1, 32), None);
    assert!(
        one.err()
            .unwrap()
            .to_string()
            .contains("larger than a buffer")
    );
}

#[test]
fn a_row_alone_has_the_bits_of_a_row_in_company() {
    let Some(gpu) = gpu() else { return };
    for source in TYPES {
        let (outputs, inputs, rows) = (70, 1280, 13);
        let mut r = Random::new(20 + source as u64);
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let weights = gpu.pack(source, &bytes, (outputs, inputs), None).unwrap();
        let x = r.values(rows * inputs);
        for compute in [Compute::Int8, Compute::F32] {
            let many = project(gpu, &upload(gpu, rows, inputs, &x), &weights, compute);
            for count in [1, 3] {
                let first = upload(gpu, count, inputs, &x[..count * inputs]);
                let few = project(gpu, &first, &weights, compute);
                assert!(
                    bits(&few) == bits(&many[..few.len()]),
                    "{source:?} {compute:?} {count}"
                );
            }
        }
    }
}

fn step(gpu: &GpuDevice, tokens: &[u32], spans: &[Span], runs: &[Run]) -> Step {
    gpu.step(StepRows {
        tokens,
        spans,
        runs,
        dropout: &[],
    })
}

#[test]
fn embeddings_are_the_rows_of_the_table() {
    let Some(gpu) = gpu() else { return };
    for source in TYPES {
        let (outputs, inputs) = (40, 256);
        let mut r = Random::new(source as u64);
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let values = values_of(source, &bytes, (outputs, inputs));
        let table = gpu.pack(source, &bytes, (outputs, inputs), None).unwrap();
        let tokens = [39, 0, 17];
        let mut out = gpu.tensor();
        gpu.embed(&table, &step(gpu, &tokens, &[], &[]), &mut out);
        let want: Vec<f64> = tokens
            .iter()
            .flat_map(|&t| {
                values[t as usize * inputs..][..inputs]
                    .iter()
                    .map(|v| f64::from(*v))
            })
            .collect();
        assert_near(&format!("{source:?}"), &read(&out), &want, 1e-6);
    }
}

/// An adapter's matrices, as f32 and on the card.
struct Pair {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scale: f32,
    pack: LoraPack,
}

fn pair(
    gpu: &GpuDevice,
    seed: u64,
    (outputs, inputs, rank): (usize, usize, usize),
    dtype: LoraType,
) -> Pair {
    // Values that each type stores exactly.
    let exact = |n| -> Vec<f32> {
        numbers(seed + n as u64, n)
            .iter()
            .map(|v| (v * 64.0).round() / 64.0)
            .collect()
    };
    let (a, b) = (exact(rank * inputs), exact(outputs * rank));
    let arena = gpu
        .lora_arena([(outputs, inputs, rank)].into_iter(), dtype)
        .unwrap();
    let scale = 0.5 + seed as f32;
    let pack = gpu
        .lora_pack(&arena, &a, &b, (outputs, inputs, rank), scale, dtype)
        .unwrap();
    Pair {
        a,
        b,
        rank,
        scale,
        pack,
    }
}

/// Adds what a run's adapters add to row `x`.
fn add_adapters(y: &mut [f64], x: &[f64], pairs: &[Option<&Pair>], slots: &[(u32, f32)]) {
    for (slot, scale) in slots {
        let Some(pair) = pairs[*slot as usize] else {
            continue;
        };
        for k in 0..pair.rank {
            let h: f64 = x
                .iter()
                .zip(&pair.a[k * x.len()..])
                .map(|(x, a)| x * f64::from(*a))
                .sum();
            for (n, y) in y.iter_mut().enumerate() {
                *y += f64::from(scale * pair.scale) * h * f64::from(pair.b[n * pair.rank + k]);
            }
        }
    }
}

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
