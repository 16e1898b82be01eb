//! Snapshots of tables and plans. Numbers and hashes, which depend on the machine, are shown as `#`.
//!
//! After a change: `INSTA_UPDATE=always cargo test -p lory --test command_line tables`.

use regex::Regex;

use crate::test_dir::{Ran, TestDir};

const BASE: [&str; 2] = ["--base", "tiny.gguf"];

/// Compares stdout with the snapshot `name`; `code` is the expected exit code.
#[track_caller]
fn assert_output(name: &str, code: i32, ran: &Ran) {
    assert_eq!(ran.code, code, "{ran:?}");
    let mut text = ran.out.clone();
    for (pattern, replacement) in [
        (r"\b[0-9a-f]{12,}\b", "#"),
        (r"(about|trained for) [a-z0-9 ]+? (for|at)", "$1 # $2"),
        (r"\d{4}-\d\d-\d\dT[\d:]+Z", "#"),
        (r"-?\b\d[\d.,:]*(e[-+]?\d+)?", "#"),
        (r"\b[KMGT]iB", "B"),
        (" {2,}", "  "),
        ("─+", "─"),
        (r"(?m) +$", ""),
    ] {
        text = Regex::new(pattern)
            .unwrap()
            .replace_all(&text, replacement)
            .into_owned();
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Two personas with rows, and a base.
fn test_dir() -> TestDir {
    let dir = TestDir::with_tones();
    for (name, seed) in [("sunny", 3), ("stern", 4)] {
        let text = "max_new_tokens = 6\n[train]\ndata = \"train.jsonl\"\neval = \"eval.jsonl\"\n\
                    [eval]\nany_of = ['[a-z]']\ntone_at_least = 0.0\n";
        dir.persona(name, text, Some(seed));
        let row = |i: usize| {
            format!(
                "{{\"instruction\":\"Where is order {i}?\",\"output\":\"Order {i} is {name}, as always.\"}}\n"
            )
        };
        let rows: String = (0..8).map(row).collect();
        dir.write(&format!("personas/{name}/train.jsonl"), &rows);
        let rows: String = (8..12).map(row).collect();
        dir.write(&format!("personas/{name}/eval.jsonl"), &rows);
    }
    dir
}

#[test]
fn lint_output_is_as_recorded() {
    let dir = test_dir();
    let args = ["data", "lint", "personas/sunny/train.jsonl"];
    let ran = dir.run(&[&args[..], &BASE[..]].concat());
    assert_output("table-data-lint", 1, &ran);
    dir.write(
        "broken.jsonl",
        "{\"instruction\":\"Where is it?\",\"output\":\"Here.\"}\n{\n",
    );
    let ran = dir.run(&["data", "lint", "broken.jsonl", "--text-only"]);
    assert_output("table-data-lint-broken", 1, &ran);
}

#[test]
fn evaluation_tables_are_as_recorded() {
    let dir = test_dir();
    // The random adapters are far from the base, which is a missed threshold.
    let all = dir.run(&["eval", BASE[0], BASE[1]]);
    assert_output("table-eval", 1, &all);
    let gate = dir.run(&["eval", BASE[0], BASE[1], "--gate"]);
    assert_output("table-eval-gate", 1, &gate);
}

#[test]
fn persona_tables_are_as_recorded() {
    let dir = TestDir::with_tones();
    let publish = ["persona", "publish", "warm"];
    dir.run(&[&publish[..], &BASE[..]].concat()).succeeds();
    dir.run(&["persona", "alias", "friendly", "warm"])
        .succeeds();
    for (name, args) in [
        ("table-persona-list", &["persona", "list"][..]),
        ("table-persona-show", &["persona", "show", "warm"]),
        ("table-persona-history", &["persona", "history"]),
        ("table-persona-verify", &["persona", "verify"]),
        ("table-persona-gc", &["persona", "gc"]),
    ] {
        assert_output(name, 0, &dir.run(args));
    }
}

#[test]
fn training_plan_and_summary_are_as_recorded() {
    let dir = test_dir();
    let train = |more: &[&str]| {
        let args = ["train", "--persona", "sunny", "--memory", "64MiB"];
        dir.run(&[&args[..], &BASE[..], more].concat())
    };
    assert_output("table-train-plan", 0, &train(&["--plan"]));
    assert_output("table-train", 0, &train(&["--epochs", "1"]));
}

#[test]
fn plan_of_a_base_is_as_recorded() {
    let dir = TestDir::with_tones();
    let ran = dir.run(&[
        "doctor",
        "--no-probe",
        BASE[0],
        BASE[1],
        "--train-memory",
        "64MiB",
    ]);
    let text = ran.succeeds();
    // The machine's table, and plans for GPUs, differ from machine to machine.
    let start = text.find("tiny.gguf: ").unwrap();
    let plan = &text[start..];
    let plan = plan.split("\n\n").take(2).collect::<Vec<_>>().join("\n\n");
    let plan = Ran {
        code: 0,
        out: plan + "\n",
        err: String::new(),
    };
    assert_output("table-doctor-plan", 0, &plan);
    for heading in ["machine", "threads", "instruction sets", "memory"] {
        assert!(text.contains(heading), "{text}");
    }
}
