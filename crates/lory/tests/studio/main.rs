//! Tests the studio in a real browser, served by the binary with a tiny random base. `flows.mjs` has the test cases, `install` installs
//! the browser. Without npm or chromium the test prints a message and passes; with `LORY_EVERY_CLIENT` set it fails.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use testkit::home::TestHome;
use testkit::tiny::adapter;

fn test_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/studio")
        .join(name)
}

fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Writes the files that the server needs, and those that the test drops onto the page.
fn prepare(home: &TestHome) {
    home.write_base(2048);
    let warm = "description = \"Warm\"\nsystem_prompt = \"You work for {{shop}}.\"\n[variables]\nshop = \"a shop\"\n";
    home.persona("warm", warm, Some(&adapter(11)));
    home.persona("formal", "description = \"Formal\"\n", Some(&adapter(12)));
    home.adapter("third", &adapter(13));
    for (name, count) in [("rows.jsonl", 12), ("many.jsonl", 60), ("long.jsonl", 2000)] {
        let rows: String = (0..count)
            .map(|n| {
                format!(
                    "{}\n",
                    json!({"instruction": format!("Question {n}?"), "output": format!("Answer {n}.")})
                )
            })
            .collect();
        home.write(name, &rows);
    }
    home.write(
        "broken.jsonl",
        "{\"instruction\": \"a\", \"output\": \"b\"}\n{oops\n",
    );
    let scores =
        json!({"tone_share": 0.5, "copied_share": 1.0, "repetition": 0.1, "length_ratio": 1.2});
    let matrix =
        json!({"warm": {"warm": 0.9, "formal": 0.1}, "formal": {"warm": 0.2, "formal": 0.8}});
    let persona = |name: &str| json!({"name": name, "version": 1, "adapter": "ab".repeat(32), "persona": scores, "loss": 1.5});
    let evaluation = json!({
        "base": "tiny", "personas": [persona("warm"), persona("formal")], "missed": ["warm: tone is 50.0%"],
        "losses": {"warm": {"tiny": 3.0, "warm": 1.5, "formal": 3.5}, "formal": {"tiny": 2.7, "warm": 3.0, "formal": 1.6}},
        "tones": matrix, "distinct": matrix,
        "samples": [{"question": "Where is it?", "base": "I am a model.", "answers": {"warm": "Soon!", "formal": "In transit."}}],
    });
    let kept = jobs::EvaluationResults::new(&base::home::Home::at(&home.path("home")).results());
    kept.store(1_764_000_000, evaluation).unwrap();
}

#[test]
fn the_studio_works_in_a_browser() {
    let required = std::env::var_os("LORY_EVERY_CLIENT").is_some();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("studio");
    let installed = Command::new(test_file("install"))
        .arg(&folder)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&installed.stderr);
    assert!(installed.status.success() || !required, "install: {stderr}");
    if !folder.join("installed").is_file() || !is_installed("chromium") || !is_installed("node") {
        assert!(!required, "npm, node or chromium is missing: {stderr}");
        eprintln!("npm, node or chromium is missing: the studio was not tested");
        return;
    }
    let home = TestHome::empty();
    prepare(&home);
    let run = home
        .command("node", &[])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg(test_file("flows.mjs"))
        .arg(env!("CARGO_BIN_EXE_lory"))
        .arg(home.folder())
        .arg(&folder)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        run.status.success(),
        "{}\n{}",
        text(&run.stdout),
        text(&run.stderr)
    );
}
