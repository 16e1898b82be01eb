//! PEFT folders are written and read back, and errors name the file and the field or tensor.

mod gguf;
mod refused;

use std::collections::BTreeMap;

use formats::config::{ModelConfig, RopeStyle};
use formats::peft::{Adapter, AdapterConfig, Dtype, LoraPair, Module, TargetModules, content_hash};
use formats::safetensors::read;
use proptest::prelude::*;
use serde_json::{Value, json};

const PREFIX: &str = "base_model.model.model.layers";

fn model() -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        hidden_size: 8,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        intermediate_size: 12,
        vocab_size: 10,
        context_length: 32,
        rope_theta: 10_000.0,
        rope_style: RopeStyle::Interleaved,
        rope_freq_factors: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

fn pair(layer: usize, module: Module, rank: usize, scale: f32) -> LoraPair {
    let (inputs, outputs) = module.shape(&model());
    let values = |count: usize| (0..count).map(|index| index as f32 * 0.25 - 1.0).collect();
    LoraPair {
        layer,
        module,
        rank,
        inputs,
        outputs,
        scale,
        a: values(rank * inputs),
        b: values(rank * outputs),
    }
}

fn adapter() -> Adapter {
    let modules = [Module::Q, Module::Down];
    let pairs = (0..3)
        .flat_map(|layer| modules.map(|module| pair(layer, module, 2, 2.0)))
        .collect();
    let mut config = AdapterConfig::new(2, 4.0, &modules);
    config.base_model_name_or_path = Some("some/base".to_owned());
    Adapter {
        config,
        pairs,
        dtype: Dtype::F32,
        metadata: BTreeMap::new(),
        base_tensors: Vec::new(),
    }
}

#[test]
fn folder_is_written_as_peft_does_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut adapter = adapter();
    adapter
        .metadata
        .insert("lory.base".to_owned(), "abc".to_owned());
    adapter
        .write(folder.path(), Dtype::F32, "# An adapter\n")
        .unwrap();
    assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
    adapter.check(&model()).unwrap();

    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors"
        ]
    );
    assert_eq!(
        std::fs::read_to_string(folder.path().join("README.md")).unwrap(),
        "# An adapter\n"
    );

    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join(names[1].as_str())).unwrap())
            .unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["inference_mode"], true);
    assert_eq!(config["base_model_name_or_path"], "some/base");
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&json!(2), &json!(4))
    );
    assert_eq!(config["target_modules"], json!(["down_proj", "q_proj"]));
    assert_eq!(
        (&config["rank_pattern"], &config["bias"]),
        (&json!({}), &json!("none"))
    );

    let weights = read(&std::fs::read(folder.path().join(names[2].as_str())).unwrap()).unwrap();
    assert_eq!(weights.metadata["format"], "pt");
    assert_eq!(weights.tensors.len(), 12);
    let name = format!("{PREFIX}.2.mlp.down_proj.lora_B.weight");
    assert_eq!(weights.tensors[&name].shape, [8, 2]);
}

#[test]
fn bytes_and_hash_are_stable() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut adapter = adapter();
    for index in 0..20 {
        adapter
            .metadata
            .insert(format!("key {index}"), "value".to_owned());
    }
    adapter.write(one.path(), Dtype::BF16, "a").unwrap();
    adapter.pairs.reverse();
    adapter.write(two.path(), Dtype::BF16, "b").unwrap();
    let hash = content_hash(one.path()).unwrap();
    assert_eq!(hash, content_hash(two.path()).unwrap());
    assert_eq!(hash.len(), 64);
    adapter.pairs[0].a[0] += 1.0;
    adapter.write(two.path(), Dtype::BF16, "b").unwrap();
    assert_ne!(hash, content_hash(two.path()).unwrap());
    // Pairs come back sorted.
    let order: Vec<_> = Adapter::read(two.path())
        .unwrap()
        .pairs
        .iter()
        .map(|pair| (pair.layer, pair.module))
        .collect();
    assert!(order.is_sorted());
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let round = |bits: u32| Dtype::BF16.round(f32::from_bits(bits)).to_bits();
    assert_eq!(round(0x3f80_7fff), 0x3f80_0000); // below the middle
    assert_eq!(round(0x3f80_8000), 0x3f80_0000); // the middle, down to even
    assert_eq!(round(0x3f81_8000), 0x3f82_0000); // the middle, up to even
    assert_eq!(round(0x3f80_8001), 0x3f81_0000); // above the middle
    assert_eq!(round(0x8000_0001), 0x8000_0000); // the smallest, to a signed zero
    let folder = tempfile::tempdir().unwrap();
    let mut adapter = adapter();
    adapter.pairs[0].a[0] = f32::from_bits(0x3f81_8000);
    adapter.write(folder.path(), Dtype::BF16, "").unwrap();
    let read = Adapter::read(folder.path()).unwrap();
    assert_eq!(read.dtype, Dtype::BF16);
    assert_eq!(read.pairs[0].a[0].to_bits(), 0x3f82_0000);
}

#[test]
fn ranks_alphas_and_scales_follow_the_patterns() {
    let folder = tempfile::tempdir().unwrap();
    let mut adapter = adapter();
    adapter.config.rank_pattern = vec![
        (r"layers\.[12]\.self_attn\.q_proj".to_owned(), 3),
        ("q_proj".to_owned(), 5),
    ];
    adapter.config.alpha_pattern = vec![("model.layers.0.mlp.down_proj".to_owned(), 0.5)];
    let expected = |layer, module| match (layer, module) {
        (0, Module::Q) => (5, 4.0 / 5.0),
        (_, Module::Q) => (3, 4.0 / 3.0),
        (0, _) => (2, 0.25),
        _ => (2, 2.0),
    };
    for old in &mut adapter.pairs {
        let (rank, scale) = expected(old.layer, old.module);
        *old = pair(old.layer, old.module, rank, scale);
    }
    adapter.write(folder.path(), Dtype::F16, "").unwrap();
    let read = Adapter::read(folder.path()).unwrap();
    assert_eq!(read.config, adapter.config);
    assert_eq!(read.pairs.len(), 6);
    for pair in &read.pairs {
        assert_eq!((pair.rank, pair.scale), expected(pair.layer, pair.module));
    }

    let mut rslora = self::adapter();
    rslora.config.use_rslora = true;
    rslora
        .pairs
        .iter_mut()
        .for_each(|pair| pair.scale = (4.0 / 2f64.sqrt()) as f32);
    rslora.write(folder.path(), Dtype::F32, "").unwrap();
    assert_eq!(Adapter::read(folder.path()).unwrap(), rslora);
}

#[test]
fn target_modules_may_be_a_list_an_expression_or_all_linear() {
    let folder = tempfile::tempdir().unwrap();
    let mut adapter = adapter();
    adapter.config.target_modules =
        TargetModules::Expression(r".*\.(self_attn\.q_proj|mlp\.down_proj)".to_owned());
    adapter.write(folder.path(), Dtype::F32, "").unwrap();
    assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
    adapter.check(&model()).unwrap();

    adapter.config.target_modules = TargetModules::AllLinear;
    adapter.write(folder.path(), Dtype::F32, "").unwrap();
    let read = Adapter::read(folder.path()).unwrap();
    read.check(&model()).unwrap();
    let missing = read.missing(&model()).unwrap();
    assert_eq!(
        (missing.len(), missing[0].as_str()),
        (15, "model.layers.0.self_attn.k_proj")
    );

    let mut adapter = self::adapter();
    adapter.config.layers_to_transform = vec![0, 2];
    adapter.pairs.retain(|pair| pair.layer != 1);
    for pattern in [vec![], vec!["layers".to_owned()]] {
        adapter.config.layers_pattern = pattern;
        adapter.write(folder.path(), Dtype::F32, "").unwrap();
        let read = Adapter::read(folder.path()).unwrap();
        assert_eq!(read, adapter);
        read.check(&model()).unwrap();
    }
    adapter.config.layers_to_transform = vec![0];
    let text = adapter
        .write(folder.path(), Dtype::F32, "")
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("layers.2.self_attn.q_proj is not in target_modules"),
        "{text}"
    );
}

fn any_adapter() -> impl Strategy<Value = Adapter> {
    let modules = prop::sample::subsequence(Module::ALL.to_vec(), 1..=7);
    (
        modules,
        1usize..4,
        1usize..6,
        -64.0f64..64.0,
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(modules, layers, rank, alpha, use_rslora, seed)| {
            let mut state = seed | 1;
            let mut value = move || loop {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let value = f32::from_bits(state as u32);
                if value.is_finite() {
                    return value;
                }
            };
            let scale = (alpha
                / if use_rslora {
                    (rank as f64).sqrt()
                } else {
                    rank as f64
                }) as f32;
            let pairs = (0..layers)
                .flat_map(|layer| {
                    modules
                        .iter()
                        .map(move |&module| pair(layer, module, rank, scale))
                })
                .map(|mut pair| {
                    pair.a
                        .iter_mut()
                        .chain(&mut pair.b)
                        .for_each(|slot| *slot = value());
                    pair
                })
                .collect();
            let mut config = AdapterConfig::new(rank, alpha, &modules);
            config.use_rslora = use_rslora;
            let metadata = BTreeMap::from([("seed".to_owned(), seed.to_string())]);
            Adapter {
                config,
                pairs,
                dtype: Dtype::F32,
                metadata,
                base_tensors: Vec::new(),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_adapter_round_trips_bit_for_bit(adapter in any_adapter()) {
        let folder = tempfile::tempdir().unwrap();
        adapter.write(folder.path(), Dtype::F32, "").unwrap();
        prop_assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
    }
}
