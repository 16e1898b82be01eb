//! Products with packed weights.

use super::*;
use crate::linear::Lora;
use kernels_common::check::{Random, TYPES, assert_near, random_bytes, values_of};
use kernels_common::dtype::SourceType;
use kernels_common::reference;

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
        let values = values_of(source, &bytes, inputs);
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
fn products_match_the_reference_in_every_type() {
    let Some(gpu) = gpu() else { return };
    for source in TYPES {
        // One slice; three slices, the last one short, and outputs that fill no tile.
        for (outputs, inputs) in [(48, 256), (21, 768)] {
            let mut r = Random::new(source as u64 + outputs as u64);
            let bytes = random_bytes(source, outputs * inputs, &mut r);
            let values = values_of(source, &bytes, inputs);
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
        let values = values_of(source, &bytes, inputs);
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
    let estimate = crate::weights::packed_bytes(SourceType::F32, 3, 32);
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
