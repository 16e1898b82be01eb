//! A stranger's `tokenizer.json`: it is read or refused, and what is read encodes and decodes texts.

#![no_main]

use formats::tokenizer::{Roles, Special, Tokenizer};
use libfuzzer_sys::fuzz_target;

const TEXTS: [&str; 4] = [
    "Hello world, it's 2024!\n\n  <|im_start|>user",
    "\u{feff}é e\u{301} ﷺ İ 漢字 🙂\u{200d} \r\n\t ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "1234567890 ..--''`` </s><s>[INST]",
];

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice(data) else {
        return;
    };
    let roles = Roles {
        bos: Some("<s>".to_owned()),
        eos: Some("</s>".to_owned()),
        add_bos: None,
        ends: vec![0, 2],
    };
    let Ok(tokenizer) = Tokenizer::from_json(&json, &roles, "tokenizer.json") else {
        return;
    };
    for text in TEXTS {
        if let Ok(ids) = tokenizer.encode(text, Special::Parse) {
            tokenizer.decode(&ids, true);
        }
    }
});
