//! Help, and invalid command lines.

use crate::test_dir::TestDir;

#[test]
fn every_help_text_has_an_example() {
    let dir = TestDir::new();
    let all = dir.run(&["--help"]);
    for command in ["demo", "serve", "generate", "pull", "train", "eval"] {
        assert!(
            all.succeeds().contains(&format!("  {command} ")),
            "{}",
            all.out
        );
        let help = dir.run(&[command, "--help"]);
        assert!(help.succeeds().contains("Example"), "{}", help.out);
        assert!(
            help.out.contains(&format!("  lory {command}")),
            "{}",
            help.out
        );
    }
    for command in ["lint", "show"] {
        let help = dir.run(&["data", command, "--help"]);
        assert!(
            help.succeeds().contains(&format!("  lory data {command} ")),
            "{}",
            help.out
        );
    }
    assert!(dir.run(&["--version"]).succeeds().starts_with("lory "));
}

#[test]
fn help_and_errors_name_the_next_step() {
    let dir = TestDir::with_tones();
    for first_step in [
        "lory demo",
        "lory chat",
        "lory serve",
        "lory train",
        "lory pull",
    ] {
        assert!(dir.run(&[]).err.contains(&format!("\n  {first_step} ")));
    }
    let generate = |args: &[&str]| dir.run(&[&["generate", "--base"], args, &["hi"]].concat());
    generate(&["nowhere"]).fails(1, &["lory pull OWNER/NAME"]);
    generate(&["tiny.gguf", "--persona", "pirate"]).fails(
        1,
        &[
            "the personas are formal, warm",
            "lory train --data FILE.jsonl --out personas/pirate",
        ],
    );
    generate(&["tiny.gguf", "--persona", "form"]).fails(1, &["did you mean formal?"]);
    let empty = TestDir::new();
    empty.write("none/.keep", "");
    let list = empty.run(&["persona", "list", "--personas", "none"]);
    list.succeeds();
    assert!(
        list.err.contains("--out personas/NAME makes one"),
        "{list:?}"
    );
}

#[test]
fn invalid_command_lines_exit_with_2() {
    let dir = TestDir::with_tones();
    let tiny = ["--base", "tiny.gguf"];
    for (args, part) in [
        (&[][..], "Usage"),
        (&["sing"], "sing"),
        (&["serve", "--kv-memory", "0"], "256MiB"),
        (&["serve", "--kv-memory", "much"], "256MiB"),
        (&["serve", "--max-batch", "0"], "max-batch"),
        (&["serve", "--host", "nowhere"], "nowhere"),
        (&["serve", "--port", "65536"], "65536"),
        (&["generate"], "PROMPT"),
        (
            &["generate", "Where", "is", "it?"],
            "put quotes around the prompt",
        ),
        (
            &["generate", "--persona", "warm*x", "hi"],
            "`x` is not a weight",
        ),
        (
            &["generate", "--persona", "Warm", "hi"],
            "is not a valid persona name",
        ),
        (&["generate", tiny[0], tiny[1], " "], "the prompt is empty"),
        (
            &["generate", tiny[0], tiny[1], "--temperature", "9", "hi"],
            "temperature must be from 0 to 2",
        ),
        (
            &["generate", tiny[0], tiny[1], "--max-new-tokens", "0", "hi"],
            "--max-new-tokens must be at least 1",
        ),
        (
            &[
                "generate",
                tiny[0],
                tiny[1],
                "--max-new-tokens",
                "9999",
                "hi",
            ],
            "past the context of 512",
        ),
        (
            &["pull", "gpt-5"],
            "unknown base `gpt-5`; the known ones are smollm2-135m",
        ),
        (
            &["train"],
            "lory train --data mine.jsonl --out my-tone        trains an adapter on it",
        ),
        (&["train", "--data", "a.jsonl"], "--out"),
        (
            &[
                "train",
                "--persona",
                "warm",
                "--data",
                "a.jsonl",
                "--out",
                "b",
            ],
            "cannot be used with",
        ),
        (&["train", "--persona", "warm*0.5"], "a name alone"),
        (
            &["train", "--persona", "warm+formal"],
            "a blend cannot be trained",
        ),
        (&["eval", "--limit", "0"], "limit"),
        (&["data", "lint"], "FILE"),
        (&["data", "show"], "FILE"),
        (&["data", "show", "a", "--row", "0"], "from 1"),
        (
            &["data", "lint", "a", "--column", "question=instruction"],
            "rows have no field `question`",
        ),
        (&["data", "lint", "a", "--column", "text"], "FIELD=COLUMN"),
        (
            &[
                "data", "lint", "a", "--column", "text=x", "--column", "prompt=x",
            ],
            "column `x` cannot be both",
        ),
        (
            &["data", "lint", "a", "--mask", "all"],
            "completion, assistant",
        ),
        (
            &["data", "show", "a", "--too-long", "cut"],
            "drop, truncate, truncate_start, refuse",
        ),
        (&["data", "lint", "--near", "2", "a"], "from 0 to 1"),
    ] {
        let ran = dir.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.err.contains(part), "{args:?}: {ran:?}");
    }
}
