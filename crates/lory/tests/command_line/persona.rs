//! `lory persona export` and `lory persona merge`, on a tiny base.

use formats::gguf::Gguf;
use formats::peft::{Adapter, Dtype};
use serde_json::Value;
use testkit::tiny::{tiny_adapter, tiny_config};

use crate::test_dir::TestDir;

const BASE: [&str; 2] = ["--base", "tiny.gguf"];

fn test_dir() -> TestDir {
    let dir = TestDir::with_tones();
    let text = "system_prompt = \"Be warm.\"\nmax_new_tokens = 16\nscale = 0.5\n[train]\ndata = \"train.jsonl\"\n\
                eval = \"eval.jsonl\"\n";
    dir.persona("warm", text, Some(11));
    let rows: String = (0..6)
        .map(|i| {
            format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"On its way, {i}!\"}}\n")
        })
        .collect();
    dir.write("personas/warm/eval.jsonl", &rows);
    dir
}

#[test]
fn an_exported_adapter_has_the_personas_scale() {
    let dir = test_dir();
    let args = [
        "persona",
        "export",
        BASE[0],
        BASE[1],
        "--gguf",
        "warm",
        "--out",
        "warm.gguf",
    ];
    let ran = dir.run(&args);
    assert!(ran.succeeds().contains("28 tensors in F32"), "{ran:?}");
    assert!(ran.out.contains("system prompt, \"Be warm.\""), "{ran:?}");
    let file = Gguf::open(&dir.path("warm.gguf")).unwrap();
    let adapter = Adapter::read(&dir.path("personas/warm/adapter")).unwrap();
    let same = adapter.to_gguf(&tiny_config(), 0.5, Dtype::F32).unwrap();
    let same = Gguf::parse(std::sync::Arc::new(same.to_bytes().unwrap()), "same").unwrap();
    assert_eq!(file.tensors().len(), 28);
    for (found, wanted) in file.tensors().zip(same.tensors()) {
        assert_eq!(
            (found.name, found.dims, found.data),
            (wanted.name, wanted.dims, wanted.data)
        );
    }
    assert_eq!(file.get_f32("adapter.lora.alpha").unwrap(), Some(2.0));
    assert_eq!(file.get_str("general.name").unwrap(), Some("warm"));

    let ran = dir.run(&[&args[..], &["--type", "bf16", "--json"]].concat());
    let report: Value = serde_json::from_str(ran.succeeds()).unwrap();
    assert_eq!(
        (&report["tensors"], &report["type"]),
        (&28.into(), &"BF16".into())
    );
    assert_eq!(report["scale"], 0.5);
}

#[test]
fn a_merged_base_answers_like_the_persona() {
    let dir = test_dir();
    let merge = ["persona", "merge", BASE[0], BASE[1], "warm", "--out"];
    let ran = dir.run(&[&merge[..], &["f32.gguf", "--type", "f32", "--json"]].concat());
    let report: Value = serde_json::from_str(ran.succeeds()).unwrap();
    let loss = |i: usize| report["losses"][i]["loss"].as_f64().unwrap();
    assert!((loss(0) - loss(1)).abs() > 0.01, "{report:#}");
    // The merged weights are exact; the base's own are not quantized a second time, so only activations round otherwise.
    let by_merging = report["loss_by_merging"].as_f64().unwrap();
    assert!(by_merging.abs() < 0.02, "{report:#}");
    assert_eq!(by_merging, loss(2) - loss(1));

    let ran = dir.run(&[&merge[..], &["kept.gguf"]].concat());
    let table = ran.succeeds();
    for part in [
        "base and adapter, unmerged",
        "merged, in the base's types",
        "merging changes the loss by ",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let (base, kept) = ["tiny.gguf", "kept.gguf"]
        .map(|name| Gguf::open(&dir.path(name)).unwrap())
        .into();
    for (was, is) in base.tensors().zip(kept.tensors()) {
        assert_eq!(
            (was.name, was.dtype, was.dims),
            (is.name, is.dtype, is.dims)
        );
        let touched = was.name.starts_with("blk.") && !was.name.contains("norm");
        assert_eq!(was.data != is.data, touched, "{}", was.name);
    }
    let key = "tokenizer.chat_template";
    assert_eq!(base.get_str(key).unwrap(), kept.get_str(key).unwrap());
    assert_eq!(kept.get_f32("lory.merged_scale").unwrap(), Some(0.5));
    dir.run(&["generate", "--base", "f32.gguf", "hi"])
        .succeeds();
    // Of the first row alone, and of none.
    let limited = |limit: &str| {
        let ran = dir.run(&[&merge[..], &["few.gguf", "--json", "--limit", limit]].concat());
        serde_json::from_str::<Value>(ran.succeeds()).unwrap()
    };
    let few = limited("1");
    assert_eq!(few["losses"].as_array().unwrap().len(), 3);
    assert_ne!(few["losses"][0]["loss"], report["losses"][0]["loss"]);
    assert_eq!(limited("9999")["losses"][0], report["losses"][0]);
    assert_eq!(limited("0")["losses"].as_array().unwrap().len(), 0);
    // Without evaluation rows there is nothing to measure on, and the file is written all the same.
    let ran = dir.run(&[
        "persona",
        "merge",
        BASE[0],
        BASE[1],
        "formal",
        "--out",
        "formal.gguf",
    ]);
    assert!(ran.succeeds().contains("not measured"), "{ran:?}");
}

#[test]
fn export_and_merge_errors_give_the_reason() {
    let dir = test_dir();
    dir.persona("plain", "", None);
    let persona = |args: &[&str]| dir.run(&[&["persona"], args, &BASE].concat());
    let merge = |args: &[&str]| persona(&[&["merge"], args].concat());
    merge(&["plain", "--out", "x.gguf"]).fails(1, &["persona plain has no adapter yet"]);
    merge(&["nobody", "--out", "x.gguf"]).fails(1, &["unknown persona `nobody`"]);
    merge(&["warm*0.5+formal*0.5", "--out", "x.gguf"]).fails(2, &["a blend has several adapters"]);
    merge(&["warm", "--out", "tiny.gguf"]).fails(2, &["is the base itself"]);
    merge(&["warm", "--out", "x.gguf", "--type", "q4_k"]).fails(2, &["must be keep, f32"]);
    merge(&["warm", "--out", "no/folder/x.gguf"]).fails(1, &["no/folder/x.gguf"]);
    persona(&["export", "--gguf", "warm", "--out", "tiny.gguf"]).fails(2, &["is the base itself"]);
    persona(&["export", "--gguf", "plain", "--out", "x.gguf"]).fails(1, &["has no adapter yet"]);
    let mut other = tiny_adapter(5, &tiny_config(), 4, 1.0);
    other
        .metadata
        .insert("lory.template_hash".to_owned(), "ab12".to_owned());
    dir.write("personas/other/persona.toml", "");
    other
        .write(&dir.path("personas/other/adapter"), Dtype::F32, "")
        .unwrap();
    for args in [
        &["merge", "other", "--out", "x.gguf"][..],
        &["export", "--gguf", "other", "--out", "x.gguf"],
    ] {
        persona(args).fails(
            1,
            &["persona other was trained with another chat template (ab12)"],
        );
    }
    assert!(!dir.path("x.gguf").exists());
}
