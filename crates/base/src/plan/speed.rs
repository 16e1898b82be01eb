//! Measures how fast a device would answer: whole steps of one token, through the decoder that serves requests.
//!
//! The weights are synthetic, so no file is read. They are as many of the base's layers as caches do not hold, and a part of its
//! head if that is large; the time of the others is scaled up.

use std::time::{Duration, Instant};

use formats::peft::Module;
use kernels::{BLOCK_TOKENS, Compute, Device, KvType, Span};
use model::{Batch, Buffers, Model, ModelError, ModelSizes, Precision};
use serde::Serialize;

use super::synthetic::{self, Part, Synthetic};

/// The fewest bytes of layers that a step reads, so that they come from memory as a model's weights do.
const MIN_BYTES: usize = 192 << 20;
/// The most bytes that a layer may take.
const MAX_LAYER_BYTES: usize = 768 << 20;
/// The most bytes of the head.
const MAX_HEAD_BYTES: usize = 64 << 20;
/// Tokens in front of the one that is measured, as in `lory bench`.
const PAST: usize = 128;
/// The shortest measurement of steps.
const MIN_DURATION: Duration = Duration::from_millis(400);
/// The shortest measurement of a part of the head.
const MIN_HEAD_DURATION: Duration = Duration::from_millis(100);

/// The result of [`measure_speed`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeasuredSpeed {
    /// Tokens per second of one answer that follows a prompt of 128 tokens.
    pub tokens_per_s: f64,
    /// Bytes of weights that a step read.
    pub bytes: usize,
    /// Duration of the measurement, in seconds.
    pub seconds: f64,
}

/// Measures steps of one token for a model of these sizes in a precision. `None` if a layer alone is too large.
///
/// # Errors
/// The device has not enough memory, or cannot run the model.
pub fn measure_speed(
    device: &Device,
    sizes: &ModelSizes,
    precision: Option<Precision>,
) -> Result<Option<MeasuredSpeed>, ModelError> {
    let Some(part) = measured_part(device, sizes, precision) else {
        return Ok(None);
    };
    let weights = Synthetic::new(sizes, device.backend(), precision, part);
    let model = Model::load(&weights, device.clone())?;
    drop(weights);
    let blocks: Vec<u32> = (0..part.positions.div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut cache = model
        .new_cache(part.layers, blocks.len(), KvType::F16)
        .map_err(no_memory)?;
    let (mut buffers, mut logits) = (Buffers::new(device), device.tensor());
    let span = Span {
        first: 0,
        rows: 1,
        past: PAST,
        blocks: &blocks,
    };
    let token = Batch {
        tokens: &[0],
        spans: &[span],
        runs: &[],
        adapters: &[],
        dropout: &[],
    };
    let (mut search, mut row) = (device.search(), Vec::new());
    let step = time(MIN_DURATION, || {
        model.forward(
            token,
            &mut cache,
            &mut buffers,
            &[0],
            Compute::Int8,
            &mut logits,
        );
        match device.shares_memory() {
            true => logits.read_into(&mut row),
            false => drop(device.candidates(&mut search, &logits, &[(0, 1)])),
        }
    });
    let (mut seconds, mut measured) = (step.median, step.total);
    let all = (sizes.config.layers, sizes.config.vocab_size);
    if (part.layers, part.vocab_size) != all {
        let (x, mut workspace) = (
            device.zeros(1, sizes.config.hidden_size),
            device.workspace(),
        );
        let head = time(MIN_HEAD_DURATION, || {
            model.project_head(&x, &mut workspace, Compute::Int8, &mut logits);
            device.wait();
        });
        let layer = (step.median - head.median).max(0.0) / part.layers as f64;
        let head_parts = all.1 as f64 / part.vocab_size as f64;
        seconds = layer * all.0 as f64 + head.median * head_parts;
        measured += head.total;
    }
    Ok(Some(MeasuredSpeed {
        tokens_per_s: 1.0 / seconds,
        bytes: model.weight_bytes(),
        seconds: measured,
    }))
}

fn no_memory(source: kernels::KernelError) -> ModelError {
    ModelError::Kernel {
        origin: "the measured model".to_owned(),
        name: "keys and values".to_owned(),
        source,
    }
}

/// As many layers as a step must read, and as much of the head as it may; `None` if a layer alone is too large.
fn measured_part(
    device: &Device,
    sizes: &ModelSizes,
    precision: Option<Precision>,
) -> Option<Part> {
    let (config, backend) = (&sizes.config, device.backend());
    let bytes = |name: &str, inputs: usize, outputs: usize| -> usize {
        let dtype = synthetic::type_in_memory(sizes, backend, precision, name, inputs);
        let source = model::source_type(dtype);
        let packed = source.and_then(|source| backend.packed_bytes(source, outputs, inputs));
        packed.map_or(0, |bytes| bytes as usize)
    };
    let layer: usize = Module::ALL
        .into_iter()
        .map(|module| {
            let (inputs, outputs) = module.shape(config);
            bytes(&synthetic::matrix_name(0, module), inputs, outputs)
        })
        .sum();
    if layer == 0 || layer > MAX_LAYER_BYTES {
        return None;
    }
    let head = match config.tie_word_embeddings {
        true => "token_embd.weight",
        false => "output.weight",
    };
    // Of 1024 rows, so that padding counts little.
    let head_row = bytes(head, config.hidden_size, 1024) / 1024;
    let rows = MAX_HEAD_BYTES / head_row.max(1) / 16 * 16;
    Some(Part {
        layers: MIN_BYTES.div_ceil(layer).clamp(1, config.layers),
        vocab_size: config.vocab_size.min(rows.max(16)),
        positions: PAST + BLOCK_TOKENS,
    })
}

/// How long something takes.
struct Timed {
    /// Seconds of the median repetition.
    median: f64,
    /// Seconds of all.
    total: f64,
}

/// Repeats `work` for at least `least` and three times, after one repetition that touches every page.
fn time(least: Duration, mut work: impl FnMut()) -> Timed {
    work();
    let started = Instant::now();
    let mut seconds = Vec::new();
    while started.elapsed() < least || seconds.len() < 3 {
        let from = Instant::now();
        work();
        seconds.push(from.elapsed().as_secs_f64());
    }
    let total = started.elapsed().as_secs_f64();
    seconds.sort_unstable_by(f64::total_cmp);
    Timed {
        median: seconds[seconds.len() / 2],
        total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::gguf::GgmlType;
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

    #[test]
    fn the_measured_model_has_the_weights_of_the_base() {
        let device = Device::open(DeviceChoice::Cpu { threads: Some(1) }).unwrap();
        let mut config = tiny_config();
        // Every part that a family may have.
        (config.qkv_bias, config.qk_norm, config.tie_word_embeddings) = (true, true, false);
        let sizes = ModelSizes::imagined(&config, GgmlType::BF16);
        for precision in Precision::ALL.map(Some) {
            let probe = measure_speed(&device, &sizes, precision).unwrap().unwrap();
            let bytes = sizes.weight_bytes(device.backend(), precision);
            assert_eq!(probe.bytes as u64, bytes, "{precision:?}");
        }
    }
}
