//! Measures how fast this machine would answer: the matrix products of one token, on weights of the model's shapes.
//!
//! The weights are synthetic, so no file is read. Copies of a layer are packed in the type that the plan chose, until a pass
//! reads more than caches hold, and one row goes through all of them.

use std::time::{Duration, Instant};

use formats::gguf::GgmlType;
use formats::peft::Module;
use kernels::{Compute, Device, KernelError, Projection, SourceType, Weights};
use model::{ModelSizes, Precision};
use serde::Serialize;

/// The fewest bytes that a pass reads, so that they come from memory as a model's weights do.
const MIN_BYTES: usize = 192 << 20;
/// The most bytes that a layer may take.
const MAX_LAYER_BYTES: usize = 768 << 20;
/// The shortest measurement.
const MIN_DURATION: Duration = Duration::from_millis(300);

/// The result of [`measure_speed`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeasuredSpeed {
    /// Tokens per second of one answer, by its matrix products alone; attention over a long context adds time.
    pub tokens_per_s: f64,
    /// Bytes of weights that a pass read.
    pub bytes: usize,
    /// Duration of the measurement, in seconds.
    pub seconds: f64,
}

/// Measures one token's products for a model of these sizes in a precision. `None` if a layer alone is too large.
///
/// # Errors
/// The system has not enough memory.
pub fn measure_speed(
    device: &Device,
    sizes: &ModelSizes,
    precision: Option<Precision>,
) -> Result<Option<MeasuredSpeed>, KernelError> {
    let config = &sizes.config;
    let Some(layers) = synthetic_layers(device, sizes, precision)? else {
        return Ok(None);
    };
    // A token reads the head once; the time of a part of it is scaled up.
    let head_source = source_in_memory(sizes, precision, "output.weight", config.hidden_size);
    let head_rows = config.vocab_size.min(16_384);
    let head = synthetic_weights(device, (head_rows, config.hidden_size, head_source), 99)?;

    let mut workspace = device.workspace();
    let mut row = |weights: &Weights| {
        let x = device.zeros(1, weights.inputs());
        let mut out = device.tensor();
        let mut projections = [Projection {
            weights,
            bias: None,
            lora: None,
            out: &mut out,
            accumulate: false,
        }];
        device.linear(&mut workspace, &x, None, &mut projections, Compute::Int8);
    };
    // Not timed: it touches every page.
    let mut pass = |weights: &[Weights]| {
        weights.iter().for_each(&mut row);
        device.wait();
    };
    pass(&layers.weights);
    let (pass_seconds, pass_total) = time(MIN_DURATION, || pass(&layers.weights));
    let (head_seconds, head_total) = time(MIN_DURATION / 3, || pass(std::slice::from_ref(&head)));
    let layer_seconds = pass_seconds / layers.count as f64;
    let whole_head_seconds = head_seconds * config.vocab_size as f64 / head_rows as f64;
    Ok(Some(MeasuredSpeed {
        tokens_per_s: 1.0 / (layer_seconds * config.layers as f64 + whole_head_seconds),
        bytes: layers.bytes,
        seconds: pass_total + head_total,
    }))
}

/// Repeats `work` for at least `least`; returns the seconds of one repetition and of all.
fn time(least: Duration, mut work: impl FnMut()) -> (f64, f64) {
    let started = Instant::now();
    let mut repetitions = 0u32;
    while started.elapsed() < least {
        work();
        repetitions += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    (seconds / f64::from(repetitions.max(1)), seconds)
}

/// The weights of some layers.
struct SyntheticLayers {
    count: usize,
    weights: Vec<Weights>,
    bytes: usize,
}

/// As many layers as a pass must read; `None` if a layer alone is too large.
fn synthetic_layers(
    device: &Device,
    sizes: &ModelSizes,
    precision: Option<Precision>,
) -> Result<Option<SyntheticLayers>, KernelError> {
    let shapes = Module::ALL.map(|module| {
        let (inputs, outputs) = module.shape(&sizes.config);
        let source = source_in_memory(sizes, precision, "blk.0.attn_q.weight", inputs);
        (outputs, inputs, source)
    });
    let bytes_of = |(outputs, inputs, source): (usize, usize, SourceType)| {
        let bytes = device.backend().packed_bytes(source, outputs, inputs);
        bytes.unwrap_or(0) as usize
    };
    let layer_bytes: usize = shapes.into_iter().map(bytes_of).sum();
    if layer_bytes == 0 || layer_bytes > MAX_LAYER_BYTES {
        return Ok(None);
    }
    let count = MIN_BYTES
        .div_ceil(layer_bytes)
        .clamp(1, sizes.config.layers);
    let mut weights = Vec::new();
    for layer in 0..count {
        for shape in shapes {
            weights.push(synthetic_weights(device, shape, layer as u64)?);
        }
    }
    Ok(Some(SyntheticLayers {
        count,
        weights,
        bytes: count * layer_bytes,
    }))
}

/// The type of the matrix `name` in memory.
fn source_in_memory(
    sizes: &ModelSizes,
    precision: Option<Precision>,
    name: &str,
    inputs: usize,
) -> SourceType {
    let in_file = sizes.types().first().copied().unwrap_or(GgmlType::BF16);
    let dtype = precision.map_or(in_file, |p| p.held(name, in_file, inputs));
    source(dtype, inputs)
}

/// The kernels' name of a type. Rows that are not whole blocks of it count as f16, which takes as long.
fn source(dtype: GgmlType, inputs: usize) -> SourceType {
    let source = model::source_type(dtype).unwrap_or(SourceType::F16);
    if inputs.is_multiple_of(source.block_values()) {
        source
    } else {
        SourceType::F16
    }
}

/// Weights of a shape that are nearly all 0. Zero bytes are zeros in every type, and take as long as other values.
fn synthetic_weights(
    device: &Device,
    (outputs, inputs, source): (usize, usize, SourceType),
    seed: u64,
) -> Result<Weights, KernelError> {
    let bytes = inputs / source.block_values() * source.block_bytes() * outputs;
    let mut data = vec![0u8; bytes];
    // Pages differ, so that the system cannot share them.
    for (i, page) in data.chunks_mut(4096).enumerate() {
        page[0] = (seed as u8).wrapping_add(i as u8) & 0x0f;
    }
    device.pack(source, &data, (outputs, inputs), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::DeviceChoice;
    use testkit::tiny::tiny_config;

    #[test]
    fn a_tiny_model_is_measured_in_every_precision() {
        let device = Device::open(DeviceChoice::Cpu { threads: Some(1) }).unwrap();
        let sizes = ModelSizes::imagined(&tiny_config(), GgmlType::BF16);
        for precision in Precision::ALL.map(Some).into_iter().chain([None]) {
            let probe = measure_speed(&device, &sizes, precision).unwrap().unwrap();
            assert!(probe.tokens_per_s > 0.0 && probe.bytes > 0, "{precision:?}");
        }
    }
}
