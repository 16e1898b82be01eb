//! Bases from folders of several families: precisions, the quant cache, and the plan.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::test_dir::{Ran, TestDir};

fn family(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../model/tests/fixtures/families")
        .join(name)
}

fn answer(dir: &TestDir, base: &Path, more: &[&str]) -> Ran {
    let base = base.to_str().unwrap();
    let args = [
        "generate",
        "--base",
        base,
        "--max-new-tokens",
        "6",
        "--json",
        "where is the order?",
    ];
    dir.run(&[&args[..], more].concat())
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(ran.succeeds()).unwrap()
}

#[test]
fn folders_run_in_every_precision_and_use_the_quant_cache() {
    let dir = TestDir::new();
    let of = |precision| {
        json(&answer(
            &dir,
            &family("llama3"),
            &["--precision", precision],
        ))
    };
    let whole = of("f32");
    assert_eq!(
        whole["response"],
        of("bf16")["response"],
        "bf16 is what the file has"
    );
    for precision in ["f16", "q8", "q4", "auto"] {
        let prompt = "/usage/prompt_tokens";
        assert_eq!(
            of(precision).pointer(prompt),
            whole.pointer(prompt),
            "{precision}"
        );
    }
    // auto took q8; q4 and q8 are kept, and read the second time.
    let kept: Vec<String> = {
        let names = dir.names("home/quantized");
        let whole = |name: &String| name.ends_with(".gguf");
        names.into_iter().filter(whole).collect()
    };
    assert_eq!(kept.len(), 2, "{kept:?}");
    let bytes = |name: &String| {
        let path = dir.path("home/quantized").join(name);
        std::fs::read(path).unwrap()
    };
    let before: Vec<Vec<u8>> = kept.iter().map(bytes).collect();
    let first = json(&answer(&dir, &family("llama3"), &["--precision", "q4"]));
    let again = json(&answer(&dir, &family("llama3"), &["--precision", "q4"]));
    assert_eq!(first["response"], again["response"]);
    assert_eq!(before, kept.iter().map(bytes).collect::<Vec<_>>());

    // A copy elsewhere is the same base.
    let copy = dir.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(family("llama3")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let copied = json(&answer(&dir, &copy, &["--precision", "q4"]));
    assert_eq!(copied["response"], first["response"]);

    let doctor = json(&dir.run(&["doctor", "--json"]));
    assert_eq!(doctor["quantized"].as_array().unwrap().len(), 2);
    // A kept file that is broken is made anew.
    for name in &kept {
        std::fs::write(dir.path("home/quantized").join(name), "broken").unwrap();
    }
    let anew = json(&answer(&dir, &family("llama3"), &["--precision", "q4"]));
    assert_eq!(anew["response"], first["response"]);
}

#[test]
fn an_adapter_trained_on_a_folder_base_is_served() {
    let dir = TestDir::new();
    let rows: String = (0..12)
        .map(|i| {
            format!("{{\"prompt\": \"order {i}\", \"completion\": \"the order {i} is there\"}}\n")
        })
        .collect();
    dir.write("rows.jsonl", &rows);
    let base = family("llama3");
    let base = base.to_str().unwrap();
    let train = |precision| {
        let args = [
            "train",
            "--base",
            base,
            "--data",
            "rows.jsonl",
            "--out",
            "out",
            "--epochs",
            "1",
            "--json",
        ];
        dir.run(&[&args[..], &["--precision", precision]].concat())
    };
    let trained = train("q4");
    trained.succeeds();
    assert!(
        trained.err.contains("plan: cpu: weights 0 MiB (q4)"),
        "{trained:?}"
    );
    let scale = std::fs::read_to_string(dir.path("out/adapter_config.json")).unwrap();
    assert!(scale.contains("q_proj"), "{scale}");
    dir.write("personas/warm/persona.toml", "description = \"Warm\"");
    std::fs::rename(dir.path("out"), dir.path("personas/warm/adapter")).unwrap();
    for precision in ["q4", "q8", "bf16"] {
        let base = family("llama3");
        let asked = answer(
            &dir,
            &base,
            &["--persona", "warm", "--precision", precision],
        );
        assert_eq!(json(&asked)["persona"]["name"], "warm", "{precision}");
    }
}

#[test]
fn a_base_that_does_not_fit_is_rejected_before_loading() {
    let dir = TestDir::with_tones();
    for command in [
        &["serve", "--personas", "personas", "--port", "0"][..],
        &["doctor", "--no-probe"],
    ] {
        let args = [command, &["--base", "tiny.gguf", "--kv-memory", "999TiB"]].concat();
        let ran = dir.run(&args);
        assert_eq!(ran.code, 1, "{ran:?}");
        let output = format!("{}{}", ran.out, ran.err);
        for part in ["needed and", "keys and values 1022976.0 GiB", "--kv-memory"] {
            assert!(output.contains(part), "{part}: {output}");
        }
    }
}

#[test]
fn doctor_prints_the_machine_and_the_plan() {
    let dir = TestDir::with_tones();
    let machine = dir.run(&["doctor"]);
    for part in ["threads", "instruction sets", "memory"] {
        assert!(machine.succeeds().contains(part), "{part}: {machine:?}");
    }
    // A card that a driver offers has its name for --device.
    let out = machine.succeeds();
    assert!(
        out.contains("GPU") || out.contains("vulkan:0") || out.contains("metal:0"),
        "{machine:?}"
    );
    let folder = family("qwen3");
    let folder = folder.to_str().unwrap();
    let report = json(&dir.run(&["doctor", "--base", folder, "--json"]));
    assert_eq!(report["plan"]["chosen"]["device"]["kind"], "cpu");
    assert_eq!(report["plan"]["chosen"]["precision"], "q8");
    assert!(
        report["probe"]["tokens_per_s"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    assert!(report["plan"]["peak_bytes"].as_u64().unwrap() > 700 << 20);
    let asked = dir.run(&[
        "doctor",
        "--base",
        folder,
        "--precision",
        "q4",
        "--no-probe",
    ]);
    for part in [
        "qwen3 of ",
        "precision  q4",
        "because    --precision is q4",
        "kv blocks",
    ] {
        assert!(asked.succeeds().contains(part), "{part}: {asked:?}");
    }
    let kept = dir.run(&["doctor", "--base", "tiny.gguf", "--no-probe"]);
    assert!(
        kept.succeeds().contains("weights are quantized (Q4_1)"),
        "{kept:?}"
    );
}

#[test]
fn broken_folders_are_rejected_by_file_name() {
    let dir = TestDir::new();
    std::fs::create_dir(dir.path("empty")).unwrap();
    answer(&dir, &dir.path("empty"), &[]).fails(1, &["empty", "the folder has no config.json"]);
    dir.write(
        "moe/config.json",
        r#"{"model_type": "mixtral", "num_local_experts": 8}"#,
    );
    answer(&dir, &dir.path("moe"), &[]).fails(
        1,
        &[
            "moe/config.json",
            "a mixture of experts (num_local_experts)",
        ],
    );
    answer(&dir, &family("qwen2"), &[]).fails(1, &["qwen2/tokenizer.json"]);
    answer(&dir, &family("llama3"), &["--precision", "q5"])
        .fails(2, &["must be auto, f32, bf16, f16, q8 or q4"]);
    let merge = ["persona", "merge", "warm", "--out", "x.gguf", "--base"];
    let base = family("llama3");
    dir.persona("warm", "description = \"Warm\"", Some(1));
    dir.run(&[&merge[..], &[base.to_str().unwrap()]].concat())
        .fails(1, &["convert_hf_to_gguf.py"]);
}

#[test]
fn completions_and_manual_pages_list_the_commands() {
    let dir = TestDir::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = dir.run(&["completions", shell]);
        assert!(ran.succeeds().contains("doctor"), "{shell}");
    }
    dir.run(&["man", "--out", "man"]).succeeds();
    let pages = dir.names("man");
    for page in ["lory.1", "lory-serve.1", "lory-doctor.1"] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
}
