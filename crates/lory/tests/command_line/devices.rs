//! `--device`. Tests on a graphics card need a Vulkan driver, for which Mesa's llvmpipe is enough.

use serde_json::Value;

use crate::test_dir::{Ran, TestDir, ran};

const GENERATE: [&str; 5] = ["generate", "--base", "tiny.gguf", "--max-new-tokens", "6"];

fn generate(dir: &TestDir, more: &[&str]) -> Ran {
    dir.run(&[&GENERATE, more, &["Where is my parcel?"]].concat())
}

/// Runs `lory` as on a machine whose Vulkan loader finds no driver.
#[cfg(target_os = "linux")]
fn without_driver(dir: &TestDir, args: &[&str]) -> Ran {
    let mut command = dir.lory(args);
    command.env("VK_DRIVER_FILES", "/nonexistent");
    command.env("VK_ICD_FILENAMES", "/nonexistent");
    ran(command.output().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn machine_without_a_driver_runs_on_the_cpu_and_rejects_a_card() {
    let dir = TestDir::with_tones();
    let run = |more: &[&str]| without_driver(&dir, &[&GENERATE, more, &["Hi"]].concat());
    let auto = run(&[]);
    assert_eq!(auto.succeeds(), run(&["--device", "cpu"]).succeeds());
    run(&["--device", "vulkan:0"]).fails(1, &["vulkan:0", "none", "driver", "--device cpu"]);
    run(&["--device", "gpu"]).fails(2, &["auto, cpu, vulkan:N or metal:N", "no Vulkan or Metal"]);
    without_driver(&dir, &["doctor"]).succeeds();
}

#[test]
fn unknown_devices_are_rejected_with_the_known_ones() {
    if testkit::gpu::vulkan().is_none() {
        return;
    }
    let dir = TestDir::with_tones();
    for device in ["gpu", "cuda:0", "vulkan", "vulkan:x", ""] {
        generate(&dir, &["--device", device]).fails(2, &["--device", "auto, cpu", "vulkan:0 ("]);
    }
    generate(&dir, &["--device", "vulkan:99"]).fails(1, &["vulkan:99", "known: vulkan:0"]);
}

#[test]
fn named_card_answers_and_is_listed_with_memory_and_driver() {
    if testkit::gpu::vulkan().is_none() {
        return;
    }
    let dir = TestDir::with_tones();
    let on_card = ["--device", "vulkan:0", "--persona", "warm"];
    let first = generate(&dir, &on_card);
    assert!(first.succeeds().trim_end().len() > 1, "{first:?}");
    assert_eq!(first.out, generate(&dir, &on_card).out);

    let doctor = dir.run(&[
        "doctor",
        "--base",
        "tiny.gguf",
        "--device",
        "vulkan:0",
        "--json",
    ]);
    let report: Value = serde_json::from_str(doctor.succeeds()).unwrap();
    let card = &report["machine"]["gpus"][0];
    assert_eq!(card["device"], "vulkan:0", "{card:#}");
    assert!(card["memory"].as_u64().unwrap() > 1 << 20, "{card:#}");
    assert!(!card["driver"].as_str().unwrap().is_empty(), "{card:#}");
}

#[test]
fn demo_on_a_card_prints_answers_in_columns() {
    if testkit::gpu::vulkan().is_none() {
        return;
    }
    let dir = TestDir::with_tones();
    let args = [
        "demo",
        "--once",
        "--base",
        "tiny.gguf",
        "--device",
        "vulkan:0",
    ];
    let wide = ran(dir.lory(&args).env("COLUMNS", "170").output().unwrap());
    let mut lines = wide.succeeds().lines();
    let head = lines.find(|line| line.starts_with("tiny (no persona)"));
    assert_eq!(head.unwrap().matches('│').count(), 2, "{}", wide.out);
    assert!(wide.out.contains("3 answers, "), "{}", wide.out);
}
