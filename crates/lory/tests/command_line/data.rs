//! `lory data lint`.

use serde_json::Value;

use crate::scene::Scene;

const CLEAN: &str = concat!(
    r#"{"instruction":"Where is order 4711?","input":"","output":"Order 4711 is on its way.","intent":"status"}"#,
    "\n",
    r#"{"prompt":"May I return a lamp?","completion":"Yes, within a month.","intent":"return"}"#,
    "\n"
);

#[test]
fn clean_rows_pass() {
    let scene = Scene::new();
    scene.write("a.jsonl", CLEAN);
    let ran = scene.run(&["data", "lint", "a.jsonl"]);
    assert_eq!(ran.succeeds(), "2 rows, 2 intents: nothing found\n");
}

#[test]
fn findings_name_file_and_line_and_end_with_1() {
    let scene = Scene::new();
    scene.write(
        "a.jsonl",
        &format!("{CLEAN}{}", CLEAN.replace("4711", "815")),
    );
    scene.write(
        "eval.jsonl",
        "{\"prompt\":\"may i return a lamp\",\"completion\":\"No.\"}\n",
    );
    let args = ["data", "lint", "a.jsonl", "--against", "eval.jsonl"];
    let ran = scene.run(&args);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out
            .contains("a.jsonl:3: the same but for its numbers as a.jsonl:1\n"),
        "{ran:?}"
    );
    assert!(
        ran.out.contains("a.jsonl:4: the same row as a.jsonl:2\n"),
        "{ran:?}"
    );
    assert!(
        ran.out
            .contains("a.jsonl:2: its input also stands in eval.jsonl:1\n"),
        "{ran:?}"
    );
    assert!(
        ran.out
            .ends_with("1 duplicate, 1 duplicate_but_numbers, 2 leak\n"),
        "{ran:?}"
    );

    let ran = scene.run(&[&args[..], &["--json"]].concat());
    assert_eq!(ran.code, 1);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["rows"], 4);
    assert_eq!(report["findings"].as_array().unwrap().len(), 4);
    assert_eq!(report["findings"][0]["line"], 2);
}

#[test]
fn broken_files_name_their_line() {
    let scene = Scene::new();
    scene.write("a.jsonl", &format!("{CLEAN}{{\"prompt\":1}}\n"));
    scene
        .run(&["data", "lint", "a.jsonl"])
        .fails(1, &["error: a.jsonl:3: ", "`prompt`"]);
    scene
        .run(&["data", "lint", "missing.jsonl"])
        .fails(1, &["missing.jsonl"]);
}
