//! The planner's rules.

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
/// The program, its tokenizer and its threads.
const PROGRAM: u64 = 96 << 20;
/// A card with so many times the memory that bf16 takes loses nothing by it.
const AMPLE: u64 = 3;

fn memory(sizes: &ModelSizes, demand: &PlanRequest, precision: Option<Precision>) -> MemoryPlan {
    MemoryPlan {
        weights: sizes.weight_bytes(precision),
        kv: demand.kv_memory,
        adapters: demand.adapter_memory,
        working: PROGRAM + sizes.rope_bytes() + sizes.step_bytes(demand.rows, demand.logit_rows),
        loading: sizes.loading_bytes(precision),
    }
}

fn share(bytes: u64, part: f64) -> u64 {
    (bytes as f64 * part) as u64
}

/// The first precision of `order` that fits, else the last.
fn first_that_fits(
    order: &[Precision],
    sizes: &ModelSizes,
    demand: &PlanRequest,
    capacity: u64,
) -> Precision {
    let fits = |p: &&Precision| memory(sizes, demand, Some(**p)).peak() <= capacity;
    *order
        .iter()
        .find(fits)
        .or(order.last())
        .unwrap_or(&Precision::Q4)
}

/// The precision and its reason if the user or the file fixes it; `None` if the planner chooses.
fn given(sizes: &ModelSizes, demand: &PlanRequest) -> Option<(Option<Precision>, String)> {
    if !sizes.is_float() {
        let types: Vec<&str> = sizes.types().iter().map(|dtype| dtype.name()).collect();
        let kept = format!(
            "the file's weights are quantized ({}), and their values are kept",
            types.join(", ")
        );
        return Some((None, kept));
    }
    match demand.precision {
        Some(asked) => Some((Some(asked), format!("{asked} is what --precision asks for"))),
        None if sizes.types_are_chosen => {
            let kept = "a GGUF file's types are kept where --precision does not ask for others";
            Some((None, kept.to_owned()))
        }
        None => None,
    }
}

fn finish(
    device: DeviceKind,
    runnable: bool,
    precision: Option<Precision>,
    capacity: u64,
    sizes: &ModelSizes,
    demand: &PlanRequest,
    mut reasons: Vec<String>,
) -> DevicePlan {
    let memory = memory(sizes, demand, precision);
    let fits = memory.peak() <= capacity;
    if !fits {
        reasons.push(format!(
            "{} are needed at the peak, and {} are there for it",
            format_size(memory.peak()),
            format_size(capacity)
        ));
    }
    if !runnable {
        reasons.push("Lory does not run on this device yet".to_owned());
    }
    DevicePlan {
        device,
        runnable,
        precision,
        memory,
        capacity,
        fits,
        kv_blocks: demand.kv_memory / sizes.kv_block_bytes().max(1),
        reasons,
    }
}

/// How the model runs on the processor.
pub(super) fn on_cpu(
    hardware: &HardwareProfile,
    sizes: &ModelSizes,
    demand: &PlanRequest,
) -> DevicePlan {
    let capacity = hardware
        .memory
        .map_or(u64::MAX, |bytes| share(bytes, CPU_SHARE));
    let (precision, reasons) = match given(sizes, demand) {
        Some((precision, reason)) => (precision, vec![reason]),
        None => {
            let order = [Precision::Q8, Precision::Q4];
            let precision = first_that_fits(&order, sizes, demand, capacity);
            let f16 = sizes.weight_bytes(Some(Precision::F16));
            let held = sizes.weight_bytes(Some(precision));
            let mut reasons = vec![format!(
                "a token reads all weights once, so what they take is how fast it goes: {precision} takes {}, f16 would take {}",
                format_size(held),
                format_size(f16)
            )];
            reasons.push(match precision {
                Precision::Q8 => {
                    "8 bits take half of what float16 takes and fit, so float16 is not needed where memory is tight"
                        .to_owned()
                }
                _ => format!(
                    "8 bits would need {} at the peak, and {} are there; 4 bits fit where neither they nor float16 do",
                    format_size(memory(sizes, demand, Some(Precision::Q8)).peak()),
                    format_size(capacity)
                ),
            });
            (Some(precision), reasons)
        }
    };
    finish(
        DeviceKind::Cpu,
        true,
        precision,
        capacity,
        sizes,
        demand,
        reasons,
    )
}

/// How the model would run on a graphics card.
pub(super) fn on_gpu(
    gpu: &Gpu,
    hardware: &HardwareProfile,
    sizes: &ModelSizes,
    demand: &PlanRequest,
) -> DevicePlan {
    let total = gpu.memory.or(hardware.memory.filter(|_| gpu.unified));
    let unknown = total.is_none();
    let total = total.unwrap_or(0);
    let part = match gpu.vendor {
        Vendor::Apple if total > APPLE_LARGE => APPLE_LARGE_SHARE,
        Vendor::Apple => APPLE_SMALL_SHARE,
        _ => CARD_SHARE,
    };
    let capacity = share(total, part);
    let (precision, mut reasons) = match given(sizes, demand) {
        Some((precision, reason)) => (precision, vec![reason]),
        None => {
            let (precision, reason) = match gpu.vendor {
                Vendor::Apple => on_apple(sizes, demand, total, capacity),
                _ => on_card(sizes, demand, capacity),
            };
            (Some(precision), vec![reason])
        }
    };
    if unknown {
        reasons.push("the system does not say how much memory it has".to_owned());
    }
    finish(
        DeviceKind::Gpu(gpu.name.clone()),
        false,
        precision,
        capacity,
        sizes,
        demand,
        reasons,
    )
}

/// 4 bits on a card, unless it has memory to spare.
fn on_card(sizes: &ModelSizes, demand: &PlanRequest, capacity: u64) -> (Precision, String) {
    let bf16 = memory(sizes, demand, Some(Precision::Bf16)).peak();
    if bf16.saturating_mul(AMPLE) <= capacity {
        let reason = format!(
            "bf16 takes {} of {}, so 4 bits would save what nobody needs and cost quality",
            format_size(bf16),
            format_size(capacity)
        );
        return (Precision::Bf16, reason);
    }
    let q4 = sizes.weight_bytes(Some(Precision::Q4));
    let reason = format!(
        "4 bits on a card: {} of weights, and the rest of its {} for keys, values and adapters",
        format_size(q4),
        format_size(capacity)
    );
    (Precision::Q4, reason)
}

/// Float32 on Apple's GPUs with more than 32 GiB where it fits, else the most exact one that does.
fn on_apple(
    sizes: &ModelSizes,
    demand: &PlanRequest,
    total: u64,
    capacity: u64,
) -> (Precision, String) {
    let f32_peak = memory(sizes, demand, Some(Precision::F32)).peak();
    if total > APPLE_LARGE && f32_peak <= capacity {
        let reason = format!(
            "float32 on Apple's GPU with more than 32 GiB: {} of the {} that it may take",
            format_size(f32_peak),
            format_size(capacity)
        );
        return (Precision::F32, reason);
    }
    let order = [Precision::Bf16, Precision::Q8, Precision::Q4];
    let precision = first_that_fits(&order, sizes, demand, capacity);
    let reason = if total > APPLE_LARGE {
        format!(
            "float32 needs {} of the {} that the GPU may take of {}; {precision} is the most exact one that fits",
            format_size(f32_peak),
            format_size(capacity),
            format_size(total)
        )
    } else {
        format!(
            "with up to 32 GiB not float32 but the most exact one that fits into the {} that the GPU may take",
            format_size(capacity)
        )
    };
    (precision, reason)
}

/// A size as flags take it.
fn flag(bytes: u64) -> String {
    format_size(bytes).replace(' ', "")
}

/// What would make it fit into `available` bytes.
pub(super) fn advice(
    sizes: &ModelSizes,
    demand: &PlanRequest,
    precision: Option<Precision>,
    available: u64,
) -> String {
    if sizes.is_float() {
        let smaller = Precision::ALL
            .into_iter()
            .filter(|p| precision.is_none_or(|now| *p < now));
        let fits = |p: &Precision| memory(sizes, demand, Some(*p)).peak() <= available;
        if let Some(smaller) = smaller.into_iter().find(fits) {
            let needs = memory(sizes, demand, Some(smaller)).peak();
            return format!("--precision {smaller} would need {}", format_size(needs));
        }
    }
    let least = PlanRequest {
        kv_memory: sizes.kv_block_bytes().max(32 << 20),
        adapter_memory: 16 << 20,
        ..*demand
    };
    let lowest = if sizes.is_float() {
        Some(Precision::Q4)
    } else {
        None
    };
    let precision = if sizes.is_float() && precision != lowest {
        " with --precision q4"
    } else {
        ""
    };
    let needs = memory(sizes, &least, lowest).peak();
    if needs <= available {
        return format!(
            "--kv-memory {} and --adapter-memory {}{precision} would need {}",
            flag(least.kv_memory),
            flag(least.adapter_memory),
            format_size(needs)
        );
    }
    format!(
        "no setting makes it fit: take a smaller base, or give it {}",
        format_size(needs)
    )
}
