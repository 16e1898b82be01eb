//! Models' folders: what is read, and what a stranger's folder is refused for, by file and field.

mod tokenizers;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::chat_template::Message;
use formats::folder::{Description, Folder, weight_files};
use formats::gguf::Bytes;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../model/tests/fixtures/families")
        .join(family)
}

/// A copy that may be changed.
fn copy(family: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture(family)).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    folder
}

fn open(folder: &Path) -> Result<Folder, String> {
    let read = |path: &Path| Ok(Arc::new(std::fs::read(path)?) as Bytes);
    Folder::open(folder, &read).map_err(|error| error.to_string())
}

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The error after `change` was made to a JSON file of a family's folder.
fn changed(family: &str, file: &str, change: impl Fn(&mut Json)) -> String {
    let folder = copy(family);
    let path = folder.path().join(file);
    let mut json = read_json(&path);
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    open(folder.path()).expect_err("it is refused")
}

#[test]
fn unsupported_and_invalid_fields_are_refused_by_file_and_field() {
    let cases: [(&str, &str, Json, &str); 24] = [
        (
            "llama",
            "model_type",
            json!("falcon"),
            "model_type \"falcon\" is not supported",
        ),
        ("llama", "model_type", Json::Null, "model_type: missing"),
        (
            "llama",
            "architectures",
            json!(["LlamaForSequenceClassification"]),
            "not LlamaForCausalLM",
        ),
        ("llama", "num_experts", json!(8), "num_experts"),
        (
            "llama",
            "quantization_config",
            json!({"quant_method": "awq"}),
            "quantization_config (awq) is not supported; of quantized weights only GGUF files are read: use the model",
        ),
        (
            "llama",
            "attention_bias",
            json!(true),
            "attention_bias = true",
        ),
        ("llama", "mlp_bias", json!(true), "mlp_bias = true"),
        ("llama", "hidden_act", json!("gelu"), "hidden_act \"gelu\""),
        ("llama", "text_config", json!({}), "text_config"),
        (
            "llama",
            "num_key_value_heads",
            json!(3),
            "2 heads cannot share 3",
        ),
        (
            "llama",
            "num_attention_heads",
            json!(0),
            "num_attention_heads: 0 is not a number from 1 to",
        ),
        ("llama", "head_dim", json!(15), "a head of 15"),
        (
            "llama",
            "hidden_size",
            json!("32"),
            "hidden_size: \"32\" is not a number",
        ),
        ("llama", "num_hidden_layers", json!(1), "model.layers.1."),
        ("llama", "vocab_size", json!(-1), "vocab_size: -1"),
        ("llama", "rms_norm_eps", Json::Null, "rms_norm_eps: missing"),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "yarn"}),
            "rope_parameters.rope_type \"yarn\"",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "longrope"}),
            "longrope",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"type": "linear"}),
            "rope_parameters.factor: missing",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_theta": 0.5}),
            "rope_parameters.rope_theta: 0.5",
        ),
        (
            "llama",
            "rope_parameters",
            json!([]),
            "rope_parameters: is not an object",
        ),
        (
            "llama3",
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
            "high_freq_factor": 1.0, "original_max_position_embeddings": 8192}),
            "rope_parameters.high_freq_factor: 1",
        ),
        (
            "qwen2",
            "layer_types",
            json!(["linear_attention"]),
            "layer_types with \"linear_attention\"",
        ),
        (
            "qwen3",
            "model_type",
            json!("llama"),
            "not LlamaForCausalLM",
        ),
    ];
    for (family, field, value, expected) in cases {
        let error = changed(family, "config.json", |json| json[field] = value.clone());
        assert!(error.contains(expected), "{field} {value}: {error}");
        assert!(
            error.contains("config.json") || error.contains("safetensors"),
            "{error}"
        );
    }
    let error = changed("llama", "config.json", |json| {
        json["model_type"] = json!("mixtral");
        json["num_local_experts"] = json!(8);
    });
    assert!(
        error.contains("mixture of experts (num_local_experts)"),
        "{error}"
    );
}

#[test]
fn rotary_fields_of_older_files_are_read() {
    let folder = copy("llama3");
    let path = folder.path().join("config.json");
    let new = open(folder.path()).unwrap().description().config().clone();
    let mut json = read_json(&path);
    let mut rope = json["rope_parameters"].take();
    json["rope_theta"] = rope["rope_theta"].take();
    json["rope_scaling"] = rope;
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!(open(folder.path()).unwrap().description().config(), &new);
}

#[test]
fn index_must_name_files_of_its_folder_and_existing_tensors() {
    let index = "model.safetensors.index.json";
    for elsewhere in [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "x.bin",
        "a\\b.safetensors",
    ] {
        let error = changed("llama3", index, |json| {
            json["weight_map"]["model.norm.weight"] = json!(elsewhere);
        });
        assert!(
            error.contains("weight_map.model.norm.weight")
                && error.contains("is not a .safetensors file of this folder"),
            "{elsewhere}: {error}"
        );
    }
    let error = changed("llama3", index, |json| {
        json["weight_map"]["model.layers.0.mlp.up_proj.weight"] =
            json!("model-00001-of-00003.safetensors");
    });
    assert!(error.contains("model-00001-of-00003.safetensors: tensor \"model.layers.0.mlp.up_proj.weight\": missing"), "{error}");
    let error = changed("llama3", index, |json| json["weight_map"] = json!({}));
    assert!(error.contains("weight_map: names 0 files"), "{error}");
    let error = changed("llama3", index, |json| json["weight_map"] = json!([1]));
    assert!(error.contains("weight_map: missing"), "{error}");

    let folder = copy("llama3");
    std::fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert!(
        open(folder.path())
            .err()
            .unwrap()
            .contains("model-00002-of-00003.safetensors")
    );
    assert_eq!(
        weight_files(folder.path()).unwrap().len(),
        4,
        "the index and three shards"
    );
}

#[test]
fn weights_in_other_formats_are_refused() {
    let folder = copy("llama");
    let weights = folder.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let with_header = |change: &dyn Fn(&mut Json)| {
        let mut json: Json = serde_json::from_slice(&whole[8..8 + header]).unwrap();
        change(&mut json);
        let json = json.to_string();
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(&whole[8 + header..]);
        bytes
    };
    let overlapping = with_header(&|json| {
        json["model.norm.weight"]["data_offsets"] =
            json["model.layers.0.input_layernorm.weight"]["data_offsets"].clone();
    });
    let integers = with_header(&|json| json["model.norm.weight"]["dtype"] = json!("I16"));
    let more = with_header(&|json| {
        let moved = json["model.norm.weight"].take();
        json.as_object_mut().unwrap().remove("model.norm.weight");
        json["model.layers.0.self_attn.o_proj.bias"] = moved;
    });
    let cases: [(Vec<u8>, &str); 6] = [
        (
            whole[..whole.len() - 2].to_vec(),
            "not a whole safetensors file",
        ),
        (Vec::new(), "not a whole safetensors file"),
        (
            u64::MAX.to_le_bytes().repeat(2),
            "at most 33554432 are read",
        ),
        (overlapping, "not a whole safetensors file"),
        (integers, "type I16 is not read"),
        (
            more,
            "o_proj.bias\": is not part of a model of 2 layers of architecture llama",
        ),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&weights, bytes).unwrap();
        let error = open(folder.path()).err().unwrap();
        assert!(
            error.contains(expected) && error.contains("model.safetensors"),
            "{error}"
        );
    }
    std::fs::remove_file(&weights).unwrap();
    assert!(
        open(folder.path())
            .err()
            .unwrap()
            .contains("there are no weights")
    );
    std::fs::write(folder.path().join("pytorch_model.bin"), "pickle").unwrap();
    assert!(
        open(folder.path())
            .err()
            .unwrap()
            .contains("a pickle, which is not read")
    );
    std::fs::write(folder.path().join("config.json"), vec![b' '; 5 << 20]).unwrap();
    assert!(
        open(folder.path())
            .err()
            .unwrap()
            .contains("at most 4194304 are read")
    );
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(
        open(folder.path())
            .err()
            .unwrap()
            .contains("config.json: not JSON")
    );
}

#[test]
fn chat_template_is_read_from_its_file_or_the_tokenizer_config() {
    let messages = [Message::new("user", "hello")];
    let expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    for family in ["llama3", "mistral"] {
        let description = Description::read(&fixture(family)).unwrap();
        let tokenizer = description.tokenizer().unwrap();
        let template = description.chat_template(&tokenizer).unwrap();
        assert_eq!(
            template.render(&messages, true).unwrap(),
            expected,
            "{family}"
        );
    }
    let folder = copy("llama3");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let description = Description::read(folder.path()).unwrap();
    let tokenizer = description.tokenizer().unwrap();
    let error = description
        .chat_template(&tokenizer)
        .unwrap_err()
        .to_string();
    assert!(error.contains("neither chat_template.jinja nor"), "{error}");
}
