//! A stranger's GGUF file: its header, configuration, tokenizer, chat template, and tensors.

#![no_main]

use std::sync::Arc;

use formats::chat_template::{ChatTemplate, Message};
use formats::config::ModelConfig;
use formats::gguf::{Gguf, dequantize};
use formats::tokenizer::{Special, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::parse(Arc::new(data.to_vec()), "model.gguf") else {
        return;
    };
    let _ = ModelConfig::from_gguf(&gguf);
    for tensor in gguf.tensors() {
        let mut values = vec![0.0; tensor.elements()];
        let _ = dequantize(tensor.dtype, tensor.data, &mut values);
    }
    let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) else {
        return;
    };
    if let Ok(ids) = tokenizer.encode("ab ab1\n é<|im_end|>", Special::Parse) {
        tokenizer.decode(&ids, true);
    }
    if let Ok(template) = ChatTemplate::from_gguf(&gguf, &tokenizer) {
        let _ = template.render(&[Message::new("user", "x")], true);
    }
});
