//! A stranger's `config.json`.

#![no_main]

use formats::config::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(json) = serde_json::from_slice(data) {
        let _ = ModelConfig::from_json(&json, "config.json");
    }
});
