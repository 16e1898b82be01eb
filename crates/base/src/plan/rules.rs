//! The planner's rules.

use kernels::Backend;
use model::{ModelSizes, Precision};

use super::device_plan::{DeviceKind, DevicePlan, MemoryPlan};
use super::display::format_size;
use super::hardware::{Gpu, HardwareProfile, Vendor};
use super::request::PlanRequest;

/// The part of a machine's memory that a base may take; the rest is the system's.
const CPU_SHARE: f64 = 0.85;
/// The part of a card's own memory; its driver and its libraries take some.
const CARD_SHARE: f64 = 0.9;
/// What Apple's GPUs may take of a machine's memory: two thirds up to 32 GiB, three quarters beyond
/// (`recommendedMaxWorkingSetSize` of Metal on machines of these sizes).
const APPLE_SMALL_SHARE: f64 = 2.0 / 3.0;
const APPLE_LARGE_SHARE: f64 = 0.75;
const APPLE_LARGE: u64 = 32 << 30;
/// The part of the memory that the base leaves which training may take, unless a flag sets it. The rest is for the cache of files.
const TRAIN_SHARE: f64 = 0.5;
/// Bytes for training on a machine that does not report its memory.
const TRAIN_DEFAULT: u64 = 4 << 30;
/// Bytes of the program, its tokenizer and its threads.
const PROGRAM: u64 = 96 << 20;
/// A card with this many times the memory of bf16 weights runs bf16.
const AMPLE: u64 = 3;

/// What a rule knows: the model, the request, and the backend that packs the weights.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    sizes: &'a ModelSizes,
    request: &'a PlanRequest,
    backend: Backend,
}

impl Inputs<'_> {
    /// Bytes of the packed weights.
    fn weights(&self, precision: Option<Precision>) -> u64 {
        self.sizes.weight_bytes(self.backend, precision)
    }

    /// What the base takes in a precision (default: the file's types).
    fn memory(&self, precision: Option<Precision>) -> MemoryPlan {
        let (sizes, request) = (self.sizes, self.request);
        let step = sizes.step_bytes(request.rows, request.logit_rows);
        MemoryPlan {
            weights: self.weights(precision),
            kv: request.kv_memory,
            adapters: request.adapter_memory,
            working: PROGRAM + sizes.rope_bytes() + step,
            training: request.train_memory.unwrap_or(0),
            loading: sizes.loading_bytes(precision),
        }
    }

    /// Bytes at the peak in a precision.
    fn peak(&self, precision: Precision) -> u64 {
        self.memory(Some(precision)).peak()
    }
}

fn share(bytes: u64, part: f64) -> u64 {
    (bytes as f64 * part) as u64
}

/// The first precision of `order` that fits, else the last.
fn first_that_fits(order: &[Precision], inputs: Inputs, capacity: u64) -> Precision {
    let fits = |p: &&Precision| inputs.peak(**p) <= capacity;
    *order
        .iter()
        .find(fits)
        .or(order.last())
        .unwrap_or(&Precision::Q4)
}

/// The precision and its reason if the user or the file fixes it; `None` if the planner chooses.
fn fixed_precision(inputs: Inputs) -> Option<(Option<Precision>, String)> {
    let sizes = inputs.sizes;
    if !sizes.is_float() {
        let types: Vec<&str> = sizes.types().iter().map(|dtype| dtype.name()).collect();
        let reason = format!(
            "the file's weights are quantized ({}) and keep their type",
            types.join(", ")
        );
        return Some((None, reason));
    }
    match inputs.request.precision {
        Some(precision) => Some((Some(precision), format!("--precision is {precision}"))),
        None if sizes.types_are_chosen => {
            let reason = "a GGUF file keeps its types unless --precision is set";
            Some((None, reason.to_owned()))
        }
        None => None,
    }
}

fn finish(
    device: DeviceKind,
    runnable: bool,
    precision: Option<Precision>,
    capacity: u64,
    inputs: Inputs,
    mut reasons: Vec<String>,
) -> DevicePlan {
    let mut memory = inputs.memory(precision);
    let fits = memory.peak() <= capacity;
    if !fits {
        reasons.push(format!(
            "the peak needs {}, and the device has {} for it",
            format_size(memory.peak()),
            format_size(capacity)
        ));
    }
    if !runnable {
        reasons.push(
            "no Vulkan or Metal driver offers this card: install its driver; in a container, set NVIDIA_DRIVER_CAPABILITIES=all"
                .to_owned(),
        );
    }
    if inputs.request.train_memory.is_none() {
        memory.training = match capacity {
            u64::MAX => TRAIN_DEFAULT,
            _ => share(capacity.saturating_sub(memory.peak()), TRAIN_SHARE),
        };
    }
    DevicePlan {
        device,
        runnable,
        precision,
        memory,
        capacity,
        free: None,
        fits,
        kv_blocks: inputs.request.kv_memory / inputs.sizes.kv_block_bytes().max(1),
        reasons,
    }
}

/// How the model runs on the CPU.
pub(super) fn on_cpu(
    hardware: &HardwareProfile,
    sizes: &ModelSizes,
    request: &PlanRequest,
) -> DevicePlan {
    let device = DeviceKind::Cpu;
    let inputs = Inputs {
        sizes,
        request,
        backend: device.backend(),
    };
    let capacity = hardware
        .memory
        .map_or(u64::MAX, |bytes| share(bytes, CPU_SHARE));
    let (precision, reasons) = match fixed_precision(inputs) {
        Some((precision, reason)) => (precision, vec![reason]),
        None => {
            let precision = first_that_fits(&[Precision::Q8, Precision::Q4], inputs, capacity);
            (Some(precision), cpu_reasons(inputs, precision, capacity))
        }
    };
    finish(device, true, precision, capacity, inputs, reasons)
}

fn cpu_reasons(inputs: Inputs, precision: Precision, capacity: u64) -> Vec<String> {
    let speed = format!(
        "each token reads all weights once, so smaller weights are faster: {precision} takes {}, float16 would take {}",
        format_size(inputs.weights(Some(precision))),
        format_size(inputs.weights(Some(Precision::F16)))
    );
    let size = match precision {
        Precision::Q8 => "8 bits fit and take half of float16's memory".to_owned(),
        _ => format!(
            "8 bits would need {} at the peak, float16 more, and the device has {}",
            format_size(inputs.peak(Precision::Q8)),
            format_size(capacity)
        ),
    };
    vec![speed, size]
}

/// How the model runs on a GPU.
pub(super) fn on_gpu(
    gpu: &Gpu,
    hardware: &HardwareProfile,
    sizes: &ModelSizes,
    request: &PlanRequest,
) -> DevicePlan {
    let device = DeviceKind::Gpu(gpu.device.as_ref().unwrap_or(&gpu.name).clone());
    let inputs = Inputs {
        sizes,
        request,
        backend: device.backend(),
    };
    let total = gpu.memory.or(hardware.memory.filter(|_| gpu.unified));
    let unknown = total.is_none();
    let total = total.unwrap_or(0);
    let part = match gpu.vendor {
        Vendor::Apple if total > APPLE_LARGE => APPLE_LARGE_SHARE,
        Vendor::Apple => APPLE_SMALL_SHARE,
        _ => CARD_SHARE,
    };
    let capacity = share(total, part);
    let (precision, mut reasons) = match fixed_precision(inputs) {
        Some((precision, reason)) => (precision, vec![reason]),
        None => {
            let (precision, reason) = match gpu.vendor {
                Vendor::Apple => on_apple(inputs, total, capacity),
                _ => on_card(inputs, capacity),
            };
            (Some(precision), vec![reason])
        }
    };
    if unknown {
        reasons.push("the system does not report how much memory it has".to_owned());
    }
    if gpu.software {
        reasons
            .push("it computes on the CPU, slower than --device cpu: use it for tests".to_owned());
    }
    let runnable = gpu.device.is_some();
    let shared = hardware.available.filter(|_| gpu.unified);
    let free = [gpu.free, shared.map(|shared| shared.bytes)];
    DevicePlan {
        free: free.into_iter().flatten().min(),
        ..finish(device, runnable, precision, capacity, inputs, reasons)
    }
}

/// 4 bits on a card, unless it has memory to spare.
fn on_card(inputs: Inputs, capacity: u64) -> (Precision, String) {
    let bf16 = inputs.peak(Precision::Bf16);
    if bf16.saturating_mul(AMPLE) <= capacity {
        let reason = format!(
            "bf16 takes {} of {}; 4 bits would cost quality and save memory that is not needed",
            format_size(bf16),
            format_size(capacity)
        );
        return (Precision::Bf16, reason);
    }
    let reason = format!(
        "4 bits on a card: {} of weights, and the rest of its {} for keys, values and adapters",
        format_size(inputs.weights(Some(Precision::Q4))),
        format_size(capacity)
    );
    (Precision::Q4, reason)
}

/// Float32 on Apple's GPUs with more than 32 GiB if it fits, else the most exact precision that fits.
fn on_apple(inputs: Inputs, total: u64, capacity: u64) -> (Precision, String) {
    let f32_peak = inputs.peak(Precision::F32);
    if total > APPLE_LARGE && f32_peak <= capacity {
        let reason = format!(
            "float32 on Apple's GPU with more than 32 GiB: it takes {} of the {} that the GPU may use",
            format_size(f32_peak),
            format_size(capacity)
        );
        return (Precision::F32, reason);
    }
    let order = [Precision::Bf16, Precision::Q8, Precision::Q4];
    let precision = first_that_fits(&order, inputs, capacity);
    let reason = if total > APPLE_LARGE {
        format!(
            "float32 needs {}, and the GPU may use {} of {}; {precision} is the most exact precision that fits",
            format_size(f32_peak),
            format_size(capacity),
            format_size(total)
        )
    } else {
        format!(
            "with up to 32 GiB not float32, but the most exact precision that fits into the {} that the GPU may use",
            format_size(capacity)
        )
    };
    (precision, reason)
}

/// A size as flags take it.
fn flag(bytes: u64) -> String {
    format_size(bytes).replace(' ', "")
}

/// Which settings would make the plan of `device` fit into `available` bytes.
pub(super) fn advice(
    device: &DeviceKind,
    sizes: &ModelSizes,
    request: &PlanRequest,
    precision: Option<Precision>,
    available: u64,
) -> String {
    let inputs = Inputs {
        sizes,
        request,
        backend: device.backend(),
    };
    if sizes.is_float() {
        let smaller = Precision::ALL
            .into_iter()
            .filter(|p| precision.is_none_or(|now| *p < now));
        let fits = |p: &Precision| inputs.peak(*p) <= available;
        if let Some(smaller) = smaller.into_iter().find(fits) {
            let needs = inputs.peak(smaller);
            return format!("--precision {smaller} would need {}", format_size(needs));
        }
    }
    let least = PlanRequest {
        kv_memory: sizes.kv_block_bytes().max(32 << 20),
        adapter_memory: 16 << 20,
        train_memory: Some(0),
        ..*request
    };
    let lowest = sizes.is_float().then_some(Precision::Q4);
    let with_precision = match sizes.is_float() && precision != lowest {
        true => " with --precision q4",
        false => "",
    };
    let inputs = Inputs {
        request: &least,
        ..inputs
    };
    let needs = inputs.memory(lowest).peak();
    if needs <= available {
        let training = match request.train_memory {
            None | Some(0) => "",
            Some(_) => ", without --train-memory",
        };
        return format!(
            "--kv-memory {} and --adapter-memory {}{with_precision}{training} would need {}",
            flag(least.kv_memory),
            flag(least.adapter_memory),
            format_size(needs)
        );
    }
    format!(
        "no setting makes it fit: use a smaller base, or give it {}",
        format_size(needs)
    )
}
