//! A stranger's `adapter_config.json`, and its patterns against the names of tensors.

#![no_main]

use std::path::Path;

use formats::peft::{Adapter, AdapterConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("adapter_config.json");
    let Ok(config) = AdapterConfig::parse(data, path) else {
        return;
    };
    // What is written is read as the same.
    let written = config.to_json();
    assert_eq!(AdapterConfig::parse(written.as_bytes(), path).unwrap(), config);
    let header = br#"{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend_from_slice(header);
    weights.extend_from_slice(&[0; 8]);
    let _ = Adapter::parse(config, &weights, Path::new("adapter_model.safetensors"));
});
