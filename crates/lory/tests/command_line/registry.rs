//! Commands that change the registry (`lory persona publish` and others), and servers that are killed.

use serde_json::{Value, json};

use crate::test_dir::TestDir;

fn json_of(dir: &TestDir, args: &[&str]) -> Value {
    let ran = dir.run(args);
    serde_json::from_str(ran.succeeds()).unwrap()
}

const BASE: [&str; 2] = ["--base", "tiny.gguf"];

#[test]
fn adapter_that_is_published_under_its_name_answers() {
    let dir = TestDir::with_tones();
    let folder = "personas/warm/adapter";
    let generate = |adapter: &str, persona: &str| {
        let flags = ["--adapter", adapter, "--persona", persona, "Hello"];
        dir.run(&[&["generate"], &BASE[..], &flags[..]].concat())
    };
    let publish = ["persona", "publish", "adapter", "--adapter", folder];
    dir.run(&[&publish[..], &BASE[..]].concat()).succeeds();
    generate(folder, "adapter").succeeds();
    generate("personas/formal/adapter", "adapter").fails(
        2,
        &["a published persona has the name adapter and another adapter"],
    );
}

#[test]
fn settings_next_to_an_adapter_are_published_with_it() {
    let dir = TestDir::with_tones();
    let folder = "personas/warm/adapter";
    let settings = "system_prompt = \"You are a pirate.\"";
    std::fs::write(dir.path(&format!("{folder}/persona.toml")), settings).unwrap();
    let publish = ["persona", "publish", "pirate", "--adapter", folder];
    dir.run(&[&publish[..], &BASE[..]].concat()).succeeds();
    let shown = dir.run(&["persona", "show", "pirate"]);
    assert!(shown.succeeds().contains("You are a pirate."));
    // A broken file is an error, not a version without its settings.
    std::fs::write(dir.path(&format!("{folder}/persona.toml")), "system = 1").unwrap();
    dir.run(&[&publish[..], &BASE[..]].concat())
        .fails(1, &["persona.toml", "system"]);
}

#[test]
fn personas_are_published_shown_and_rolled_back() {
    let dir = TestDir::with_tones();
    let publish = |args: &[&str]| {
        let args = [&["persona", "publish"], args, &BASE[..], &["--json"]].concat();
        json_of(&dir, &args)
    };
    let first = publish(&["warm"]);
    assert_eq!(
        (&first["version"], &first["sequence"]),
        (&json!(1), &json!(1))
    );
    dir.persona("warm", "description = \"Warmer\"", Some(13));
    assert_eq!(publish(&["warm"])["version"], 2);
    assert_eq!(publish(&["formal", "--as", "stiff"])["name"], "stiff");
    assert_eq!(
        publish(&[
            "warm",
            "--adapter",
            "personas/formal/adapter",
            "--not-current"
        ])["version"],
        3
    );

    let list = dir.run(&["persona", "list"]);
    let lines: Vec<&str> = list.succeeds().lines().collect();
    assert!(
        lines[0].starts_with("persona  version  versions  source"),
        "{}",
        list.out
    );
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("formal         2         1  folder")),
        "{}",
        list.out
    );
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("warm           2         3  registry")),
        "{}",
        list.out
    );
    assert!(
        list.err
            .contains("published, so the folder's versions are not used: warm")
    );
    let shown = dir.run(&["persona", "show", "warm"]);
    assert!(
        shown.succeeds().contains("description     Warmer"),
        "{}",
        shown.out
    );

    dir.run(&["persona", "alias", "cosy", "warm@1"]).succeeds();
    dir.run(&["persona", "canary", "warm@3", "--percent", "10"])
        .succeeds();
    dir.run(&["persona", "canary", "warm", "--off"]).succeeds();
    assert_eq!(
        json_of(&dir, &["persona", "rollback", "warm", "--json"])["version"],
        1
    );
    dir.run(&["persona", "remove", "warm@2"]).succeeds();
    let history = dir.run(&["persona", "history", "warm"]);
    let history = history.succeeds();
    for part in [
        "warm@1 published (",
        "cosy is an alias of warm@1",
        "canary of warm: version 3 at 10 %",
        "warm is version 1",
        "warm@2 removed",
    ] {
        assert!(history.contains(part), "{part}: {history}");
    }
    let verified = dir.run(&["persona", "verify"]);
    assert!(
        verified.succeeds().contains("2 adapters, 0 broken"),
        "{}",
        verified.out
    );
    let gc = json_of(&dir, &["persona", "gc", "--older-than", "0s", "--json"]);
    assert_eq!(gc["removed"].as_array().unwrap().len(), 1, "{gc}");

    // What is published answers, wherever it is asked.
    let args = [
        "generate",
        "--persona",
        "cosy",
        "--persona",
        "stiff",
        "--json",
        "Hi",
        "--base",
        "tiny.gguf",
    ];
    let ran = dir.run(&args);
    let answers: Vec<Value> = ran
        .succeeds()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers[0]["persona"]["name"], "warm");
    assert_eq!(answers[0]["persona"]["version"], 1);
    assert_eq!(answers[1]["persona"]["name"], "stiff");
}

#[test]
fn registry_errors_give_advice() {
    let dir = TestDir::with_tones();
    let fails = |args: &[&str], code: i32, parts: &[&str]| {
        dir.run(&[&["persona"], args].concat()).fails(code, parts);
    };
    fails(
        &["show", "warm"],
        1,
        &["no persona warm is published; lory persona list"],
    );
    fails(
        &["publish", "nobody", "--base", "tiny.gguf"],
        1,
        &["unknown persona `nobody`", "formal, warm"],
    );
    fails(
        &["rollback", "warm@2"],
        2,
        &["give the name without a version"],
    );
    fails(
        &["canary", "warm", "--percent", "10"],
        2,
        &["name a version, such as warm@4"],
    );
    fails(&["canary", "warm@2"], 2, &["--percent"]);
    fails(&["alias", "x"], 2, &["NAME[@VERSION]"]);
    fails(
        &["list", "--registry", "gs://bucket"],
        1,
        &["--registry", "a folder, or s3://bucket/prefix"],
    );
    fails(
        &["history", "nobody"],
        1,
        &["no persona nobody is published"],
    );

    // Another base, as far as the adapter knows its own.
    let folder = dir.path("personas/warm/adapter");
    let mut adapter = formats::peft::Adapter::read(&folder).unwrap();
    adapter
        .metadata
        .insert("lory.base_sha256".to_owned(), "ab".repeat(32));
    adapter
        .write(&folder, formats::peft::Dtype::F32, "tiny")
        .unwrap();
    fails(
        &["publish", "warm", "--base", "tiny.gguf"],
        1,
        &[&"ab".repeat(32), "--base tiny.gguf has"],
    );
    fails(&["publish", "warm"], 1, &[&"ab".repeat(32)]);
    dir.run(&["generate", "--persona", "warm", "Hi", "--base", "tiny.gguf"])
        .fails(1, &[&"ab".repeat(32), "use the one that it was trained on"]);

    // A broken blob fails the verification and is named.
    dir.run(&["persona", "publish", "formal", "--base", "tiny.gguf"])
        .succeeds();
    let sha256 = dir.names("home/registry/adapters").remove(0);
    dir.write(
        &format!("home/registry/adapters/{sha256}/adapter_config.json"),
        "{}",
    );
    let verified = dir.run(&["persona", "verify"]);
    assert_eq!(verified.code, 1, "{verified:?}");
    assert!(
        verified.out.contains("formal@1") && verified.out.contains("is corrupt"),
        "{}",
        verified.out
    );
}

#[cfg(unix)]
#[test]
fn a_loaded_adapter_survives_a_kill() {
    let dir = TestDir::with_tones();
    let start = || {
        dir.serve(&[
            "serve",
            "--base",
            "tiny.gguf",
            "--port",
            "0",
            "--kv-memory",
            "16MiB",
            "--adapter-root",
            "personas",
        ])
    };
    let server = start();
    let load = json!({"lora_name": "loaded", "lora_path": "warm/adapter"});
    assert_eq!(server.post("/v1/load_lora_adapter", &load).status, 200);
    let ask = json!({"prompt": "Hello!", "user_type": "loaded", "max_new_tokens": 6});
    let before = server.generate(ask.clone());
    // SIGKILL, without a shutdown.
    drop(server);
    let server = start();
    let after = server.generate(ask);
    let of = |answer: &Value| json!([answer["response"], answer["persona"]]);
    assert_eq!(of(&after), of(&before));
    assert_eq!(of(&after)[1]["version"], 1);
}
