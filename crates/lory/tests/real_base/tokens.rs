//! The real vocabulary against Hugging Face's tokenizer, under each family's pre-tokenizer, and the real chat template.
//! `tokens.json` comes from `crates/formats/tests/fixtures/make_tokenizer.py`.

use std::sync::Arc;

use formats::chat_template::Message;
use formats::gguf::{Gguf, GgufWriter};
use formats::tokenizer::{Special, Tokenizer};
use serde_json::Value;

use crate::{BASE, FILE};

#[test]
fn token_ids_match_hugging_face_for_every_pre_tokenizer() {
    let fixture: Value = serde_json::from_str(include_str!("tokens.json")).unwrap();
    let texts = fixture["texts"].as_array().unwrap();
    assert!(texts.len() > 40);
    let real = Gguf::open(&FILE).unwrap();
    let strings = |key| real.get_str_array(key).unwrap().unwrap().to_vec();
    let types = real.get_i32_array("tokenizer.ggml.token_type");
    for family in ["smollm", "gpt2", "llama-bpe", "qwen2"] {
        let mut writer = GgufWriter::new();
        writer
            .metadata("tokenizer.ggml.model", "gpt2")
            .metadata("tokenizer.ggml.pre", family)
            .metadata("tokenizer.ggml.tokens", strings("tokenizer.ggml.tokens"))
            .metadata("tokenizer.ggml.merges", strings("tokenizer.ggml.merges"))
            .metadata(
                "tokenizer.ggml.token_type",
                types.as_ref().unwrap().clone().unwrap(),
            );
        let gguf = Gguf::parse(Arc::new(writer.to_bytes().unwrap()), family).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let ids = fixture["families"][family]["parse"].as_array().unwrap();
        for (text, ids) in texts.iter().zip(ids) {
            let text = text.as_str().unwrap();
            let want: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            assert_eq!(
                tokenizer.encode(text, Special::Parse).unwrap(),
                want,
                "{family}: {text:?}"
            );
            if family == "smollm" {
                assert_eq!(
                    BASE.tokenizer.encode(text, Special::Parse).unwrap(),
                    want,
                    "{text:?}"
                );
            }
        }
    }
    assert_eq!(BASE.tokenizer.end_ids(), [0, 2]);
    assert_eq!(BASE.tokenizer.vocab_size(), 49_152);
}

#[test]
fn chat_template_renders_as_in_transformers() {
    let messages = [
        Message::new("user", "Where is my order?"),
        Message::new("assistant", "On its way."),
    ];
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    let user = "<|im_start|>user\nWhere is my order?<|im_end|>\n";
    let assistant = "<|im_start|>assistant\n";
    assert_eq!(
        BASE.template.render(&messages[..1], true).unwrap(),
        format!("{system}{user}{assistant}")
    );
    assert_eq!(
        BASE.template.render(&messages, false).unwrap(),
        format!("{system}{user}{assistant}On its way.<|im_end|>\n")
    );
}
