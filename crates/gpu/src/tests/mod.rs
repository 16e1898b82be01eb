//! Every kernel against the reference in f64, and the promise that a row's result does not depend on the other rows of its
//! batch. They need a Vulkan driver; Mesa's llvmpipe is enough. `LORY_TEST_GPU=required` fails without one.

mod attention;
mod candidates;
mod linear;
mod lora;
mod rows;

use crate::device::GpuDevice;
use crate::info::GpuApi;
use crate::kernels;
use crate::linear::{Projection, Prologue};
use crate::lora::LoraPack;
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::Weights;
use kernels_common::check::numbers;
use kernels_common::dtype::{Compute, LoraType};
use kernels_common::rows::{Run, Span, StepRows};
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

fn step(gpu: &GpuDevice, tokens: &[u32], spans: &[Span], runs: &[Run]) -> Step {
    gpu.step(StepRows {
        tokens,
        spans,
        runs,
        dropout: &[],
    })
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
