//! A stranger's safetensors file, as weights and as an adapter for all linears.

#![no_main]

use std::path::Path;

use formats::peft::{Adapter, AdapterConfig, Module};
use formats::safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = safetensors::read_header(data);
    let _ = safetensors::read(data);
    let config = AdapterConfig::new(2, 2.0, &[Module::Q, Module::V]);
    let _ = Adapter::parse(config, data, Path::new("adapter_model.safetensors"));
});
