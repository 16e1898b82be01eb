//! How fast this machine would answer: one token's products, measured on weights of the model's shapes.
//!
//! The weights are made up and cost no file: a layer is packed in the type in which it would be held, again and again until
//! caches cannot hold what a pass reads, and one row goes through all of them.

use std::time::{Duration, Instant};

use formats::gguf::GgmlType;
use formats::peft::Module;
use kernels::{Compute, Device, KernelError, Projection, SourceType, Weights};
use model::{ModelSizes, Precision};
use serde::Serialize;

/// What a pass should read at least, so that it comes from memory as a model's weights do.
const LEAST_BYTES: usize = 192 << 20;
/// What a probe may pack at most.
const MOST_BYTES: usize = 768 << 20;
/// How long it measures at least.
const LEAST: Duration = Duration::from_millis(300);

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeasuredSpeed {
    /// Tokens a second of one answer, from its matrix products alone; attention over a long context adds time.
    pub tokens_per_s: f64,
    /// Bytes of weights that were read for it.
    pub bytes: usize,
    /// How long it was measured, in seconds.
    pub seconds: f64,
}

/// Measures one token's products for a model of these sizes in a precision. None where a layer alone is too large.
///
/// # Errors
/// The system has no memory for it.
pub fn measure_speed(
    device: &Device,
    sizes: &ModelSizes,
    precision: Option<Precision>,
) -> Result<Option<MeasuredSpeed>, KernelError> {
    let config = &sizes.config;
    let held = |name: &str, inputs: usize| {
        let in_file = sizes.types().first().copied().unwrap_or(GgmlType::BF16);
        let dtype = precision.map_or(in_file, |p| p.held(name, in_file, inputs));
        source(dtype, inputs)
    };
    let layer_shapes = Module::ALL.map(|module| {
        let (inputs, outputs) = module.shape(config);
        (outputs, inputs, held("blk.0.attn_q.weight", inputs))
    });
    let bytes_of = |(outputs, inputs, source): (usize, usize, SourceType)| {
        device
            .backend()
            .packed_bytes(source, outputs, inputs)
            .unwrap_or(0) as usize
    };
    let layer_bytes: usize = layer_shapes.into_iter().map(bytes_of).sum();
    if layer_bytes == 0 || layer_bytes > MOST_BYTES {
        return Ok(None);
    }
    let copies = LEAST_BYTES.div_ceil(layer_bytes).clamp(1, config.layers);
    let mut layers: Vec<Vec<Weights>> = Vec::new();
    for copy in 0..copies {
        let pack = |shape| made_up(device, shape, copy as u64);
        layers.push(
            layer_shapes
                .into_iter()
                .map(pack)
                .collect::<Result<_, _>>()?,
        );
    }
    // The head is read once a token; a part of it stands for all.
    let head_source = held("output.weight", config.hidden_size);
    let head_rows = config.vocab_size.min(16_384);
    let head = made_up(device, (head_rows, config.hidden_size, head_source), 99)?;

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
    let mut pass = || {
        for weights in layers.iter().flatten() {
            row(weights);
        }
    };
    pass();
    let started = Instant::now();
    let mut passes = 0u32;
    while started.elapsed() < LEAST {
        pass();
        passes += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    let a_layer = seconds / f64::from(passes) / copies as f64;
    let started_head = Instant::now();
    let mut heads = 0u32;
    while started_head.elapsed() < LEAST / 3 {
        row(&head);
        heads += 1;
    }
    let head_seconds = started_head.elapsed().as_secs_f64();
    let a_head = head_seconds / f64::from(heads) * config.vocab_size as f64 / head_rows as f64;
    Ok(Some(MeasuredSpeed {
        tokens_per_s: 1.0 / (a_layer * config.layers as f64 + a_head),
        bytes: copies * layer_bytes,
        seconds: seconds + head_seconds,
    }))
}

/// The kernels' name of a type; rows that are not whole blocks of it count as f16, which takes as long.
fn source(dtype: GgmlType, inputs: usize) -> SourceType {
    let source = model::source_type(dtype).unwrap_or(SourceType::F16);
    if inputs.is_multiple_of(source.block_values()) {
        source
    } else {
        SourceType::F16
    }
}

/// Weights of a shape, of no meaning: bytes of zeros are zeros in every type, and take as long as others.
fn made_up(
    device: &Device,
    (outputs, inputs, source): (usize, usize, SourceType),
    seed: u64,
) -> Result<Weights, KernelError> {
    let bytes = inputs / source.block_values() * source.block_bytes() * outputs;
    let mut data = vec![0u8; bytes];
    // Not all alike, so that no page is another's.
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
