//! PEFT folders: written and read back, and refused by the name of what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use formats::config::{ModelConfig, RopeStyle};
use formats::peft::{Adapter, AdapterConfig, Dtype, LoraPair, Module, Targets, content_hash};
use formats::safetensors::{File, Tensor, read, write};
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
    }
}

#[test]
fn a_folder_is_written_as_peft_writes_it_and_read_back() {
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
fn the_same_adapter_gives_the_same_bytes_and_hash() {
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
fn targets_are_lists_expressions_or_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut adapter = adapter();
    adapter.config.target_modules =
        Targets::Expression(r".*\.(self_attn\.q_proj|mlp\.down_proj)".to_owned());
    adapter.write(folder.path(), Dtype::F32, "").unwrap();
    assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
    adapter.check(&model()).unwrap();

    adapter.config.target_modules = Targets::AllLinear;
    adapter.write(folder.path(), Dtype::F32, "").unwrap();
    let read = Adapter::read(folder.path()).unwrap();
    let text = read.check(&model()).unwrap_err().to_string();
    assert!(
        text.contains("layers.0.self_attn.k_proj.lora_A.weight: missing, but target_modules"),
        "{text}"
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
        text.contains("layers.2.self_attn.q_proj is no target"),
        "{text}"
    );
}

/// A configuration with some fields changed, read.
fn parsed(changes: Value) -> Result<AdapterConfig, String> {
    let mut config: Value = serde_json::from_str(&adapter().config.to_json()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    AdapterConfig::parse(
        config.to_string().as_bytes(),
        Path::new("dir/adapter_config.json"),
    )
    .map_err(|error| error.to_string())
}

#[test]
fn what_is_not_supported_is_refused_by_the_name_of_its_field() {
    for (changes, expected) in [
        (
            json!({"use_dora": true}),
            "use_dora = true is not supported",
        ),
        (
            json!({"modules_to_save": ["lm_head"]}),
            "modules_to_save = [\"lm_head\"] is not supported",
        ),
        (json!({"bias": "all"}), "bias = \"all\" is not supported"),
        (json!({"lora_bias": true}), "lora_bias = true"),
        (json!({"fan_in_fan_out": true}), "fan_in_fan_out = true"),
        (
            json!({"peft_type": "LOHA"}),
            "peft_type = \"LOHA\" is not supported; only \"LORA\" is",
        ),
        (json!({"peft_type": null}), "peft_type: is missing"),
        (json!({"task_type": "SEQ_CLS"}), "task_type = \"SEQ_CLS\""),
        (
            json!({"trainable_token_indices": [1, 2]}),
            "trainable_token_indices = [1,2]",
        ),
        (json!({"target_parameters": ["w"]}), "target_parameters"),
        (json!({"exclude_modules": "x"}), "exclude_modules"),
        (json!({"layer_replication": [[0, 2]]}), "layer_replication"),
        (
            json!({"init_lora_weights": "pissa_niter_4"}),
            "init_lora_weights = \"pissa_niter_4\" is not supported",
        ),
        (
            json!({"something_new": {"a": 1}}),
            "something_new = {\"a\":1} is not supported; the field is unknown",
        ),
        (
            json!({"target_modules": ["q_proj", "lm_head"]}),
            "target_modules: LoRA on the embedding",
        ),
        (
            json!({"target_modules": ".*"}),
            "target_modules: LoRA on the embedding",
        ),
        (json!({"target_modules": "(?=a)b"}), "target_modules: "),
        (
            json!({"target_modules": []}),
            "target_modules: names no module",
        ),
        (
            json!({"target_modules": null}),
            "target_modules: is missing",
        ),
        (
            json!({"target_modules": [1]}),
            "target_modules: must be a string or a list of strings",
        ),
        (json!({"r": 0}), "r: 0 is not a rank from 1 to 512"),
        (json!({"r": 513}), "r: 513 is not a rank"),
        (json!({"r": "8"}), "r: \"8\" is not a rank"),
        (json!({"r": null}), "r: is missing"),
        (
            json!({"rank_pattern": {"q_proj": 0}}),
            "rank_pattern[\"q_proj\"]: 0 is not a rank",
        ),
        (json!({"rank_pattern": {"(": 4}}), "rank_pattern: \"(\""),
        (
            json!({"rank_pattern": []}),
            "rank_pattern: must be an object",
        ),
        (
            json!({"alpha_pattern": {"q_proj": "x"}}),
            "alpha_pattern[\"q_proj\"]: \"x\" is not a number",
        ),
        (
            json!({"lora_alpha": 1e300}),
            "lora_alpha: 1e+300 is not a number",
        ),
        (
            json!({"use_rslora": 1}),
            "use_rslora: must be true or false",
        ),
        (
            json!({"layers_to_transform": [-1]}),
            "layers_to_transform: -1 is not a layer",
        ),
        (
            json!({"layers_to_transform": [0], "target_modules": "x"}),
            "layers_to_transform: only goes with a list",
        ),
        (
            json!({"layers_pattern": "layers"}),
            "layers_pattern: only goes with layers_to_transform",
        ),
        (
            json!({"base_model_name_or_path": 3}),
            "base_model_name_or_path: must be a string",
        ),
    ] {
        let text = parsed(changes.clone()).expect_err(&changes.to_string());
        assert!(text.starts_with("dir/adapter_config.json: "), "{text}");
        assert!(text.contains(expected), "{changes}: {text}");
    }
    let path = Path::new("adapter_config.json");
    assert!(
        AdapterConfig::parse(b"{", path)
            .unwrap_err()
            .to_string()
            .contains("not JSON")
    );
    assert!(
        AdapterConfig::parse(b"[]", path)
            .unwrap_err()
            .to_string()
            .contains("one JSON object")
    );
}

#[test]
fn harmless_and_empty_fields_are_no_obstacle() {
    let usual = parsed(json!({
        "auto_mapping": {"base_model_class": "LlamaForCausalLM"}, "inference_mode": false, "revision": "main",
        "init_lora_weights": "gaussian", "lora_dropout": 0.05, "loftq_config": {}, "eva_config": null,
        "corda_config": null, "megatron_core": "megatron.core", "qalora_group_size": 16, "use_qalora": false,
        "peft_version": "0.18.0", "exclude_modules": null, "trainable_token_indices": null, "layers_pattern": null,
        "layer_replication": null, "lora_bias": false, "something_new": null, "something_else": [], "task_type": null,
        "layers_to_transform": null, "modules_to_save": [], "runtime_config": {"ephemeral_gpu_offload": false},
    }));
    let usual = usual.unwrap();
    assert_eq!(
        (usual.r, usual.lora_alpha, usual.lora_dropout),
        (2, 4.0, 0.05)
    );
    assert_eq!(
        parsed(json!({"target_modules": "ALL-linear"}))
            .unwrap()
            .target_modules,
        Targets::AllLinear
    );
    assert_eq!(
        parsed(json!({"layers_to_transform": 1}))
            .unwrap()
            .layers_to_transform,
        [1]
    );
    assert!(parsed(json!({"target_modules": ["q_proj", "not_of_this_model"]})).is_ok());
}

/// The adapter's tensors with a change, parsed.
fn weights(change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> Result<Adapter, String> {
    let adapter = adapter();
    let path = Path::new("adapter_model.safetensors");
    let mut file = read(&adapter.to_safetensors(Dtype::F32, path).unwrap()).unwrap();
    change(&mut file.tensors);
    Adapter::parse(adapter.config, &write(&file).unwrap(), path).map_err(|error| error.to_string())
}

fn tensor(shape: &[usize]) -> Tensor {
    Tensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        values: vec![0.5; shape.iter().product()],
    }
}

#[test]
fn broken_tensors_are_named() {
    let a = format!("{PREFIX}.0.self_attn.q_proj.lora_A.weight");
    let b = format!("{PREFIX}.0.self_attn.q_proj.lora_B.weight");
    let check = |result: Result<Adapter, String>, expected: String| {
        let text = result.unwrap_err();
        assert!(text.starts_with("adapter_model.safetensors: "), "{text}");
        assert!(text.contains(&expected), "{expected}: {text}");
    };
    let replaced = |name: &str, shape: &[usize]| {
        weights(|tensors| drop(tensors.insert(name.to_owned(), tensor(shape))))
    };
    check(
        weights(|tensors| drop(tensors.remove(&a))),
        format!("tensor {a}: missing, but {b} is there"),
    );
    check(
        weights(|tensors| drop(tensors.remove(&b))),
        format!("tensor {b}: missing, but {a} is there"),
    );
    check(weights(BTreeMap::clear), "no LoRA tensors".to_owned());
    check(
        replaced(&a, &[2, 8, 1]),
        format!("tensor {a}: shape [2, 8, 1]"),
    );
    check(replaced(&a, &[0, 8]), format!("tensor {a}: shape [0, 8]"));
    check(replaced(&a, &[2, 0]), format!("tensor {a}: shape [2, 0]"));
    check(
        replaced(&b, &[8, 3]),
        format!("tensor {b}: shape [8, 3], but {a} has rank 2"),
    );
    let rank_3 = weights(|tensors| {
        tensors.insert(a.clone(), tensor(&[3, 8]));
        tensors.insert(b.clone(), tensor(&[8, 3]));
    });
    check(
        rank_3,
        format!("tensor {a}: rank 3, but adapter_config.json says 2"),
    );
    let rank_600 = weights(|tensors| {
        tensors.insert(a.clone(), tensor(&[600, 8]));
        tensors.insert(b.clone(), tensor(&[8, 600]));
    });
    check(rank_600, format!("tensor {a}: rank 600; 1 to 512 is run"));
    for bad in [f32::NAN, f32::INFINITY] {
        let result = weights(|tensors| tensors.get_mut(&b).unwrap().values[3] = bad);
        check(result, format!("tensor {b}: element 3 is {bad}"));
    }
    for (name, expected) in [
        (
            "base_model.model.lm_head.lora_A.weight",
            "the head is not supported",
        ),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "LoRA on the embedding",
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            "DoRA is not supported",
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
            "biases are not supported",
        ),
        (
            "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
            "unknown; names look like",
        ),
        (
            "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
            "unknown",
        ),
        (
            "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight",
            "unknown",
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
            "unknown",
        ),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "unknown"),
        (
            "base_model.model.model.layers.4096.self_attn.q_proj.lora_A.weight",
            "at most 4096 layers",
        ),
        ("", "unknown"),
    ] {
        check(replaced(name, &[2, 8]), format!("tensor {name}: "));
        check(replaced(name, &[2, 8]), expected.to_owned());
    }
    let twice = a.replace(".weight", ".default.weight");
    check(
        replaced(&twice, &[2, 8]),
        format!("tensor {a}: the same tensor as {twice}"),
    );
    let untargeted = weights(|tensors| {
        tensors.insert(a.replace("q_proj", "k_proj"), tensor(&[2, 8]));
        tensors.insert(b.replace("q_proj", "k_proj"), tensor(&[4, 2]));
    });
    check(
        untargeted,
        "model.layers.0.self_attn.k_proj is no target of adapter_config.json's target_modules"
            .to_owned(),
    );
}

#[test]
fn names_of_a_loaded_adapter_are_accepted_too() {
    let read = weights(|tensors| {
        let old = std::mem::take(tensors);
        tensors.extend(
            old.into_iter()
                .map(|(name, tensor)| (name.replace(".weight", ".default.weight"), tensor)),
        );
    });
    assert_eq!(read.unwrap(), adapter());
}

#[test]
fn a_mixed_file_is_widened() {
    let read = weights(|tensors| tensors.values_mut().next().unwrap().dtype = Dtype::BF16).unwrap();
    assert_eq!(read.dtype, Dtype::F32);
}

#[test]
fn shapes_are_checked_against_the_model() {
    let check = |change: fn(&mut ModelConfig), expected: &str| {
        let mut model = model();
        change(&mut model);
        let text = adapter().check(&model).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    check(
        |model| model.layers = 2,
        "layers.2.self_attn.q_proj.lora_A.weight: the model has only 2 layers",
    );
    check(
        |model| model.layers = 4,
        "layers.3.self_attn.q_proj.lora_A.weight: missing",
    );
    check(
        |model| model.hidden_size = 16,
        "layers.0.self_attn.q_proj.lora_A.weight: shape [2, 8], but the model needs [2, 16]",
    );
    check(
        |model| model.heads = 8,
        "q_proj.lora_B.weight: shape [8, 2], but the model needs [16, 2]",
    );
}

#[test]
fn nothing_wrong_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let error = |change: fn(&mut Adapter), dtype| {
        let mut adapter = adapter();
        change(&mut adapter);
        adapter
            .write(folder.path(), dtype, "")
            .unwrap_err()
            .to_string()
    };
    assert!(
        error(|adapter| adapter.pairs[0].scale = 3.0, Dtype::F32)
            .contains("scale 3, but adapter_config.json says 2")
    );
    assert!(
        error(|adapter| adapter.pairs[0].a[1] = 1e6, Dtype::F16)
            .contains("1000000 does not fit into F16")
    );
    assert!(
        error(|adapter| adapter.pairs[1].b[1] = f32::NAN, Dtype::F32).contains("element 1 is NaN")
    );
    assert!(
        error(|adapter| adapter.pairs[0].a.truncate(15), Dtype::F32)
            .contains("15 values where 16 are needed")
    );
    assert!(error(|adapter| adapter.pairs.clear(), Dtype::F32).contains("no LoRA tensors"));
    assert!(
        error(|adapter| adapter.config.r = 4, Dtype::F32)
            .contains("rank 2, but adapter_config.json says 4")
    );
    let twice = |adapter: &mut Adapter| adapter.pairs.push(adapter.pairs[0].clone());
    assert!(error(twice, Dtype::F32).contains("twice"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_is_no_adapter_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let error = || Adapter::read(folder.path()).unwrap_err().to_string();
    assert!(error().contains("adapter_config.json"));
    std::fs::write(
        folder.path().join("adapter_config.json"),
        adapter().config.to_json(),
    )
    .unwrap();
    assert!(error().contains("adapter_model.safetensors"));
    std::fs::write(folder.path().join("adapter_model.bin"), "pickle").unwrap();
    assert!(error().contains("a pickle, which is not read"));
    std::fs::write(folder.path().join("adapter_model.safetensors"), [1, 2, 3]).unwrap();
    assert!(error().contains("not a whole safetensors file"));
    std::fs::write(
        folder.path().join("adapter_config.json"),
        vec![b' '; 2 << 20],
    )
    .unwrap();
    assert!(error().contains("2097152 bytes; at most 1048576 are read"));
}

#[test]
fn safetensors_of_other_types_are_refused_by_name() {
    let header = br#"{"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}  "#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    let text = read(&bytes).unwrap_err().to_string();
    assert_eq!(
        text,
        "tensor \"x\": type I64 is not read; F32, F16 and BF16 are"
    );
    let wrong = File {
        tensors: BTreeMap::from([(
            "t".into(),
            Tensor {
                values: vec![],
                ..tensor(&[2])
            },
        )]),
        ..File::default()
    };
    assert!(
        write(&wrong)
            .unwrap_err()
            .to_string()
            .contains("shape [2] does not hold 0 values")
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
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_adapter_comes_back_bit_for_bit(adapter in any_adapter()) {
        let folder = tempfile::tempdir().unwrap();
        adapter.write(folder.path(), Dtype::F32, "").unwrap();
        prop_assert_eq!(Adapter::read(folder.path()).unwrap(), adapter);
    }
}
