//! `lory train` and `lory eval`, on a tiny base.

use serde_json::{Value, json};

use crate::test_dir::TestDir;

/// Rows whose answers all sound alike.
fn rows(count: usize, tone: &str) -> String {
    let row = |i: usize| {
        format!(
            "{{\"instruction\":\"Where is order {i}?\",\"input\":\"\",\"output\":\"{tone} order {i}.\"}}\n"
        )
    };
    (100..100 + count).map(row).collect()
}

const TRAIN: &str =
    "[train]\ndata = \"train.jsonl\"\neval = \"eval.jsonl\"\nlr = 0.01\nbatch_rows = 4\n";

/// A home with a base and two personas that can be trained.
fn test_dir() -> TestDir {
    let dir = TestDir::with_tones();
    for (name, tone) in [("sunny", "Yay"), ("stern", "Hm")] {
        let eval =
            format!("[eval]\nany_of = ['{tone}']\ntone_at_least = 0.0\ncopied_at_least = 0.0\n");
        dir.persona(name, &format!("max_new_tokens = 8\n{TRAIN}{eval}"), None);
        dir.write(&format!("personas/{name}/train.jsonl"), &rows(16, tone));
        dir.write(&format!("personas/{name}/eval.jsonl"), &rows(4, tone));
    }
    dir
}

const BASE: [&str; 2] = ["--base", "tiny.gguf"];

#[test]
fn training_two_personas_in_one_run_lowers_both_losses() {
    let dir = test_dir();
    let args = [
        "train",
        BASE[0],
        BASE[1],
        "--persona",
        "sunny",
        "--persona",
        "stern",
        "--epochs",
        "4",
    ];
    let ran = dir.run(&args);
    let table = ran.succeeds();
    assert!(table.starts_with("adapter"), "{table}");
    assert!(
        table.contains("sunny") && table.contains("stern") && table.contains("tokens/s"),
        "{table}"
    );
    assert!(ran.err.contains("validation loss"), "{ran:?}");
    assert!(ran.err.contains("step 16/16  loss sunny "), "{ran:?}");
    let expected = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.svg",
        "metrics.jsonl",
        "tensorboard",
    ];
    assert_eq!(dir.names("personas/sunny/adapter"), expected);
    // The run's own state is gone.
    assert_eq!(dir.names("personas"), ["formal", "stern", "sunny", "warm"]);

    let report = dir.run(&[
        "eval",
        BASE[0],
        BASE[1],
        "--json",
        "--answers",
        "answers.jsonl",
    ]);
    let report: Value = serde_json::from_str(report.succeeds()).unwrap();
    let loss = |rows: &str, under: &str| report["losses"][rows][under].as_f64().unwrap();
    assert!(loss("sunny", "sunny") < loss("sunny", "tiny"), "{report}");
    assert!(loss("stern", "stern") < loss("stern", "tiny"), "{report}");
    assert!(loss("sunny", "sunny") < loss("sunny", "stern"), "{report}");
    assert_eq!(report["personas"][0]["persona"]["answers"], 4);
    let answers = std::fs::read_to_string(dir.path("answers.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 16);

    let shown = dir.run(&["eval", BASE[0], BASE[1], "--limit", "2"]);
    assert!(shown.succeeds().contains("loss under stern"), "{shown:?}");
}

#[test]
fn an_adapter_trained_from_a_file_can_be_served() {
    let dir = test_dir();
    dir.write("mine.jsonl", &rows(12, "Yay"));
    let args = [
        "train",
        BASE[0],
        BASE[1],
        "--data",
        "mine.jsonl",
        "--out",
        "personas/mine/adapter",
        "--json",
    ];
    let more = [
        "--max-steps",
        "3",
        "--rank",
        "2",
        "--lr",
        "0.001",
        "--seed",
        "5",
    ];
    let ran = dir.run(&[&args[..], &more].concat());
    let summary: Value = serde_json::from_str(ran.succeeds()).unwrap();
    assert_eq!(summary["adapters"][0]["steps"], 3);
    let config =
        std::fs::read_to_string(dir.path("personas/mine/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["r"], 2);
    dir.write("personas/mine/persona.toml", "max_new_tokens = 4");
    dir.run(&["generate", BASE[0], BASE[1], "--persona", "mine", "hi"])
        .succeeds();
}

#[test]
fn plan_prints_the_needs_of_a_run_and_exits() {
    let dir = test_dir();
    let before = dir.names("personas/sunny");
    let plan = |more: &[&str]| {
        let args = [
            "train",
            BASE[0],
            BASE[1],
            "--persona",
            "sunny",
            "--persona",
            "stern",
            "--plan",
        ];
        dir.run(&[&args[..], more].concat())
    };
    let shown = plan(&[]);
    let text = shown.succeeds();
    for part in ["parameters", "sunny", "optimizer", "total", " tokens/s"] {
        assert!(text.contains(part), "{text}");
    }
    let shown = plan(&["--json"]);
    let json: Value = serde_json::from_str(shown.succeeds()).unwrap();
    let adapter = &json["plan"]["adapters"][0];
    assert_eq!(
        (&adapter["name"], &adapter["steps"]),
        (&"sunny".into(), &12.into())
    );
    assert_eq!(json["plan"]["steps"], 12);
    let tokens: u64 = [0, 1]
        .iter()
        .map(|i| json["plan"]["adapters"][*i]["tokens"].as_u64().unwrap() * 3)
        .sum();
    assert_eq!(json["tokens"], tokens);
    let memory = json["memory"].as_object().unwrap();
    let parts: u64 = memory.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(json["memory_needed"], parts);
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
    // It took a step and kept nothing of it.
    assert_eq!(dir.names("personas/sunny"), before);
    assert!(!dir.names("personas").contains(&".train".to_owned()));

    // What does not fit is refused, by the plan and by the run.
    let needed = json["memory_needed"].as_u64().unwrap();
    // The layers that are kept for the backward are given up first.
    let little = ((needed - memory["kept"].as_u64().unwrap()) * 9 / 10).to_string();
    plan(&["--memory", &little]).fails(1, &["MiB are allowed by --memory"]);
    let args = [
        "train",
        BASE[0],
        BASE[1],
        "--persona",
        "sunny",
        "--memory",
        "1kB",
    ];
    let ran = dir.run(&args);
    ran.fails(1, &["MiB are allowed by --memory"]);
    assert_eq!(dir.names("personas/sunny"), before);
}

#[test]
fn lr_find_writes_no_adapter() {
    let dir = test_dir();
    let args = ["train", BASE[0], BASE[1], "--persona", "sunny", "--lr-find"];
    let ran = dir.run(&args);
    let table = ran.succeeds();
    assert!(
        table.contains("1.0e-5") && table.contains("--lr "),
        "{table}"
    );
    assert_eq!(dir.names("personas/sunny/adapter"), ["lr-find.svg"]);
    assert!(!dir.names("personas").contains(&".train".to_owned()));
    let ran = dir.run(&[&args[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(ran.succeeds()).unwrap();
    assert!(
        json["adapters"][0]["suggestion"].as_f64().unwrap() > 1e-5,
        "{json}"
    );
    // The persona is still one without an adapter.
    dir.run(&[
        "train",
        BASE[0],
        BASE[1],
        "--persona",
        "sunny",
        "--max-steps",
        "1",
    ])
    .succeeds();
}

#[test]
fn settings_of_persona_and_flags_reach_the_adapter() {
    let dir = test_dir();
    let table = "rslora = true\nrank = 4\ndropout = 0.1\nlora_plus_ratio = 4.0\nvalidate_every = 1\npatience = 50\n";
    dir.persona("sunny", &format!("{TRAIN}{table}"), None);
    let args = [
        "train",
        BASE[0],
        BASE[1],
        "--persona",
        "sunny",
        "--json",
        "--schedule",
        "cosine",
    ];
    let ran = dir.run(&args);
    let summary: Value = serde_json::from_str(ran.succeeds()).unwrap();
    assert_eq!(summary["adapters"][0]["stopped_early"], false);
    assert!(
        summary["plan"]["seconds"].as_f64().unwrap() > 0.0,
        "{summary}"
    );
    let config = dir.path("personas/sunny/adapter/adapter_config.json");
    let config: Value = serde_json::from_str(&std::fs::read_to_string(config).unwrap()).unwrap();
    assert_eq!(
        [&config["use_rslora"], &config["r"], &config["lora_dropout"]],
        [&json!(true), &json!(4), &json!(0.1)]
    );
    let metrics =
        std::fs::read_to_string(dir.path("personas/sunny/adapter/metrics.jsonl")).unwrap();
    assert_eq!(metrics.matches("\"validation\"").count(), 12);
    // A rate that spoils it ends it early.
    let more = [
        "--lr",
        "0.3",
        "--clip",
        "0",
        "--patience",
        "1",
        "--epochs",
        "100",
    ];
    let ran = dir.run(&[&args[..], &more].concat());
    let summary: Value = serde_json::from_str(ran.succeeds()).unwrap();
    assert_eq!(summary["adapters"][0]["stopped_early"], true, "{summary}");
    assert!(ran.err.contains("stopped early at step"), "{ran:?}");
    let args = [
        "train",
        BASE[0],
        BASE[1],
        "--persona",
        "sunny",
        "--schedule",
        "steps",
    ];
    dir.run(&args).fails(2, &["`constant`, `linear`"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_resumes() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let dir = test_dir();
    let args = [
        "train",
        BASE[0],
        BASE[1],
        "--persona",
        "sunny",
        "--epochs",
        "5000",
        "--save-every",
        "1",
    ];
    let interrupted = |wait_for: &str| {
        let mut child = dir
            .lory(&args)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        while !log.contains(wait_for) {
            assert!(reader.read_line(&mut log).unwrap() > 0, "{log}");
        }
        let id = child.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args(["-INT", &id])
                .status()
                .unwrap()
                .success()
        );
        while reader.read_line(&mut log).unwrap() > 0 {}
        assert_eq!(child.wait().unwrap().code(), Some(1), "{log}");
        assert!(
            log.contains("the same command continues from there"),
            "{log}"
        );
        let after = log.split("interrupted after step ").nth(1).unwrap();
        (
            after.split(' ').next().unwrap().parse::<u64>().unwrap(),
            log,
        )
    };
    let (first, log) = interrupted("validation loss");
    assert!(!log.contains("resuming"), "{log}");
    assert!(dir.names("personas").contains(&".train".to_owned()));
    let (second, log) = interrupted("step ");
    assert!(
        log.contains(&format!("resuming at step {first} of ")),
        "{log}"
    );
    assert!(second >= first);
    // Another run does not take its state up.
    let mut other = args.to_vec();
    other.extend(["--rank", "4"]);
    dir.run(&other).fails(1, &["rank"]);
}

#[test]
fn invalid_targets_are_rejected_with_the_reason() {
    let dir = test_dir();
    let train = |args: &[&str]| dir.run(&[&["train", BASE[0], BASE[1]], args].concat());
    train(&["--persona", "warm"]).fails(1, &["persona.toml", "no [train] table"]);
    train(&["--persona", "nobody"]).fails(1, &["unknown persona `nobody`"]);
    train(&["--persona", "sunny", "--persona", "sunny"]).fails(2, &["is given twice"]);
    train(&["--persona", "sunny", "--rank", "0"]).fails(1, &["rank"]);
    dir.persona("sunny", &format!("{TRAIN}rnak = 3\n"), None);
    train(&["--persona", "sunny"]).fails(1, &["persona.toml:6: unknown field `rnak`"]);
    dir.write(
        "personas/stern/train.jsonl",
        "{\"instruction\":\"a\",\"output\":\"b\"}\n{\"instruction\":}\n",
    );
    train(&["--persona", "stern"]).fails(1, &["train.jsonl:2: ", "not valid JSON"]);
}

#[test]
fn a_missed_threshold_exits_with_1() {
    let dir = test_dir();
    let text = format!("max_new_tokens = 4\n{TRAIN}[eval]\nany_of = ['this never comes']\n");
    dir.persona("sunny", &text, None);
    let ran = dir.run(&["eval", BASE[0], BASE[1], "--persona", "sunny"]);
    ran.fails(
        1,
        &["sunny: tone right is 0.0%, wanted is at least 95.0% (tone_at_least)"],
    );
    assert!(ran.out.contains("rows of"), "{ran:?}");
    dir.run(&["eval", BASE[0], BASE[1], "--persona", "warm"])
        .fails(1, &["no evaluation rows"]);
}
