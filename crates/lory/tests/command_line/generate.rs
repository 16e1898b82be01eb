//! `lory generate`, and its errors for broken bases, personas and adapters.

use serde_json::Value;

use crate::test_dir::TestDir;

const TINY: [&str; 3] = ["generate", "--base", "tiny.gguf"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&TINY[..], more].concat()
}

#[test]
fn generate_is_deterministic() {
    let dir = TestDir::with_tones();
    let args = with(&[
        "--persona",
        "warm",
        "--max-new-tokens",
        "12",
        "Where is order 12345?",
    ]);
    let first = dir.run(&args);
    assert!(first.succeeds().trim_end().len() > 1, "{first:?}");
    assert_eq!(first.out, dir.run(&args).out);
    let base = dir.run(&with(&["--max-new-tokens", "12", "Where is order 12345?"]));
    assert_ne!(base.succeeds(), first.out);
}

#[test]
fn batched_answers_equal_single_answers() {
    let dir = TestDir::with_tones();
    let mixed = ["warm", "formal@2", "warm*0.5+formal*0.5"];
    let mut args = with(&["--json", "Where is my parcel?"]);
    let flags: Vec<&str> = mixed.iter().flat_map(|who| ["--persona", who]).collect();
    args.splice(3..3, flags);
    let together = dir.run(&args);
    let together: Vec<Value> = together
        .succeeds()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(together.len(), 3);
    assert_eq!(together[0]["persona"]["version"], 1);
    assert_eq!(together[1]["persona"]["version"], 2);
    assert_eq!(together[2]["persona"]["adapters"][1]["scale"], 0.5);
    for (who, answer) in mixed.iter().zip(&together) {
        assert_eq!(
            answer["usage"]["completion_tokens"]
                .as_u64()
                .unwrap()
                .min(8),
            answer["usage"]["completion_tokens"]
        );
        let alone = dir.run(&with(&["--json", "--persona", who, "Where is my parcel?"]));
        let alone: Value = serde_json::from_str(alone.succeeds()).unwrap();
        assert_eq!(alone["response"], answer["response"], "{who}");
    }
    // For people: in columns, under their names.
    let shown = dir.run(&with(&[
        "--persona",
        "warm",
        "--persona",
        "formal",
        "Where is my parcel?",
    ]));
    let head = shown.succeeds().lines().next().unwrap();
    assert!(
        head.starts_with("warm ") && head.contains("│  formal"),
        "{shown:?}"
    );
}

#[test]
fn an_unknown_persona_is_rejected_with_the_known_ones() {
    let dir = TestDir::with_tones();
    let ran = dir.run(&with(&["--persona", "nobody", "hi"]));
    ran.fails(
        1,
        &["unknown persona `nobody`; the personas are formal, warm"],
    );
    assert_eq!(ran.err.matches("unknown persona").count(), 1, "{ran:?}");
    let ran = dir.run(&with(&["--persona", "formal@1", "hi"]));
    ran.fails(
        1,
        &["persona `formal` has no version 1; there is only version 2"],
    );
    let ran = dir.run(&with(&[
        "--personas",
        "elsewhere",
        "--persona",
        "warm",
        "hi",
    ]));
    ran.fails(1, &["elsewhere"]);
}

#[test]
fn a_broken_base_is_rejected_by_file_name() {
    let dir = TestDir::with_tones();
    let whole = std::fs::read(dir.path("tiny.gguf")).unwrap();
    std::fs::write(dir.path("short.gguf"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(dir.path("head.gguf"), &whole[..40]).unwrap();
    std::fs::write(dir.path("text.gguf"), "no model at all").unwrap();
    std::fs::write(dir.path("empty.gguf"), "").unwrap();
    for base in ["short.gguf", "head.gguf", "text.gguf", "empty.gguf"] {
        let ran = dir.run(&["generate", "--base", base, "hi"]);
        ran.fails(1, &[base]);
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    dir.write("pointer.gguf", pointer);
    dir.write("folder/config.json", pointer);
    for (base, file) in [("pointer.gguf", "pointer.gguf"), ("folder", "config.json")] {
        let ran = dir.run(&["generate", "--base", base, "hi"]);
        ran.fails(1, &[file, "a pointer of Git LFS", "git lfs pull"]);
    }
    let ran = dir.run(&["generate", "--base", "nowhere.gguf", "hi"]);
    ran.fails(1, &["--base nowhere.gguf: no such file", "smollm2-135m"]);
}

#[test]
fn a_broken_persona_or_adapter_is_rejected_by_file_name() {
    let dir = TestDir::with_tones();
    let ask = || {
        // The other personas answer.
        dir.run(&with(&["--persona", "warm", "hi"])).succeeds();
        dir.run(&with(&["--persona", "formal", "hi"]))
    };
    let weights = "personas/formal/adapter/adapter_model.safetensors";
    let whole = std::fs::read(dir.path(weights)).unwrap();
    std::fs::write(dir.path(weights), &whole[..whole.len() - 9]).unwrap();
    ask().fails(1, &["adapter_model.safetensors"]);
    let both = ["--persona", "formal", "--persona", "warm", "hi"];
    let ran = dir.run(&with(&both));
    ran.fails(
        1,
        &["persona formal did not answer", "adapter_model.safetensors"],
    );
    assert!(ran.out.starts_with("warm"), "{ran:?}");
    std::fs::write(dir.path(weights), &whole).unwrap();

    // An adapter of a wider model.
    let mut config = testkit::tiny::tiny_config();
    config.hidden_size *= 2;
    let mut wide = testkit::tiny::tiny_adapter(3, &config, 4, 1.0);
    wide.config.base_model_name_or_path = Some("owner/Wide-2B".to_owned());
    let folder = dir.path("personas/formal/adapter");
    wide.write(&folder, formats::peft::Dtype::F32, "wide")
        .unwrap();
    ask().fails(
        1,
        &[
            "layers.0",
            "the model needs",
            "use it with --base owner/Wide-2B",
        ],
    );

    dir.persona(
        "formal",
        "version = 2\n[sampling]\ntemprature = 1",
        Some(12),
    );
    ask().fails(
        1,
        &["persona.toml:3: ", "temprature", "unknown persona `formal`"],
    );
    // The base alone does not need them.
    dir.run(&with(&["hi"])).succeeds();
}
