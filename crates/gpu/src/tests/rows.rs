//! Operations by rows.

use super::*;
use crate::rows::Norm;
use kernels_common::check::{Random, TYPES, assert_near, random_bytes, values_of};
use kernels_common::reference;

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

#[test]
fn embeddings_are_the_rows_of_the_table() {
    let Some(gpu) = gpu() else { return };
    for source in TYPES {
        let (outputs, inputs) = (40, 256);
        let mut r = Random::new(source as u64);
        let bytes = random_bytes(source, outputs * inputs, &mut r);
        let values = values_of(source, &bytes, inputs);
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
