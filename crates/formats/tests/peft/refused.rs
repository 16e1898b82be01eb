//! Invalid configurations and tensors, and their error messages.

use std::collections::BTreeMap;
use std::path::Path;

use formats::config::ModelConfig;
use formats::peft::{Adapter, AdapterConfig, BaseTensor, Dtype, TargetModules, ValuesHash};
use formats::safetensors::{File, Tensor, read, write};
use serde_json::{Value, json};

use crate::{PREFIX, adapter, model};

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
fn unsupported_fields_are_refused_by_name() {
    for (changes, expected) in [
        (
            json!({"use_dora": true}),
            "use_dora = true is not supported",
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
        (json!({"exclude_modules": "("}), "exclude_modules: \"(\""),
        (
            json!({"exclude_modules": [1]}),
            "exclude_modules: must be a string or a list of strings",
        ),
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
        (json!({"target_modules": "(?=a)(b"}), "target_modules: "),
        (
            json!({"target_modules": "(?:(.|..)(?!x))+(?=y)y"}),
            "needs more than 2000 steps",
        ),
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
fn harmless_and_empty_fields_are_accepted() {
    let usual = parsed(json!({
        "auto_mapping": {"base_model_class": "LlamaForCausalLM"}, "inference_mode": false, "revision": "main",
        "init_lora_weights": "gaussian", "lora_dropout": 0.05, "loftq_config": {}, "eva_config": null,
        "corda_config": null, "megatron_core": "megatron.core", "qalora_group_size": 16, "use_qalora": false,
        "peft_version": "0.18.0", "exclude_modules": null, "trainable_token_indices": null, "layers_pattern": null,
        "layer_replication": null, "lora_bias": false, "something_new": null, "something_else": [], "task_type": null,
        "layers_to_transform": null, "modules_to_save": ["lm_head"], "ensure_weight_tying": true, "runtime_config": {"ephemeral_gpu_offload": false},
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
        TargetModules::AllLinear
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
fn invalid_tensors_are_named() {
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
        (
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "the same tensor as base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        ),
        (
            "base_model.model.score.modules_to_save.weight",
            "saved modules",
        ),
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
        "model.layers.0.self_attn.k_proj is not in target_modules of adapter_config.json"
            .to_owned(),
    );
}

#[test]
fn tensor_names_of_a_loaded_adapter_are_accepted() {
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
fn wrappers_in_front_of_tensor_names_are_accepted() {
    for (wrappers, trained) in [
        ("base_model.model.base_model.model.model.", None),
        ("base_model.model._orig_mod.model.", None),
        (
            "base_model.model.model.language_model.",
            Some("model.language_model.layers.*proj"),
        ),
        ("model.", None),
        ("", None),
    ] {
        let path = Path::new("adapter_model.safetensors");
        let mut adapter = adapter();
        let bytes = adapter.to_safetensors(Dtype::F32, path).unwrap();
        let mut file = read(&bytes).unwrap();
        let renamed = |(name, tensor): (String, Tensor)| {
            let own = name.strip_prefix("base_model.model.model.").unwrap();
            (format!("{wrappers}{own}"), tensor)
        };
        file.tensors = file.tensors.into_iter().map(renamed).collect();
        // A pattern may name the wrappers of the model that was trained.
        if let Some(pattern) = trained {
            adapter.config.target_modules = TargetModules::Expression(pattern.to_owned());
        }
        let read = Adapter::parse(adapter.config.clone(), &write(&file).unwrap(), path);
        assert_eq!(read.unwrap(), adapter, "{wrappers}");
    }
}

#[test]
fn excluded_modules_are_not_targets() {
    let error = |excluded: Value| {
        let config = parsed(json!({"exclude_modules": excluded})).unwrap();
        let path = Path::new("adapter_model.safetensors");
        let bytes = adapter().to_safetensors(Dtype::F32, path).unwrap();
        let read = Adapter::parse(config.clone(), &bytes, path);
        // It survives writing.
        let again = AdapterConfig::parse(config.to_json().as_bytes(), path).unwrap();
        assert_eq!(again, config);
        read.map_err(|error| error.to_string())
    };
    for excluded in [
        json!(["q_proj"]),
        json!(["model.layers.2.self_attn.q_proj"]),
        json!(r".*\.2\.(?!mlp).*"),
    ] {
        let text = error(excluded.clone()).unwrap_err();
        assert!(
            text.contains("self_attn.q_proj is not in target_modules"),
            "{excluded}: {text}"
        );
    }
    for excluded in [json!(null), json!([]), json!(["k_proj"]), json!("q_proj")] {
        assert_eq!(error(excluded).unwrap().pairs, adapter().pairs);
    }
}

#[test]
fn tensors_of_the_base_are_listed_with_their_hash() {
    let saved = "base_model.model.lm_head.modules_to_save.weight";
    let read = weights(|tensors| {
        let mut head = tensor(&[10, 8]);
        head.dtype = Dtype::BF16;
        tensors.insert(saved.to_owned(), head);
    })
    .unwrap();
    assert_eq!(
        (read.pairs.as_slice(), read.dtype),
        (adapter().pairs.as_slice(), Dtype::F32)
    );
    let mut hash = ValuesHash::default();
    hash.update(&[0.5; 80]);
    let expected = BaseTensor {
        name: saved.to_owned(),
        gguf_name: "output.weight".to_owned(),
        dtype: Dtype::BF16,
        shape: vec![10, 8],
        sha256: hash.finish(),
    };
    assert_eq!(read.base_tensors, [expected]);
}

#[test]
fn mixed_types_are_widened_to_f32() {
    let read = weights(|tensors| tensors.values_mut().next().unwrap().dtype = Dtype::BF16).unwrap();
    assert_eq!(read.dtype, Dtype::F32);
}

#[test]
fn invalid_adapters_are_not_written() {
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
fn missing_files_are_named() {
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
fn adapter_in_another_format_is_named_by_every_reader() {
    for (weights, expected) in [
        ("adapter_model.bin", "a pickle, which is not read"),
        ("adapters.safetensors", "an MLX adapter, which are not read"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // mlx-lm writes none of PEFT's fields.
        std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
        std::fs::write(folder.path().join(weights), "w").unwrap();
        for error in [
            Adapter::read(folder.path()).unwrap_err(),
            formats::peft::read_shapes(folder.path()).unwrap_err(),
            formats::peft::content_hash(folder.path()).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(
                message.contains(weights) && message.contains(expected),
                "{message}"
            );
        }
    }
}

#[test]
fn pointer_of_git_lfs_is_named_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = adapter().config.to_json();
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    std::fs::write(folder.path().join("adapter_model.safetensors"), pointer).unwrap();
    for error in [
        Adapter::read(folder.path()).unwrap_err(),
        formats::peft::read_shapes(folder.path()).unwrap_err(),
        formats::peft::content_hash(folder.path()).unwrap_err(),
    ] {
        let message = error.to_string();
        assert!(
            message.contains("adapter_model.safetensors: a pointer of Git LFS")
                && message.contains("git lfs pull"),
            "{message}"
        );
    }
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
        |model| model.hidden_size = 16,
        "layers.0.self_attn.q_proj.lora_A.weight: shape [2, 8], but the model needs [2, 16]",
    );
    check(
        |model| model.heads = 8,
        "q_proj.lora_B.weight: shape [8, 2], but the model needs [16, 2]",
    );
    // PEFT loads such an adapter with a warning.
    let mut model = model();
    model.layers = 4;
    adapter().check(&model).unwrap();
    let missing = adapter().missing(&model).unwrap();
    assert_eq!(
        missing,
        [
            "model.layers.3.self_attn.q_proj",
            "model.layers.3.mlp.down_proj"
        ]
    );
}
