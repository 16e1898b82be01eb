//! Broken input of every kind is an error, never a panic: valid files with bytes changed, cut, or repeated.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use formats::chat_template::{ChatTemplate, Message};
use formats::config::{ModelConfig, RopeStyle};
use formats::gguf::{GgmlType, Gguf, GgufWriter, dequantize};
use formats::peft::{Adapter, AdapterConfig, Dtype, LoraPair, Module};
use formats::safetensors;
use formats::tokenizer::{Special, Tokenizer};
use proptest::prelude::*;

/// A change to a file.
#[derive(Debug, Clone)]
enum Change {
    Byte(prop::sample::Index, u8),
    Bit(prop::sample::Index, u8),
    Word(prop::sample::Index, u64),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let place = any::<prop::sample::Index>;
    let word = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 31),
        Just(1 << 63),
        any::<u64>(),
        0u64..4096
    ];
    let change = prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (place(), 0u8..8).prop_map(|(at, bit)| Change::Bit(at, bit)),
        (place(), word).prop_map(|(at, word)| Change::Word(at, word)),
        place().prop_map(Change::Cut),
        (place(), 1usize..64).prop_map(|(at, length)| Change::Remove(at, length)),
        (place(), 1usize..64).prop_map(|(at, length)| Change::Repeat(at, length)),
    ];
    prop::collection::vec(change, 1..4)
}

fn apply(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match change {
            Change::Byte(at, byte) => bytes[at.index(length)] = *byte,
            Change::Bit(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Change::Word(at, word) => {
                let start = at.index(length);
                let end = length.min(start + 8);
                bytes[start..end].copy_from_slice(&word.to_le_bytes()[..end - start]);
            }
            Change::Cut(at) => bytes.truncate(at.index(length)),
            Change::Remove(at, count) => {
                let start = at.index(length);
                bytes.drain(start..length.min(start + count));
            }
            Change::Repeat(at, count) => {
                let start = at.index(length);
                let part = bytes[start..length.min(start + count)].to_vec();
                bytes.splice(start..start, part);
            }
        }
    }
    bytes
}

fn model() -> Vec<u8> {
    let config = ModelConfig {
        architecture: "llama".into(),
        hidden_size: 32,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        intermediate_size: 32,
        vocab_size: 12,
        context_length: 16,
        rope_theta: 10_000.0,
        rope_style: RopeStyle::Interleaved,
        rope_freq_factors: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    };
    let strings = |list: &[&str]| {
        list.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let mut writer = GgufWriter::new();
    config.write_metadata(&mut writer);
    writer
        .metadata("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.pre", "smollm")
        .metadata(
            "tokenizer.ggml.tokens",
            strings(&[
                "<|im_end|>",
                "a",
                "b",
                "ab",
                "Ġ",
                "Ġab",
                "1",
                "Ċ",
                "Ã",
                "©",
                "é",
                "<u>",
            ]),
        )
        .metadata("tokenizer.ggml.merges", strings(&["a b", "Ġ ab"]))
        .metadata(
            "tokenizer.ggml.token_type",
            vec![3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4],
        )
        .metadata("tokenizer.ggml.eos_token_id", 0u32)
        .metadata(
            "tokenizer.chat_template",
            "{% for m in messages %}{{ m.role + m['content'] }}{% endfor %}",
        );
    writer
        .tensor("token_embd.weight", GgmlType::Q4_1, &[32, 12], vec![7; 240])
        .unwrap();
    writer
        .tensor(
            "rope_freqs.weight",
            GgmlType::F32,
            &[8],
            1f32.to_le_bytes().repeat(8),
        )
        .unwrap();
    writer.to_bytes().unwrap()
}

/// Everything that can be made of a model file; whether all of it worked.
fn use_model(bytes: Vec<u8>) -> bool {
    let Ok(gguf) = Gguf::parse(Arc::new(bytes), "test.gguf") else {
        return false;
    };
    let config = ModelConfig::from_gguf(&gguf).is_ok();
    for tensor in gguf.tensors() {
        // A changed size may ask for much: what is allocated is bounded by the file's own bytes.
        let mut values = vec![0.0; tensor.elements()];
        let _ = dequantize(tensor.dtype, tensor.data, &mut values);
    }
    let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) else {
        return false;
    };
    let ids = tokenizer
        .encode("ab ab1\n é<|im_end|>", Special::Parse)
        .unwrap();
    tokenizer.decode(&ids, true);
    let Ok(template) = ChatTemplate::from_gguf(&gguf, &tokenizer) else {
        return false;
    };
    config && template.render(&[Message::new("user", "x")], true).is_ok()
}

fn adapter() -> Adapter {
    let pair = |module| LoraPair {
        layer: 0,
        module,
        rank: 2,
        inputs: 4,
        outputs: 4,
        scale: 1.0,
        a: vec![0.5; 8],
        b: vec![0.25; 8],
    };
    let modules = [Module::Q, Module::V];
    let config = AdapterConfig::new(2, 2.0, &modules);
    Adapter {
        config,
        pairs: modules.map(pair).to_vec(),
        dtype: Dtype::F32,
        metadata: BTreeMap::new(),
        base_tensors: Vec::new(),
    }
}

#[test]
fn unchanged_files_are_valid() {
    assert!(use_model(model()));
    let adapter = adapter();
    let bytes = adapter.to_safetensors(Dtype::F32, Path::new("x")).unwrap();
    assert_eq!(
        Adapter::parse(adapter.config.clone(), &bytes, Path::new("x")).unwrap(),
        adapter
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_model_files_never_panic(changes in changes()) {
        use_model(apply(&model(), &changes));
    }

    #[test]
    fn changed_weights_never_panic(changes in changes()) {
        let adapter = adapter();
        let bytes = apply(&adapter.to_safetensors(Dtype::BF16, Path::new("x")).unwrap(), &changes);
        let _ = safetensors::read(&bytes);
        let _ = Adapter::parse(adapter.config, &bytes, Path::new("x"));
    }

    #[test]
    fn changed_configurations_never_panic(changes in changes()) {
        let text = adapter().config.to_json();
        if let Ok(config) = AdapterConfig::parse(&apply(text.as_bytes(), &changes), Path::new("x")) {
            let text = config.to_json();
            prop_assert_eq!(AdapterConfig::parse(text.as_bytes(), Path::new("x")).unwrap(), config);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        use_model([b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
        let _ = safetensors::read(&bytes);
        let _ = AdapterConfig::parse(&bytes, Path::new("x"));
    }

    #[test]
    fn arbitrary_templates_never_panic(source in "[{}% a-z'\"()|.=+*~0-9\\[\\]-]{0,60}") {
        if let Ok(template) = ChatTemplate::new(&source, "", "") {
            let _ = template.render(&[Message::new("user", "x")], true);
        }
    }
}
