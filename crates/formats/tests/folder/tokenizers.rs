//! The tokenizers of folders, compared with the tokenizers library and with the same vocabulary in a GGUF file.

use std::sync::Arc;

use formats::folder::Description;
use formats::gguf::{Gguf, GgufWriter, Value};
use formats::tokenizer::{Special, Tokenizer};
use serde_json::{Value as Json, json};

use super::{copy, fixture, read_json};

#[test]
fn token_ids_equal_the_tokenizers_library() {
    for family in ["llama3", "mistral"] {
        let tokenizer = Description::read(&fixture(family))
            .unwrap()
            .tokenizer()
            .unwrap();
        let rows = read_json(&fixture(family).join("texts.json"));
        for row in rows.as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let want: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let got = tokenizer.encode(text, Special::Parse).unwrap();
            assert_eq!(got, want, "{family}: {text:?}");
            assert_eq!(
                tokenizer.decode(&got, true),
                row["decoded"].as_str().unwrap(),
                "{family}: {text:?}"
            );
            let mut detokenizer = tokenizer.detokenizer();
            let pushed: String = got.iter().map(|id| detokenizer.push(*id)).collect();
            assert_eq!(pushed + &detokenizer.finish(), tokenizer.decode(&got, true));
        }
        assert_eq!(
            (tokenizer.bos(), tokenizer.eos()),
            (Some(1), Some(2)),
            "{family}"
        );
        assert!(
            tokenizer.add_bos() && tokenizer.end_ids().contains(&2),
            "{family}"
        );
    }
}

#[test]
fn end_ids_come_from_config_json_if_generation_config_has_none() {
    let ends = |config: Json, generation: Option<Json>| {
        let folder = copy("llama3");
        let path = folder.path().join("config.json");
        let mut json = read_json(&path);
        json["eos_token_id"] = config;
        std::fs::write(&path, json.to_string()).unwrap();
        let path = folder.path().join("generation_config.json");
        let _ = std::fs::remove_file(&path);
        if let Some(generation) = generation {
            std::fs::write(&path, generation.to_string()).unwrap();
        }
        let tokenizer = Description::read(folder.path()).unwrap().tokenizer();
        tokenizer.map(|tokenizer| tokenizer.end_ids().to_vec())
    };
    let usual = ends(Json::Null, None).unwrap();
    let with = |more: &[u32]| {
        let mut all = [&usual, more].concat();
        all.sort_unstable();
        all.dedup();
        all
    };
    assert_eq!(ends(json!([40, 41]), None).unwrap(), with(&[40, 41]));
    assert_eq!(ends(json!(40), Some(json!({}))).unwrap(), with(&[40]));
    let null = json!({"eos_token_id": null});
    assert_eq!(ends(json!([40]), Some(null)).unwrap(), with(&[40]));
    let own = json!({"eos_token_id": [42]});
    assert_eq!(ends(json!([40]), Some(own)).unwrap(), with(&[42]));
    let error = ends(json!([9_999_999]), None).unwrap_err().to_string();
    assert!(
        error.contains("config.json") && error.contains("9999999"),
        "{error}"
    );
}

#[test]
fn tokenizer_hash_does_not_depend_on_the_file_format() {
    // Llama 3's pattern is known by name in a GGUF and spelled out in tokenizer.json.
    let description = Description::read(&fixture("llama3")).unwrap();
    let json = read_json(&fixture("llama3").join("tokenizer.json"));
    let spelled = description.tokenizer().unwrap();
    let gguf = gguf_of(&json, "gpt2", |writer| {
        writer
            .metadata("tokenizer.ggml.pre", "llama-bpe")
            .metadata("tokenizer.ggml.merges", strings(&merges(&json)))
            .metadata("tokenizer.ggml.add_bos_token", Value::Bool(true));
    });
    assert_eq!(Tokenizer::from_gguf(&gguf).unwrap().hash(), spelled.hash());
}

#[test]
fn sentencepiece_merges_in_a_gguf_follow_the_scores() {
    let json = read_json(&fixture("mistral").join("tokenizer.json"));
    let spelled = Description::read(&fixture("mistral"))
        .unwrap()
        .tokenizer()
        .unwrap();
    // Earlier merges score higher; single letters have no score.
    let order = merges(&json);
    let tokens = tokens(&json);
    let score = |token: &String| {
        let made = order
            .iter()
            .position(|merge| merge.replace(' ', "") == *token);
        made.map_or(-1000.0, |place| -(place as f32))
    };
    let scores: Vec<f32> = tokens.iter().map(score).collect();
    let gguf = gguf_of(&json, "llama", |writer| {
        writer
            .metadata(
                "tokenizer.ggml.scores",
                Value::Array(formats::gguf::Array::F32(scores.clone())),
            )
            .metadata("tokenizer.ggml.unknown_token_id", 0u32);
    });
    let scored = Tokenizer::from_gguf(&gguf).unwrap();
    for row in read_json(&fixture("mistral").join("texts.json"))
        .as_array()
        .unwrap()
    {
        let text = row["text"].as_str().unwrap();
        for special in [Special::Parse, Special::AsText] {
            assert_eq!(
                scored.encode(text, special).unwrap(),
                spelled.encode(text, special).unwrap(),
                "{text:?}"
            );
        }
    }
    assert!(scored.is_special(0) && scored.add_bos());
    let bare = gguf_of(&json, "llama", |_| ());
    let error = Tokenizer::from_gguf(&bare).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.scores"), "{error}");
}

#[test]
fn part_inside_a_text_gets_no_space_prefix() {
    let tokenizer = Description::read(&fixture("mistral"))
        .unwrap()
        .tokenizer()
        .unwrap();
    let whole = tokenizer.encode_part("the", Special::AsText, true).unwrap();
    let part = tokenizer
        .encode_part("the", Special::AsText, false)
        .unwrap();
    assert_ne!(whole, part);
    assert_eq!(tokenizer.decode(&whole, true), "the");
}

#[test]
fn unsupported_tokenizers_are_refused_by_name() {
    let change = |family: &str, change: &dyn Fn(&mut Json)| {
        let folder = copy(family);
        let path = folder.path().join("tokenizer.json");
        let mut json = read_json(&path);
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        let description = Description::read(folder.path()).unwrap();
        description.tokenizer().unwrap_err().to_string()
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Json), &'a str);
    let replace = |pattern: Json, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let cases: [Case; 21] = [
        (
            "llama3",
            &|json| json["model"]["vocab"]["far"] = json!(u64::MAX),
            "model.vocab: id 18446744073709551615",
        ),
        (
            "llama3",
            &|json| json["added_tokens"][0]["id"] = json!(u64::MAX),
            "added_tokens: id 18446744073709551615",
        ),
        (
            "llama3",
            &|json| {
                json["model"]["vocab"]
                    .as_object_mut()
                    .unwrap()
                    .insert("x".repeat(2000), json!(5));
            },
            "has 2000 bytes; at most 1024",
        ),
        (
            "llama3",
            &|json| json["normalizer"] = replace(json!({"String": ""}), "x"),
            "also matches an empty text",
        ),
        (
            "llama3",
            &|json| json["normalizer"] = replace(json!({"Regex": "a*|\\b"}), "x"),
            "also matches an empty text",
        ),
        (
            "llama3",
            &|json| json["normalizer"] = replace(json!({"Regex": "(?=a)"}), "x"),
            "\"(?=a)\" is not supported",
        ),
        (
            "llama3",
            &|json| {
                let step = replace(json!({"String": "a"}), "aa");
                json["normalizer"] = json!({"type": "Sequence", "normalizers": vec![step; 30]});
            },
            "may make a text 256 times longer; at most 128",
        ),
        (
            "llama3",
            &|json| json["normalizer"] = json!({"type": "Prepend", "prepend": "x".repeat(65)}),
            "a step inserts 65 bytes; at most 64",
        ),
        (
            "llama3",
            &|json| json["normalizer"] = replace(json!({"String": "x".repeat(5000)}), "y"),
            "a pattern of 5000 bytes; at most 4096",
        ),
        (
            "llama3",
            &|json| json["normalizer"] = replace(json!({"Regex": "x".repeat(5000)}), "y"),
            "a pattern of 5000 bytes; at most 4096",
        ),
        (
            "llama3",
            &|json| {
                json["normalizer"] =
                    json!({"type": "Sequence", "normalizers": vec![json!({"type": "Strip"}); 40]})
            },
            "more than 32 steps",
        ),
        (
            "llama3",
            &|json| {
                json["normalizer"] =
                    json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="})
            },
            "normalizer \"Precompiled\" is not supported",
        ),
        (
            "llama3",
            &|json| {
                let fixed = json!({"type": "FixedLength", "length": 0});
                let bytes = json["pre_tokenizer"].take();
                json["pre_tokenizer"] =
                    json!({"type": "Sequence", "pretokenizers": [fixed, bytes]});
            },
            "a length of at least 1",
        ),
        (
            "llama3",
            &|json| json["model"]["type"] = json!("Unigram"),
            "model.type \"Unigram\" is not supported",
        ),
        (
            "llama3",
            &|json| json["pre_tokenizer"] = json!({"type": "Whitespace"}),
            "pre_tokenizer \"Whitespace\"",
        ),
        (
            "llama3",
            &|json| json["model"]["merges"] = json!(["ab"]),
            "merge 0",
        ),
        (
            "llama3",
            &|json| json["model"]["merges"] = json!([["zz", "qq"]]),
            "\"zz\" is not among the tokens",
        ),
        (
            "llama3",
            &|json| json["model"]["vocab"]["far"] = json!(4_000_000),
            "without large gaps",
        ),
        (
            "llama3",
            &|json| json["added_tokens"][0]["lstrip"] = json!(true),
            "has lstrip",
        ),
        (
            "mistral",
            &|json| {
                json["model"]["vocab"]
                    .as_object_mut()
                    .unwrap()
                    .remove("<0x41>");
            },
            "no token <0x41>",
        ),
        (
            "mistral",
            &|json| json["pre_tokenizer"] = json!({"type": "Nonsense"}),
            "pre_tokenizer",
        ),
    ];
    for (family, by, expected) in cases {
        let error = change(family, by);
        assert!(
            error.contains(expected) && error.contains("tokenizer.json"),
            "{error}"
        );
    }
    let folder = copy("llama3");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = Description::read(folder.path())
        .unwrap()
        .tokenizer()
        .unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

fn tokens(json: &Json) -> Vec<String> {
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    tokens
}

fn merges(json: &Json) -> Vec<String> {
    let pair = |merge: &Json| {
        format!(
            "{} {}",
            merge[0].as_str().unwrap(),
            merge[1].as_str().unwrap()
        )
    };
    json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(pair)
        .collect()
}

fn strings(list: &[String]) -> Value {
    Value::Array(formats::gguf::Array::String(list.to_vec()))
}

/// The vocabulary of a `tokenizer.json` in a GGUF.
fn gguf_of(json: &Json, model: &str, more: impl Fn(&mut GgufWriter)) -> Gguf {
    let tokens = tokens(json);
    let special = json["added_tokens"].as_array().unwrap();
    let kind = |token: &String| {
        let control = special
            .iter()
            .any(|special| special["content"] == token.as_str());
        if control { 3 } else { 1 }
    };
    let kinds: Vec<i32> = tokens.iter().map(kind).collect();
    let mut writer = GgufWriter::new();
    writer
        .metadata("tokenizer.ggml.model", model)
        .metadata("tokenizer.ggml.tokens", strings(&tokens))
        .metadata(
            "tokenizer.ggml.token_type",
            Value::Array(formats::gguf::Array::I32(kinds)),
        )
        .metadata("tokenizer.ggml.bos_token_id", 1u32)
        .metadata("tokenizer.ggml.eos_token_id", 2u32);
    more(&mut writer);
    Gguf::parse(Arc::new(writer.to_bytes().unwrap()), "vocabulary.gguf").unwrap()
}

#[test]
fn tokenizer_with_other_steps_still_loads() {
    let folder = copy("llama3");
    let path = folder.path().join("tokenizer.json");
    let mut json = read_json(&path);
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": "[0-9]{2,}"}, "content": "7"},
        {"type": "Replace", "pattern": {"String": "--"}, "content": "-"},
    ]});
    std::fs::write(&path, json.to_string()).unwrap();
    let description = Description::read(folder.path()).unwrap();
    let tokenizer = description.tokenizer().unwrap();
    let ids = |text| tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(ids("a--b 123"), ids("a-b 7"));
}
