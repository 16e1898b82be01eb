//! The real vocabulary against Hugging Face's tokenizer: the fixture of the formats crate, made by its
//! `fixtures/make_tokenizer.py`.

use formats::tokenizer::Special;
use serde_json::Value;

use crate::BASE;

#[test]
fn ids_are_those_of_hugging_face() {
    let fixture = include_str!("../../../formats/tests/fixtures/tokenizer_real.json");
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let texts = fixture["texts"].as_array().unwrap();
    let ids = fixture["families"]["smollm"]["parse"].as_array().unwrap();
    assert!(texts.len() == ids.len() && texts.len() > 40);
    for (text, ids) in texts.iter().zip(ids) {
        let text = text.as_str().unwrap();
        let want: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
        let got = BASE.tokenizer.encode(text, Special::Parse).unwrap();
        assert_eq!(got, want, "{text:?}");
    }
}
