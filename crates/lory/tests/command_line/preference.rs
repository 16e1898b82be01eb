//! `lory train` on preference pairs: between personas, from rows with both answers, from an adapter.

use serde_json::Value;

use crate::test_dir::{Ran, TestDir};

fn rows(from: usize, count: usize, tone: &str) -> String {
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"{tone} order {i}.\"}}\n")
    };
    (from..from + count).map(row).collect()
}

const TRAIN: &str = "[train]\ndata = \"train.jsonl\"\neval = \"eval.jsonl\"\nlr = 0.01\nbatch_rows = 4\nepochs = 2\n";

/// A home with a base and two personas that answer the same questions, but for two.
fn test_dir() -> TestDir {
    let dir = TestDir::with_tones();
    for (name, tone, count) in [("sunny", "Yay", 12), ("stern", "Hm", 10)] {
        dir.persona(name, TRAIN, None);
        dir.write(
            &format!("personas/{name}/train.jsonl"),
            &rows(100, count, tone),
        );
        dir.write(&format!("personas/{name}/eval.jsonl"), &rows(300, 4, tone));
    }
    dir
}

fn train(dir: &TestDir, args: &[&str]) -> Ran {
    dir.run(&[&["train", "--base", "tiny.gguf"], args].concat())
}

#[test]
fn preference_training_separates_tones_and_caches_the_reference() {
    let dir = test_dir();
    let args = [
        "--persona",
        "sunny",
        "--persona",
        "stern",
        "--prefer-over",
        "sunny",
        "--prefer-over",
        "stern",
        "--beta",
        "0.2",
        "--json",
    ];
    let ran = train(&dir, &args);
    let summary: Value = serde_json::from_str(ran.succeeds()).unwrap();
    let of = |i: usize| summary["adapters"][i]["preference"].clone();
    assert_eq!(of(0)["pairs"], 4, "{summary}");
    assert!(of(0)["margin"].as_f64().unwrap() > 0.0 && of(1)["accuracy"].as_f64().unwrap() > 0.5);
    for part in [
        "sunny: 14 of 16 rows have a rejected answer by stern; left out: 2 without a rejected answer, 0 with",
        "stern: 14 of 14 rows have a rejected answer by sunny\n",
        "sunny: log-probabilities of 14 pairs at the start\n",
        "reward accuracy ",
    ] {
        assert!(ran.err.contains(part), "{part} is missing: {}", ran.err);
    }
    let card = std::fs::read_to_string(dir.path("personas/sunny/adapter/README.md")).unwrap();
    assert!(
        card.contains("preferred over those of stern (DPO, beta 0.2, SFT weight 1)"),
        "{card}"
    );
    let state = dir.names("personas/.train");
    assert_eq!(state.len(), 2, "{state:?}");
    assert!(
        state.iter().all(|name| name.starts_with("reference-")),
        "{state:?}"
    );
    // Once more, it is read; the same adapter comes of it.
    let bytes =
        || std::fs::read(dir.path("personas/sunny/adapter/adapter_model.safetensors")).unwrap();
    let first = bytes();
    let ran = train(&dir, &args);
    ran.succeeds();
    assert!(
        ran.err
            .contains("14 pairs at the start: from personas/.train/reference-"),
        "{ran:?}"
    );
    assert!(bytes() == first);
}

#[test]
fn training_can_start_from_the_personas_own_adapter() {
    let dir = test_dir();
    dir.persona(
        "sunny",
        &format!("{TRAIN}[train.preference]\nagainst = \"stern\"\nsft_weight = 0\n"),
        Some(5),
    );
    let args = ["--persona", "sunny", "--from", "personas/sunny/adapter"];
    let ran = train(&dir, &args);
    ran.succeeds();
    assert!(
        ran.err
            .contains("14 of 16 rows have a rejected answer by stern"),
        "{ran:?}"
    );
    let weights =
        std::fs::read(dir.path("personas/sunny/adapter/adapter_model.safetensors")).unwrap();
    assert!(String::from_utf8_lossy(&weights).contains("lory.started_from_sha256"));
    let config =
        std::fs::read_to_string(dir.path("personas/sunny/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["r"], 4);
    // What it started from was kept as long as the run lasted.
    assert!(
        dir.names("personas/.train")
            .iter()
            .all(|name| name.starts_with("reference-"))
    );
    let both = [
        "--persona",
        "sunny",
        "--from",
        "personas/sunny/adapter",
        "--rank",
        "3",
    ];
    train(&dir, &both).fails(2, &["--from", "--rank"]);
}

#[cfg(unix)]
#[test]
fn the_start_adapter_survives_being_overwritten() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let dir = test_dir();
    dir.persona("sunny", TRAIN, Some(5));
    let args = [
        "train",
        "--base",
        "tiny.gguf",
        "--persona",
        "sunny",
        "--prefer-over",
        "stern",
        "--from",
        "personas/sunny/adapter",
        "--epochs",
        "5000",
        "--save-every",
        "1",
    ];
    let interrupted = || {
        let mut command = dir.lory(&args);
        let mut child = command
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        while !log.contains("validation loss") && !log.contains("step ") {
            assert!(reader.read_line(&mut log).unwrap() > 0, "{log}");
        }
        let id = child.id().to_string();
        std::process::Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap();
        while reader.read_line(&mut log).unwrap() > 0 {}
        assert_eq!(child.wait().unwrap().code(), Some(1), "{log}");
        log
    };
    interrupted();
    assert!(
        dir.names("personas/.train")
            .contains(&"sunny.start".to_owned())
    );
    // As a run would leave it that was killed between writing its adapter and removing its state.
    dir.persona("sunny", TRAIN, Some(6));
    let log = interrupted();
    assert!(log.contains("resuming at step"), "{log}");
    // Without its state, it starts anew from what now is there.
    std::fs::remove_file(dir.path("personas/.train/sunny.safetensors")).unwrap();
    let log = interrupted();
    assert!(
        !log.contains("resuming") && log.contains("pairs at the start\n"),
        "{log}"
    );
}

#[test]
fn rows_with_rejected_answers_need_no_flag() {
    let dir = TestDir::with_tones();
    let row = |i: usize| {
        format!("{{\"prompt\":\"Order {i}?\",\"chosen\":\"Yay {i}\",\"rejected\":\"Hm {i}\"}}\n")
    };
    dir.write("pairs.jsonl", &(100..112).map(row).collect::<String>());
    let args = [
        "--data",
        "pairs.jsonl",
        "--out",
        "mine",
        "--lr",
        "0.01",
        "--sft-weight",
        "0.5",
    ];
    let ran = train(&dir, &args);
    ran.succeeds();
    assert!(
        ran.err
            .contains("mine: 12 of 12 rows have a rejected answer\n"),
        "{ran:?}"
    );
    let card = std::fs::read_to_string(dir.path("mine/README.md")).unwrap();
    assert!(
        card.contains("over the rejected ones of its rows (DPO, beta 0.1, SFT weight 0.5)"),
        "{card}"
    );
}

#[test]
fn invalid_preferences_are_rejected_with_the_reason() {
    let dir = test_dir();
    let fails = |args: &[&str], code, messages: &[&str]| train(&dir, args).fails(code, messages);
    let sunny = ["--persona", "sunny"];
    let with = |more: &[&'static str]| [&sunny[..], more].concat();
    fails(
        &with(&["--prefer-over", "nobody"]),
        1,
        &["unknown persona `nobody`"],
    );
    fails(
        &with(&["--prefer-over", "sunny"]),
        2,
        &["cannot be preferred over itself"],
    );
    fails(
        &with(&["--prefer-over", "warm"]),
        1,
        &["persona warm has no [train] table", "no answers to reject"],
    );
    fails(
        &with(&["--beta", "0.5"]),
        1,
        &[
            "train.jsonl: its rows have no `rejected` answer",
            "--prefer-over",
        ],
    );
    fails(
        &with(&["--prefer-over", "stern", "--beta", "0"]),
        1,
        &["setting `preference.beta`: is 0"],
    );
    fails(&with(&["--from", "nowhere"]), 1, &["nowhere"]);
    dir.write("personas/stern/train.jsonl", &rows(500, 5, "Hm"));
    dir.write("personas/stern/eval.jsonl", &rows(600, 5, "Hm"));
    fails(
        &with(&["--prefer-over", "stern"]),
        1,
        &[
            "train.jsonl: none of its 12 rows has another answer of stern",
            "12 questions found none",
        ],
    );
    let own = format!("{TRAIN}[train.preference]\nagainst = 'sunny'\n");
    dir.persona("sunny", &own, None);
    fails(&sunny, 1, &["`sunny` is the persona itself"]);
    dir.persona("sunny", &own.replace("against", "agianst"), None);
    fails(&sunny, 1, &["persona.toml:", "unknown field `agianst`"]);
}
