//! The tokenizer against Hugging Face's, over a tiny vocabulary; `fixtures/make_tokenizer.py` made the file.
//! The same over the real vocabulary is a test of the binary, which can fetch it.

use std::collections::BTreeMap;
use std::sync::Arc;

use formats::chat_template::ChatTemplate;
use formats::gguf::{Gguf, GgufWriter, Value};
use formats::tokenizer::{Special, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    texts: Vec<String>,
    families: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Expected {
    parse: Vec<Vec<u32>>,
    as_text: BTreeMap<usize, Vec<u32>>,
    decoded: BTreeMap<usize, String>,
    skipped: BTreeMap<usize, String>,
}

#[derive(Deserialize)]
struct Tiny {
    tokens: Vec<String>,
    merges: Vec<String>,
    types: Vec<i32>,
}

fn fixture<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn writer(family: &str, tokens: &[String], merges: &[String], types: &[i32]) -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer
        .metadata("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.pre", family)
        .metadata("tokenizer.ggml.tokens", tokens.to_vec())
        .metadata("tokenizer.ggml.merges", merges.to_vec())
        .metadata("tokenizer.ggml.token_type", types.to_vec());
    writer
}

fn build(writer: &GgufWriter) -> Result<Tokenizer, TokenizerError> {
    let gguf = Gguf::parse(Arc::new(writer.to_bytes().unwrap()), "test.gguf").unwrap();
    Tokenizer::from_gguf(&gguf)
}

fn tiny(family: &str) -> GgufWriter {
    let tiny: Tiny = fixture("tokenizer_tiny.json");
    let mut writer = writer(family, &tiny.tokens, &tiny.merges, &tiny.types);
    writer
        .metadata("tokenizer.ggml.bos_token_id", 1u32)
        .metadata("tokenizer.ggml.eos_token_id", 2u32);
    writer
}

fn compare(family: &str, tokenizer: &Tokenizer, texts: &[String], expected: &Expected) {
    for (index, text) in texts.iter().enumerate() {
        let parse = tokenizer.encode(text, Special::Parse).unwrap();
        assert_eq!(
            parse, expected.parse[index],
            "{family}: text {index}: {text:?}"
        );
        let as_text = tokenizer.encode(text, Special::AsText).unwrap();
        let wanted = expected
            .as_text
            .get(&index)
            .unwrap_or(&expected.parse[index]);
        assert_eq!(
            &as_text, wanted,
            "{family}, as text: text {index}: {text:?}"
        );

        let decoded = tokenizer.decode(&parse, false);
        let whole = expected.decoded.get(&index).unwrap_or(text);
        assert_eq!(&decoded, whole, "{family}, decoded: text {index}");
        let wanted = expected.skipped.get(&index).unwrap_or(whole);
        assert_eq!(
            &tokenizer.decode(&parse, true),
            wanted,
            "{family}, skipped: text {index}"
        );

        let mut detokenizer = tokenizer.detokenizer();
        let mut streamed: String = parse.iter().map(|&id| detokenizer.push(id)).collect();
        streamed += &detokenizer.finish();
        assert_eq!(&streamed, wanted, "{family}, streamed: text {index}");
    }
}

#[test]
fn ids_equal_hugging_face_in_every_family() {
    let expected: Fixture = fixture("tokenizer_tiny.json");
    assert_eq!(expected.families.len(), 4);
    for (family, expected_ids) in &expected.families {
        let tokenizer = build(&tiny(family)).unwrap();
        compare(family, &tokenizer, &expected.texts, expected_ids);
    }
}

#[test]
fn the_families_differ_on_the_test_set() {
    let tiny: Fixture = fixture("tokenizer_tiny.json");
    let ids: Vec<_> = tiny
        .families
        .values()
        .map(|expected| &expected.parse)
        .collect();
    for (index, one) in ids.iter().enumerate() {
        assert!(
            ids[index + 1..].iter().all(|other| one != other),
            "two families give the same ids"
        );
    }
}

#[test]
fn special_tokens_and_family_aliases_are_read() {
    let tokenizer = build(&tiny("gpt-2")).unwrap();
    assert_eq!(tokenizer.end_ids(), [0, 2]);
    assert_eq!(tokenizer.token(2), Some("<|im_end|>"));
    assert_eq!(tokenizer.token_bytes(2), b"<|im_end|>");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(5) && !tokenizer.is_special(1 << 30));
    assert!(!tokenizer.add_bos());
    let llama = build(&tiny("llama3")).unwrap();
    assert!(llama.add_bos());
    assert_eq!(llama.hash(), build(&tiny("llama-bpe")).unwrap().hash());
    assert_ne!(llama.hash(), tokenizer.hash());
    assert_eq!(tokenizer.hash().len(), 64);
    assert_eq!(tokenizer.decode(&[1 << 30], false), "");
}

#[test]
fn control_tokens_that_a_file_does_not_mark_are_recognised() {
    let tiny_file: Tiny = fixture("tokenizer_tiny.json");
    let marked = build(&tiny("smollm")).unwrap();
    let chat = "<|im_start|>user\nHi<|im_end|>";
    let (parsed, as_text) = (
        marked.encode(chat, Special::Parse).unwrap(),
        marked.encode(chat, Special::AsText).unwrap(),
    );
    let with = |kind: Option<i32>| {
        let mut types = tiny_file.types.clone();
        types
            .iter_mut()
            .take(3)
            .for_each(|own| *own = kind.unwrap_or(3));
        let mut writer = writer("smollm", &tiny_file.tokens, &tiny_file.merges, &types);
        if kind.is_none() {
            writer.metadata("tokenizer.ggml.token_type", vec![1; types.len()]);
        }
        build(&writer).unwrap()
    };
    for kind in [None, Some(1), Some(4)] {
        let tokenizer = with(kind);
        assert_eq!(tokenizer.end_ids(), [0, 2], "{kind:?}");
        // A file may mean a user-defined token that begins a turn; it has a text then.
        assert!(
            tokenizer.is_special(0) && tokenizer.is_special(2),
            "{kind:?}"
        );
        assert_eq!(
            tokenizer.encode(chat, Special::Parse).unwrap(),
            parsed,
            "{kind:?}"
        );
        if kind != Some(4) {
            let ids = tokenizer.encode(chat, Special::AsText).unwrap();
            assert_eq!(ids, as_text, "{kind:?}");
        }
        assert_eq!(tokenizer.decode(&[2], true), "");
    }
}

#[test]
fn tokens_that_end_a_turn_are_found_by_role_and_by_name() {
    let tiny: Tiny = fixture("tokenizer_tiny.json");
    let last = tiny.tokens.len() as u32;
    let mut tokens = tiny.tokens.clone();
    let mut types = tiny.types.clone();
    for text in ["<end_of_turn>", "[EOT]", "<ends>", "word", "<|eom_id|>"] {
        tokens.push(text.to_owned());
        types.push(1);
    }
    let mut writer = writer("smollm", &tokens, &tiny.merges, &types);
    writer
        .metadata("tokenizer.ggml.eos_token_id", last + 2)
        .metadata("tokenizer.ggml.eot_token_id", last + 1)
        .metadata("tokenizer.ggml.eom_token_id", last + 3);
    let tokenizer = build(&writer).unwrap();
    assert_eq!(
        tokenizer.end_ids(),
        [0, 2, last, last + 1, last + 2, last + 3, last + 4]
    );
    let ids = tokenizer.encode("<ends>[EOT]", Special::Parse).unwrap();
    assert_eq!(ids, [last + 2, last + 1]);
    // A plain word stays a word.
    assert!(!tokenizer.is_special(last + 3));
}

#[test]
fn template_shows_what_ends_a_turn() {
    let tiny: Tiny = fixture("tokenizer_tiny.json");
    let own = tiny.tokens.len() as u32;
    let mut tokens = tiny.tokens.clone();
    let mut types = tiny.types.clone();
    for (text, kind) in [("<|turn_over|>", 1), ("<turn>", 4), ("<done>", 3)] {
        tokens.push(text.to_owned());
        types.push(kind);
    }
    for text in ["</s>", "<end_of_utterance>", "<turn|>", "word"] {
        tokens.push(text.to_owned());
        types.push(1);
    }
    let tokenizer = build(&writer("smollm", &tokens, &tiny.merges, &types)).unwrap();
    let ends_with = |end: &str| {
        let source = format!(
            "{{% for m in messages %}}{{% if m.role == 'system' and 0 %}}{{{{ raise_exception('no') }}}}{{% endif %}}<turn>{{{{ \
             m.role }}}}\n{{{{ m.content }}}}{end}{{% endfor %}}{{% if add_generation_prompt %}}<turn>assistant\n{{% endif %}}"
        );
        ChatTemplate::new(&source, "", "")
            .unwrap()
            .end_of_turn(&tokenizer)
    };
    assert_eq!(ends_with("<|turn_over|>\n"), Some(own));
    assert_eq!(ends_with("\n<done>\n"), Some(own + 2));
    assert_eq!(ends_with("<|im_end|>\n"), Some(2));
    assert_eq!(ends_with("\n\n"), None);
    assert_eq!(ends_with(" and more<done>"), None);
    assert_eq!(ends_with("{{ raise_exception('never') }}"), None);
    // The file types these as text.
    for (end, id) in (own + 3..)
        .zip(["</s>", "<end_of_utterance>", "<turn|>"])
        .map(|(id, end)| (end, id))
    {
        assert_eq!(ends_with(end), Some(id), "{end}");
        assert_eq!(ends_with(&format!("{end}\n")), Some(id), "{end}");
    }
    assert_eq!(ends_with("word"), None);
    let hash = tokenizer.hash().to_owned();
    let with_own = tokenizer.with_end_id(own).unwrap();
    let twice = with_own.with_end_id(own).unwrap();
    assert_eq!(twice.end_ids(), [0, 2, own]);
    assert_eq!(twice.hash(), hash);
    // A token that was text is a control token from then on, and a user's text does not become it.
    let of_text = twice.with_end_id(own + 4).unwrap();
    assert_eq!(of_text.end_ids(), [0, 2, own, own + 4]);
    assert!(of_text.is_special(own + 4));
    let ids = |special| of_text.encode("<end_of_utterance>", special).unwrap();
    assert_eq!(ids(Special::Parse), [own + 4]);
    assert!(!ids(Special::AsText).contains(&(own + 4)));
    assert_ne!(of_text.hash(), hash);
}

#[test]
fn character_of_several_tokens_is_emitted_whole() {
    let mut writer = tiny("gpt2");
    writer.metadata("tokenizer.ggml.merges", Vec::<String>::new());
    let tokenizer = build(&writer).unwrap();
    let ids = tokenizer.encode("a😀b", Special::AsText).unwrap();
    assert_eq!(ids.len(), 6);
    let mut detokenizer = tokenizer.detokenizer();
    let pushed: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    assert_eq!(pushed, ["a", "", "", "", "😀", "b"]);

    // Cut short, the rest of a character is one sign; broken in the middle, what follows is not lost.
    let mut detokenizer = tokenizer.detokenizer();
    let pushed: Vec<String> = [ids[1], ids[2], ids[0], ids[1]]
        .iter()
        .map(|&id| detokenizer.push(id))
        .collect();
    assert_eq!(pushed, ["", "", "\u{fffd}a", ""]);
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn long_runs_are_encoded_whole_and_fast() {
    let tokenizer = build(&tiny("smollm")).unwrap();
    for family in ["smollm", "gpt2", "llama-bpe", "qwen2"] {
        let tokenizer = build(&tiny(family)).unwrap();
        for unit in [" ", "\n", "a", "1", "!", "é", " \n", "x "] {
            let text = unit.repeat(20_000) + "end";
            let ids = tokenizer.encode(&text, Special::AsText).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{family}: {unit:?}");
        }
    }
    assert!(tokenizer.encode("", Special::Parse).unwrap().is_empty());
}

#[test]
fn tokenizers_under_other_names_are_recognised() {
    let hash = |writer: &GgufWriter| build(writer).map(|tokenizer| tokenizer.hash().to_owned());
    let refused = |writer: &GgufWriter| hash(writer).unwrap_err().to_string();
    assert_eq!(
        hash(&tiny("deepseek-r1-qwen")).unwrap(),
        hash(&tiny("qwen2")).unwrap()
    );
    assert!(refused(&tiny("default")).contains("\"default\" is not supported"));
    // By the tokenizer.json in the file.
    let mut described = tiny("default");
    let json = r#"{"normalizer": null, "model": {}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}}"#;
    described.metadata("tokenizer.huggingface.json", json);
    assert_eq!(hash(&described).unwrap(), hash(&tiny("gpt2")).unwrap());
    // By the control tokens of the vocabulary.
    for (family, size, known) in [
        (
            "qwen2",
            151_645,
            [(151_643, "<|endoftext|>"), (151_644, "<|im_start|>")],
        ),
        (
            "llama-bpe",
            128_002,
            [(128_000, "<|begin_of_text|>"), (128_001, "<|end_of_text|>")],
        ),
    ] {
        let mut tokens: Vec<String> = (0..size).map(|i| format!("x{i}")).collect();
        for (id, text) in known {
            tokens[id] = text.to_owned();
        }
        let types = vec![1; size];
        let named = hash(&writer(family, &tokens, &[], &types)).unwrap();
        assert_eq!(
            hash(&writer("default", &tokens, &[], &types)).unwrap(),
            named
        );
        assert_eq!(hash(&writer("", &tokens, &[], &types)).unwrap(), named);
        tokens.swap(known[0].0, 7);
        assert!(hash(&writer("default", &tokens, &[], &types)).is_err());
    }
}

#[test]
fn unsupported_tokenizers_are_refused_by_name() {
    let message = |writer: &GgufWriter| build(writer).unwrap_err().to_string();
    let changed = |key: &str, value: Value| {
        let mut writer = tiny("gpt2");
        writer.metadata(key, value);
        message(&writer)
    };
    assert!(
        changed("tokenizer.ggml.pre", "deepseek-coder".into())
            .contains("\"deepseek-coder\" is not supported")
    );
    assert!(
        changed("tokenizer.ggml.model", "bert".into()).contains("tokenizer.ggml.model \"bert\"")
    );
    let merges = |merge: &str| {
        changed(
            "tokenizer.ggml.merges",
            vec!["a b".to_owned(), merge.to_owned()].into(),
        )
    };
    assert!(merges("nospace").contains("merge"), "{}", merges("nospace"));
    assert!(merges("zz yy").contains("is not among the tokens"));
    // Both halves are tokens, and together longer than any token.
    let long = format!("{0} {0}", "<|endoftext|>");
    assert!(merges(&long).contains("is not among the tokens"));
    assert!(changed("tokenizer.ggml.token_type", vec![1i32].into()).contains("1 types for"));
    assert!(
        changed("tokenizer.ggml.eos_token_id", 9_999_999u32.into())
            .contains("9999999, but there are only")
    );
    assert!(changed("tokenizer.ggml.tokens", Vec::<String>::new().into()).contains("0 tokens"));
    assert!(
        changed("tokenizer.ggml.tokens", 3u32.into()).contains("an array of strings is needed")
    );
    let message = message(&GgufWriter::new());
    assert!(
        message.contains("\"tokenizer.ggml.model\" is missing"),
        "{message}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_round_trips_and_streams_the_same(text in "\\PC{0,40}[\\s\\PC]{0,40}", family in 0usize..3) {
        // Three families of the four: Qwen 2 composes text first.
        let family = ["smollm", "gpt2", "llama-bpe"][family];
        thread_local! {
            static BUILT: std::cell::RefCell<BTreeMap<&'static str, std::rc::Rc<Tokenizer>>> = Default::default();
        }
        let tokenizer = BUILT.with_borrow_mut(|built| {
            built.entry(family).or_insert_with(|| build(&tiny(family)).unwrap().into()).clone()
        });
        let ids = tokenizer.encode(&text, Special::AsText).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids, false), &text);
    }

    #[test]
    fn streamed_text_equals_decoded_text(ids in prop::collection::vec(0u32..800, 0..60)) {
        thread_local!(static BUILT: Tokenizer = build(&tiny("gpt2")).unwrap());
        BUILT.with(|tokenizer| {
            let mut detokenizer = tokenizer.detokenizer();
            let mut streamed: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
            streamed += &detokenizer.finish();
            prop_assert_eq!(streamed, tokenizer.decode(&ids, true));
            Ok(())
        })?;
    }
}
