//! Opening a service: a base that cannot be served is rejected by name, broken personas do not keep others from answering, and adapters are
//! swapped if memory is short.

use std::sync::Arc;

use formats::gguf::{Gguf, dequantize};
use formats::safetensors::{self, Dtype};
use serde_json::{Value, json};
use service::{AdapterError, GenerateRequest, RequestError, Service, Settings};
use testkit::home::TestHome;
use testkit::server::TestServer;
use testkit::tiny::adapter;
use testkit::tiny::{tiny_adapter, tiny_config, tiny_gguf};

use crate::setup;

fn refused(home: &TestHome) -> String {
    match setup::open(home, &Settings::default()) {
        Ok(_) => panic!("the service opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn broken_base_is_rejected_by_file_name() {
    let home = setup::home();
    let whole = std::fs::read(home.base()).unwrap();
    for length in [0, 3, 4, 20, 1000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(home.base(), &whole[..length]).unwrap();
        let error = refused(&home);
        assert!(error.contains("Tiny.gguf"), "{length}: {error}");
    }
    std::fs::write(home.base(), vec![b'x'; 5000]).unwrap();
    assert!(refused(&home).contains("Tiny.gguf"));
    std::fs::remove_file(home.base()).unwrap();
    assert!(refused(&home).contains("Tiny.gguf"));
}

/// The error of a request to the persona `odd`, whose adapter cannot be used; the other personas answer.
fn refused_persona(home: &TestHome) -> String {
    let service = setup::open(home, &Settings::default()).unwrap();
    say(&service, "warm").unwrap();
    say(&service, "formal").unwrap();
    say(&service, "odd").unwrap_err().to_string()
}

#[test]
fn adapter_of_another_model_is_rejected_by_tensor_name() {
    let home = setup::home();
    let mut other = tiny_config();
    other.intermediate_size = 96;
    home.persona("odd", "", Some(&tiny_adapter(1, &other, 4, 1.0)));
    let error = refused_persona(&home);
    assert!(error.contains("layers.0.mlp.gate_proj"), "{error}");
}

#[test]
fn adapter_with_another_tokenizer_or_template_is_rejected() {
    let home = setup::home();
    for (key, what) in [
        ("lory.tokenizer_hash", "another tokenizer (abc)"),
        ("lory.template_hash", "another chat template (abc)"),
    ] {
        let mut adapter = adapter(1);
        adapter.metadata.insert(key.to_owned(), "abc".to_owned());
        home.persona("odd", "", Some(&adapter));
        let error = refused_persona(&home);
        assert!(error.contains(what), "{error}");
    }
}

/// Adds a tensor to the weights of the persona `odd`, whose configuration saves modules.
fn save_module(home: &TestHome, name: &str, tensor: safetensors::Tensor) {
    let folder = home.path("personas/odd/adapter");
    let weights = folder.join("adapter_model.safetensors");
    let mut file = safetensors::read(&std::fs::read(&weights).unwrap()).unwrap();
    file.tensors.insert(name.to_owned(), tensor);
    std::fs::write(&weights, safetensors::write(&file).unwrap()).unwrap();
    let config = folder.join("adapter_config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["modules_to_save"] = json!(["lm_head"]);
    json["ensure_weight_tying"] = json!(true);
    std::fs::write(&config, json.to_string()).unwrap();
}

#[test]
fn saved_modules_that_are_the_bases_are_accepted_and_others_named() {
    let home = setup::home();
    let bytes = tiny_gguf(1);
    std::fs::write(home.base(), &bytes).unwrap();
    home.persona("odd", "", Some(&adapter(3)));
    let plain = setup::open(&home, &Settings::default()).unwrap();
    let plain = say(&plain, "odd").unwrap();

    let base = Gguf::parse(Arc::new(bytes), "tiny").unwrap();
    let embedding = base.tensor("token_embd.weight").unwrap();
    let mut tensor = safetensors::Tensor {
        dtype: Dtype::F32,
        shape: embedding
            .dims
            .iter()
            .rev()
            .map(|&size| size as usize)
            .collect(),
        values: vec![0.0; embedding.elements()],
    };
    dequantize(embedding.dtype, embedding.data, &mut tensor.values).unwrap();
    // The tiny model's head is its embedding.
    let name = "base_model.model.lm_head.modules_to_save.weight";
    save_module(&home, name, tensor.clone());
    let service = setup::open(&home, &Settings::default()).unwrap();
    assert_eq!(say(&service, "odd").unwrap(), plain);

    tensor.values[7] += 0.25;
    save_module(&home, name, tensor);
    let error = refused_persona(&home);
    assert!(
        error.contains(&format!("tensor {name}: differs from the base's")),
        "{error}"
    );
}

#[test]
fn adapter_with_some_of_its_targets_answers() {
    let home = setup::home();
    let mut adapter = adapter(3);
    adapter.pairs.retain(|pair| pair.layer == 0);
    home.persona("odd", "", Some(&adapter));
    let service = setup::open(&home, &Settings::default()).unwrap();
    say(&service, "odd").unwrap();
}

#[test]
fn name_of_the_base_means_the_base_if_a_persona_has_it() {
    let home = setup::home();
    home.persona("tiny", "system_prompt = \"x\"", Some(&adapter(1)));
    let service = setup::open(&home, &Settings::default()).unwrap();
    let base = say(&service, "base").unwrap();
    assert_eq!(say(&service, "tiny").unwrap(), base);
    say(&service, "warm").unwrap();
    let server = TestServer::start(Arc::new(service));
    let list = server.get("/v1/models").json();
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["tiny", "formal", "warm"]);
}

/// A service whose adapter memory holds one adapter, not two.
fn small_service(home: &TestHome) -> Service {
    let roomy = setup::open(home, &Settings::default()).unwrap();
    let bytes: Vec<u64> = roomy
        .engine()
        .adapters()
        .iter()
        .map(|adapter| adapter.bytes)
        .collect();
    assert_eq!(bytes.len(), 2);
    let mut settings = Settings::default();
    settings.engine.adapter_memory = bytes[0] + bytes[1] - 1;
    setup::open(home, &settings).unwrap()
}

fn say(service: &Service, who: &str) -> Result<String, RequestError> {
    service
        .generate(&GenerateRequest::new(Some(who), "Hello!"))
        .map(|answer| answer.text)
}

#[test]
fn adapters_are_swapped_if_memory_holds_only_one() {
    let home = setup::home();
    let roomy = setup::open(&home, &Settings::default()).unwrap();
    let small = small_service(&home);
    for who in ["warm", "formal", "warm", "warm", "formal"] {
        assert_eq!(say(&small, who).unwrap(), say(&roomy, who).unwrap());
        assert_eq!(small.engine().adapters().len(), 1);
    }
    let both = say(&small, "warm+formal").unwrap_err();
    let RequestError::Adapter { source, .. } = &both else {
        panic!("{both}")
    };
    assert!(matches!(**source, AdapterError::Pool(_)), "{both}");
    assert_eq!(say(&small, "warm").unwrap(), say(&roomy, "warm").unwrap());
}

#[test]
fn adapter_files_changed_since_the_start_are_rejected() {
    let home = setup::home();
    let service = small_service(&home);
    say(&service, "warm").unwrap();
    home.persona("formal", "version = 2", Some(&adapter(99)));
    let error = say(&service, "formal").unwrap_err().to_string();
    assert!(error.contains("have changed since the start"), "{error}");
    say(&service, "warm").unwrap();
}
