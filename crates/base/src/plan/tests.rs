//! The planner on a table of machines, with Llama 3.1 8B as what most teams bring.

use formats::config::{ModelConfig, RopeStyle};
use formats::gguf::GgmlType;

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
        unified: vendor == Vendor::Apple,
    }
}

#[test]
fn the_table_of_machines() {
    use Precision::{Bf16, F32, Q4, Q8};
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let card = |memory| vec![gpu(Vendor::Nvidia, Some(memory))];
    let apple = || vec![gpu(Vendor::Apple, None)];
    // (what, memory, GPUs, precision on the processor and whether it fits, the same on the GPU, a word of the GPU's reason)
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
        // Float32 with more than 32 GiB: kept where it fits, beaten by arithmetic where it does not.
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
        // 4 bits on a card: kept, and beaten where memory is of no account.
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
            "what nobody needs",
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
        assert_eq!(found, cpu, "{what}, on the processor: {:#?}", plan.chosen);
        assert_eq!(plan.chosen.device, DeviceKind::Cpu, "{what}");
        // Float16 where memory is tight: beaten, in words.
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
                        .contains("not run on this device yet"),
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
fn sizes_are_those_of_the_arithmetic() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let (matrices, vocabulary) = (6_979_321_856u64, 2 * 128_256 * 4096u64);
    assert_eq!(sizes.parameters(), matrices + vocabulary);
    let bytes = |precision| sizes.weight_bytes(Some(precision));
    assert_eq!(bytes(Precision::F32), 4 * sizes.parameters());
    assert_eq!(bytes(Precision::Bf16), 2 * sizes.parameters());
    assert_eq!(bytes(Precision::Q8), sizes.parameters() / 32 * 34);
    assert_eq!(
        bytes(Precision::Q4),
        matrices / 32 * 20 + vocabulary / 32 * 34
    );
    assert_eq!(sizes.weight_bytes(None), bytes(Precision::Bf16));
    assert_eq!(sizes.kv_token_bytes(), 128 << 10);
    assert_eq!(sizes.loading_bytes(Some(Precision::Bf16)), 0);
    assert_eq!(
        sizes.loading_bytes(Some(Precision::Q4)),
        128_256 * 4096 / 32 * 34
    );
}

#[test]
fn what_is_asked_for_is_taken_and_what_is_quantized_is_kept() {
    let machine = machine(24 * GB, vec![gpu(Vendor::Nvidia, Some(24 * GIB))]);
    let float = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let demand = PlanRequest {
        precision: Some(Precision::F16),
        ..PlanRequest::default()
    };
    let plan16 = plan(&machine, &float, &demand);
    assert_eq!(plan16.chosen.precision, Some(Precision::F16));
    assert_eq!(plan16.others[0].precision, Some(Precision::F16));
    assert!(plan16.chosen.reasons[0].contains("--precision"));
    let quantized = ModelSizes::imagined(&llama_8b(), GgmlType::Q4_K);
    for demand in [demand, PlanRequest::default()] {
        let kept = plan(&machine, &quantized, &demand);
        assert_eq!(kept.chosen.precision, None);
        assert!(kept.chosen.reasons[0].contains("quantized (Q4_K)"));
    }
}

#[test]
fn the_choice_does_not_depend_on_what_is_free_now() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let mut busy = machine(24 * GB, vec![]);
    busy.available = Some(AvailableMemory {
        bytes: 6 * GIB,
        limit: MemoryLimit::Cgroup,
    });
    let demand = PlanRequest::default();
    let plan = plan(&busy, &sizes, &demand);
    assert_eq!(plan.chosen.precision, Some(Precision::Q8));
    // But what does not fit now is refused, with numbers and a way out.
    let said = plan.check(&busy, &sizes, &demand).unwrap_err().to_string();
    for part in [
        " GiB needed and 6.0 GiB left under the control group's limit",
        "weights 7.9 GiB (q8)",
        "keys and values 512 MiB",
        "--precision q4",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    busy.available = None;
    plan.check(&busy, &sizes, &demand).unwrap();
}

#[test]
fn the_way_out_is_one() {
    let sizes = ModelSizes::imagined(&llama_8b(), GgmlType::BF16);
    let demand = PlanRequest {
        kv_memory: 20 * GIB,
        precision: Some(Precision::Q4),
        ..PlanRequest::default()
    };
    let machine = machine(24 * GB, vec![]);
    let plan = plan(&machine, &sizes, &demand);
    let said = plan
        .check(&machine, &sizes, &demand)
        .unwrap_err()
        .to_string();
    assert!(said.contains("--kv-memory 32MiB"), "{said}");
    let mut small = machine.clone();
    small.available = Some(AvailableMemory {
        bytes: GIB,
        limit: MemoryLimit::Machine,
    });
    let said = plan.check(&small, &sizes, &demand).unwrap_err().to_string();
    assert!(said.contains("no setting makes it fit"), "{said}");
}
