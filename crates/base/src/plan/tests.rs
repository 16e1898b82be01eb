//! The planner on a table of machines, with Llama 3.1 8B.

use formats::config::{ModelConfig, RopeStyle};
use formats::gguf::GgmlType;

use kernels::Backend;
use model::Precision;

use super::*;
use crate::memory::{AvailableMemory, MemoryLimit};

const GIB: u64 = 1 << 30;
const GB: u64 = 1_000_000_000;

fn llama_8b() -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        hidden_size: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        intermediate_size: 14336,
        vocab_size: 128_256,
        context_length: 131_072,
        rope_theta: 500_000.0,
        rope_style: RopeStyle::HalfSplit,
        rope_freq_factors: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: false,
        qkv_bias: false,
        qk_norm: false,
    }
}

fn machine(memory: u64, gpus: Vec<Gpu>) -> HardwareProfile {
    HardwareProfile {
        threads: 8,
        instruction_sets: vec!["scalar"],
        instruction_set: "scalar",
        memory: Some(memory),
        available: Some(AvailableMemory {
            bytes: memory / 10 * 9,
            limit: MemoryLimit::Machine,
        }),
        gpus,
    }
}

fn gpu(vendor: Vendor, memory: Option<u64>) -> Gpu {
    Gpu {
        name: format!("{vendor:?}"),
        vendor,
        memory,
        free: None,
        unified: vendor == Vendor::Apple,
        device: None,
        driver: String::new(),
        software: false,
    }
}

#[test]
fn precision_is_chosen_by_the_devices_memory() {
    use Precision::{Bf16, F32, Q4, Q8};
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let card = |memory| vec![gpu(Vendor::Nvidia, Some(memory))];
    let apple = || vec![gpu(Vendor::Apple, None)];
    // (machine, memory, GPUs, precision on the CPU and whether it fits, the same on the GPU, a part of the GPU's reason)
    type Row = (
        &'static str,
        u64,
        Vec<Gpu>,
        (Precision, bool),
        Option<(Precision, bool)>,
        &'static str,
    );
    let rows: Vec<Row> = vec![
        ("a 24 GB box", 24 * GB, vec![], (Q8, true), None, ""),
        ("an 8 GB laptop", 8 * GIB, vec![], (Q4, true), None, ""),
        ("a 4 GB board", 4 * GIB, vec![], (Q4, false), None, ""),
        // Float32 with more than 32 GiB, if it fits.
        (
            "Apple 16 GiB",
            16 * GIB,
            apple(),
            (Q8, true),
            Some((Q8, true)),
            "up to 32 GiB not float32",
        ),
        (
            "Apple 36 GiB",
            36 * GIB,
            apple(),
            (Q8, true),
            Some((Bf16, true)),
            "float32 needs",
        ),
        (
            "Apple 64 GiB",
            64 * GIB,
            apple(),
            (Q8, true),
            Some((F32, true)),
            "more than 32 GiB",
        ),
        // 4 bits on a card, unless bf16 fits several times.
        (
            "NVIDIA 8 GB",
            32 * GB,
            card(8 * GIB),
            (Q8, true),
            Some((Q4, true)),
            "4 bits on a card",
        ),
        (
            "NVIDIA 24 GB",
            64 * GB,
            card(24 * GIB),
            (Q8, true),
            Some((Q4, true)),
            "4 bits on a card",
        ),
        (
            "NVIDIA 80 GB",
            128 * GB,
            card(80 * GIB),
            (Q8, true),
            Some((Bf16, true)),
            "that is not needed",
        ),
        (
            "NVIDIA 4 GB",
            32 * GB,
            card(4 * GIB),
            (Q8, true),
            Some((Q4, false)),
            "4 bits on a card",
        ),
    ];
    for (what, memory, gpus, cpu, on_gpu, reason) in rows {
        let plan = plan(&machine(memory, gpus), &sizes, &PlanRequest::default());
        let found = (plan.chosen.precision.unwrap(), plan.chosen.fits);
        assert_eq!(found, cpu, "{what}, on the CPU: {:#?}", plan.chosen);
        assert_eq!(plan.chosen.device, DeviceKind::Cpu, "{what}");
        // The reasons compare with float16.
        assert!(
            plan.chosen.reasons.iter().any(|r| r.contains("float16")),
            "{what}: {:?}",
            plan.chosen.reasons
        );
        let other = plan.others.first();
        let found = other.map(|plan| (plan.precision.unwrap(), plan.fits));
        assert_eq!(found, on_gpu, "{what}, on the GPU: {other:#?}");
        if let Some(other) = other {
            assert!(!other.runnable, "{what}");
            assert!(
                other.reasons[0].contains(reason)
                    && other
                        .reasons
                        .last()
                        .unwrap()
                        .contains("no Vulkan or Metal driver offers this card"),
                "{what}: {:?}",
                other.reasons
            );
        }
        for one in std::iter::once(&plan.chosen).chain(&plan.others) {
            assert_eq!(one.fits, one.memory.peak() <= one.capacity, "{what}");
        }
    }
}

#[test]
fn sizes_follow_from_the_configuration() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let (matrices, vocabulary) = (6_979_321_856u64, 2 * 128_256 * 4096u64);
    assert_eq!(sizes.parameters(), matrices + vocabulary);
    let bytes = |precision| sizes.weight_bytes(Backend::Cpu, Some(precision));
    assert_eq!(bytes(Precision::F32), 4 * sizes.parameters());
    assert_eq!(bytes(Precision::Bf16), 2 * sizes.parameters());
    assert_eq!(bytes(Precision::Q8), sizes.parameters() / 32 * 34);
    assert_eq!(
        bytes(Precision::Q4),
        matrices / 32 * 20 + vocabulary / 32 * 34
    );
    assert_eq!(
        sizes.weight_bytes(Backend::Cpu, None),
        bytes(Precision::Bf16)
    );
    assert_eq!(sizes.kv_token_bytes(), 128 << 10);
    assert_eq!(sizes.loading_bytes(Some(Precision::Bf16)), 0);
    assert_eq!(
        sizes.loading_bytes(Some(Precision::Q4)),
        128_256 * 4096 / 32 * 34
    );
}

#[test]
fn requested_precision_is_used_and_quantized_weights_keep_their_type() {
    let machine = machine(24 * GB, vec![gpu(Vendor::Nvidia, Some(24 * GIB))]);
    let float = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let request = PlanRequest {
        precision: Some(Precision::F16),
        ..PlanRequest::default()
    };
    let plan16 = plan(&machine, &float, &request);
    assert_eq!(plan16.chosen.precision, Some(Precision::F16));
    assert_eq!(plan16.others[0].precision, Some(Precision::F16));
    assert!(plan16.chosen.reasons[0].contains("--precision"));
    let quantized = ModelSizes::imagined(&llama_8b(), GgmlType::Q4_K);
    for request in [request, PlanRequest::default()] {
        let kept = plan(&machine, &quantized, &request);
        assert_eq!(kept.chosen.precision, None);
        assert!(kept.chosen.reasons[0].contains("quantized (Q4_K)"));
    }
}

#[test]
fn precision_does_not_depend_on_free_memory() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let mut busy = machine(24 * GB, vec![]);
    busy.available = Some(AvailableMemory {
        bytes: 6 * GIB,
        limit: MemoryLimit::Cgroup,
    });
    let request = PlanRequest::default();
    let plan = plan(&busy, &sizes, &request);
    assert_eq!(plan.chosen.precision, Some(Precision::Q8));
    // A plan that does not fit into free memory is refused, with numbers and a setting that fits.
    let message = plan.check(&busy, &sizes, &request).unwrap_err().to_string();
    for part in [
        " GiB needed and 6.0 GiB left under the control group's limit",
        "weights 7.9 GiB (q8)",
        "keys and values 512 MiB",
        "--precision q4",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    busy.available = None;
    plan.check(&busy, &sizes, &request).unwrap();
}

#[test]
fn named_gpu_is_checked_against_its_own_free_memory() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let request = PlanRequest {
        train_memory: Some(0),
        ..PlanRequest::default()
    };
    let check = |card: Gpu, memory: u64| {
        let machine = machine(memory, vec![]);
        plan_on(&card, &machine, &sizes, &request).check(&machine, &sizes, &request)
    };
    let card = |free| Gpu {
        free,
        device: Some("vulkan:0".to_owned()),
        ..gpu(Vendor::Nvidia, Some(24 << 30))
    };
    // The machine's own memory does not count.
    check(card(None), 4 << 30).unwrap();
    check(card(Some(20 << 30)), 4 << 30).unwrap();
    let message = check(card(Some(2 << 30)), 64 << 30)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("2.0 GiB free on this GPU now"),
        "{message}"
    );
    let message = check(gpu(Vendor::Nvidia, Some(4 << 30)), 64 << 30)
        .unwrap_err()
        .to_string();
    assert!(message.contains("usable on this GPU"), "{message}");
    // One that shares the machine's memory has no more than that.
    let shares = Gpu {
        unified: true,
        ..card(None)
    };
    let message = check(shares, 4 << 30).unwrap_err().to_string();
    assert!(message.contains("free on this GPU now"), "{message}");
}

#[test]
fn advice_is_a_setting_that_fits() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let request = PlanRequest {
        kv_memory: 20 * GIB,
        precision: Some(Precision::Q4),
        ..PlanRequest::default()
    };
    let machine = machine(24 * GB, vec![]);
    let plan = plan(&machine, &sizes, &request);
    let message = plan
        .check(&machine, &sizes, &request)
        .unwrap_err()
        .to_string();
    assert!(message.contains("--kv-memory 32MiB"), "{message}");
    let mut small = machine.clone();
    small.available = Some(AvailableMemory {
        bytes: GIB,
        limit: MemoryLimit::Machine,
    });
    let message = plan
        .check(&small, &sizes, &request)
        .unwrap_err()
        .to_string();
    assert!(message.contains("no setting makes it fit"), "{message}");
}

#[test]
fn training_takes_half_of_what_the_base_leaves_unless_it_is_set() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let machine = machine(24 * GB, vec![]);
    let with = |train_memory| {
        let request = PlanRequest {
            train_memory,
            ..PlanRequest::default()
        };
        let plan = plan(&machine, &sizes, &request);
        (plan.clone(), plan.check(&machine, &sizes, &request))
    };
    let (none, _) = with(Some(0));
    let (chosen, _) = with(None);
    let left = chosen.chosen.capacity - none.chosen.memory.peak();
    assert_eq!(chosen.chosen.memory.training, left / 2);
    assert_eq!(
        chosen.chosen.memory.peak(),
        none.chosen.memory.peak() + left / 2
    );
    assert!(
        chosen.line().contains(", training up to "),
        "{}",
        chosen.line()
    );
    assert!(!none.line().contains("training"), "{}", none.line());
    // What is set must fit, with the base.
    let (set, check) = with(Some(40 * GIB));
    assert!(!set.chosen.fits);
    let message = check.unwrap_err().to_string();
    assert!(message.contains("training up to 40.0 GiB"), "{message}");
    assert!(message.contains("without --train-memory"), "{message}");
}

#[test]
fn chosen_training_memory_refuses_no_start() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let mut busy = machine(64 * GB, vec![]);
    busy.available = Some(AvailableMemory {
        bytes: 10 * GIB,
        limit: MemoryLimit::Machine,
    });
    let request = PlanRequest::default();
    let plan = plan(&busy, &sizes, &request);
    assert!(plan.chosen.memory.peak() > 20 * GIB);
    plan.check(&busy, &sizes, &request).unwrap();
}

/// The device that is chosen and why, with speeds by device.
fn chosen(
    hardware: &HardwareProfile,
    request: &PlanRequest,
    speeds: &[(&str, f64)],
) -> (String, Option<String>) {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let plan = plan_auto(hardware, &sizes, request, |plan| {
        let device = plan.device.to_string();
        let found = speeds.iter().find(|(name, _)| *name == device);
        found
            .map(|(_, speed)| *speed)
            .ok_or("the driver refused".to_owned())
    });
    (plan.chosen.device.to_string(), plan.why)
}

#[test]
fn auto_chooses_the_gpu_that_is_estimated_to_be_faster_and_has_the_reason_in_the_line() {
    let card = |name: &str, memory| Gpu {
        device: Some(name.to_owned()),
        ..gpu(Vendor::Nvidia, Some(memory))
    };
    let request = PlanRequest::default();
    let two = machine(
        64 * GB,
        vec![card("vulkan:0", 24 * GIB), card("vulkan:1", 24 * GIB)],
    );
    let speeds = [("vulkan:0", 70.0), ("vulkan:1", 90.0), ("cpu", 8.0)];
    let (device, why) = chosen(&two, &request, &speeds);
    assert_eq!(device, "vulkan:1");
    assert_eq!(
        why.unwrap(),
        "vulkan:1 answers at about 90.0 tokens/s, cpu at 8.0; training needs --device cpu"
    );
    // A slow one, one that the driver refuses, and one without memory.
    let slow = [("vulkan:0", 6.0), ("cpu", 8.0)];
    let (device, why) = chosen(&two, &request, &slow);
    assert_eq!(device, "cpu");
    assert_eq!(
        why.unwrap(),
        "not vulkan:1: the driver refused; vulkan:0 answers at about 6.0 tokens/s, cpu at 8.0"
    );
    let small = machine(64 * GB, vec![card("vulkan:0", GIB)]);
    let (device, why) = chosen(&small, &request, &speeds);
    assert_eq!(
        (&*device, &*why.unwrap()),
        ("cpu", "not vulkan:0: its free memory is too small")
    );
    let taken = Gpu {
        free: Some(GIB),
        ..card("vulkan:0", 24 * GIB)
    };
    assert_eq!(
        chosen(&machine(64 * GB, vec![taken]), &request, &speeds).0,
        "cpu"
    );
    let no_driver = machine(64 * GB, vec![gpu(Vendor::Nvidia, Some(24 * GIB))]);
    let (device, why) = chosen(&no_driver, &request, &speeds);
    assert_eq!(device, "cpu");
    assert_eq!(
        why.unwrap(),
        "not Nvidia: no Vulkan or Metal driver offers it"
    );
    let integrated = Gpu {
        unified: true,
        ..card("vulkan:0", 24 * GIB)
    };
    assert_eq!(
        chosen(&machine(64 * GB, vec![integrated]), &request, &speeds).0,
        "cpu"
    );
    // What must train stays on the CPU, and what does not fit there leaves it.
    let trains = PlanRequest {
        trains: true,
        ..request
    };
    assert_eq!(chosen(&two, &trains, &speeds).0, "cpu");
    let little = machine(4 * GB, vec![card("vulkan:0", 24 * GIB)]);
    let (device, why) = chosen(&little, &request, &speeds);
    assert_eq!(device, "vulkan:0");
    assert!(why.unwrap().contains("cpu: does not fit"));
}

#[test]
fn auto_never_chooses_software_and_measures_nothing_for_it() {
    let software = Gpu {
        device: Some("vulkan:0".to_owned()),
        software: true,
        ..gpu(Vendor::Other, Some(64 * GIB))
    };
    let speeds = [("vulkan:0", 1e6), ("cpu", 1.0)];
    let hardware = machine(64 * GB, vec![software]);
    let (device, why) = chosen(&hardware, &PlanRequest::default(), &speeds);
    assert_eq!((&*device, why), ("cpu", None));
}
