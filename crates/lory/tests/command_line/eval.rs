//! `lory eval` beyond tone and loss: every measure in `--json`, the gate, and the page.

use serde_json::Value;

use crate::test_dir::TestDir;

const BASE: [&str; 2] = ["--base", "tiny.gguf"];

/// A base, and two personas with random adapters, rows and markers.
fn dir(sunny: &str, stern: &str) -> TestDir {
    let dir = TestDir::with_tones();
    for (name, seed, bounds) in [("sunny", 3, sunny), ("stern", 4, stern)] {
        let text = format!(
            "max_new_tokens = 12\nscale = 0.5\n[train]\ndata = \"train.jsonl\"\neval = \"eval.jsonl\"\n[eval]\n\
             any_of = ['[{}]']\ntone_at_least = 0.0\ncopied_at_least = 0.0\n{bounds}",
            if name == "sunny" { "a-m" } else { "n-z" },
        );
        dir.persona(name, &text, Some(seed));
        let row = |i: usize, asked: &str| {
            format!(
                "{{\"instruction\":\"{asked} {i}?\",\"output\":\"Order {i} & <b>{name}</b>.\"}}\n"
            )
        };
        // Three questions of both, two of each alone.
        let own = [row(8, name), row(9, name)].concat();
        let rows: String = (0..3).map(|i| row(i, "Where is <i>order</i>")).collect();
        dir.write(&format!("personas/{name}/eval.jsonl"), &(rows + &own));
    }
    dir
}

#[test]
fn eval_measures_the_other_personas_if_one_adapter_is_broken() {
    let dir = dir("", "");
    dir.write(
        "personas/sunny/adapter/adapter_model.safetensors",
        "truncated",
    );
    let ran = dir.run(&["eval", BASE[0], BASE[1], "--json"]);
    ran.fails(
        1,
        &["persona sunny is left out", "adapter_model.safetensors"],
    );
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["personas"].as_array().unwrap().len(), 1);
    assert!(report["losses"]["stern"]["stern"].is_number(), "{report:#}");

    dir.write("personas/sunny/persona.toml", "x = 1");
    let args = ["eval", BASE[0], BASE[1], "--json", "--limit", "1"];
    let ran = dir.run(&args);
    ran.fails(1, &["left out of the personas", "sunny/persona.toml:1"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["personas"].as_array().unwrap().len(), 1);
    dir.run(&[&args[..], &["--persona", "stern"]].concat())
        .succeeds();
}

#[test]
fn eval_json_has_every_measure() {
    let dir = dir("", "");
    let ran = dir.run(&["eval", BASE[0], BASE[1], "--json"]);
    let report: Value = serde_json::from_str(ran.succeeds()).unwrap();
    let number = |path: &str| {
        let value = report.pointer(path).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{path} is missing: {report:#}"))
    };
    assert!(
        (number("/losses/sunny/stern").exp() - number("/perplexities/sunny/stern")).abs() < 1e-6
    );
    assert_eq!(number("/losses/stern/stern"), number("/personas/0/loss"));
    // The comparison requests every question except the three shared ones from the other persona.
    assert_eq!(report["common_questions"], 7);
    let apart = number("/distinct/sunny/stern");
    assert!(apart > 0.0 && apart <= 1.0, "{report:#}");
    assert_eq!(apart, number("/distinct/stern/sunny"));
    assert_eq!(apart, number("/personas/0/distinct_from_nearest"));
    assert!(report["distinct"]["stern"]["stern"].is_null());
    assert_eq!(
        number("/tones/stern/stern"),
        number("/personas/0/persona/tone_share")
    );
    assert_eq!(
        number("/tones/stern/sunny"),
        number("/personas/0/most_of_another_tone")
    );
    assert!(number("/personas/1/drift/kl") > 0.0);
    assert!(number("/personas/1/drift/tokens") > 200.0);
    for path in [
        "repetition",
        "length_ratio",
        "words/mean",
        "words/reference_median",
    ] {
        number(&format!("/personas/1/persona/{path}"));
        number(&format!("/personas/1/base/{path}"));
    }
    assert_eq!(report["gate"].as_array().unwrap().len(), 4);
    assert_eq!(report["missed"], serde_json::json!([]));

    // Alone there is nothing to be distinct from.
    let ran = dir.run(&["eval", BASE[0], BASE[1], "--json", "--persona", "stern"]);
    let report: Value = serde_json::from_str(ran.succeeds()).unwrap();
    assert!(report["personas"][0]["distinct_from_nearest"].is_null());
    assert_eq!(report["common_questions"], 0);
}

#[test]
fn eval_measures_an_adapter_at_its_serving_scale() {
    let dir = dir("", "");
    let drift = |dir: &TestDir| {
        let ran = dir.run(&["eval", BASE[0], BASE[1], "--json", "--persona", "sunny"]);
        let report: Value = serde_json::from_str(ran.succeeds()).unwrap();
        let of = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap();
        (
            of("/personas/0/drift/kl"),
            of("/losses/sunny/tiny"),
            of("/losses/sunny/sunny"),
        )
    };
    let half = drift(&dir);
    assert!(half.0 > 0.0 && half.1 != half.2);
    let path = dir.path("personas/sunny/persona.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("scale = 0.5", "scale = 0")).unwrap();
    let none = drift(&dir);
    assert_eq!((none.0, none.1), (0.0, half.1));
    assert_eq!(none.1, none.2);
}

#[test]
fn eval_lists_missed_thresholds_with_their_values() {
    let dir = dir(
        "loss_at_most = 0.5\ndistinct_at_least = 1.0\ndrift_at_most = 0\nlength_at_least = 99\n",
        "loss_at_most = 99\ndistinct_at_least = 0.0\ndrift_at_most = 99\nother_tone_at_most = 1\nlength_at_most = 99\n\
         repetition_at_most = 1\ncomplete_at_least = 0\n",
    );
    let ran = dir.run(&["eval", BASE[0], BASE[1]]);
    ran.fails(
        1,
        &[
            "sunny: validation loss is ",
            "wanted is at most 0.5000 (loss_at_most)",
            "sunny: distinctness from the nearest tone is ",
            "wanted is at least 100.0% (distinct_at_least)",
            "sunny: drift on neutral text is ",
            "wanted is at most 0.0000 (drift_at_most)",
            "wanted is at least 99.0000 (length_at_least)",
        ],
    );
    assert!(!ran.err.contains("stern: "), "{ran:?}");
    for part in [
        "perplexity under sunny",
        "in the tone of stern",
        "distinct from sunny",
        "drift",
    ] {
        assert!(ran.out.contains(part), "{part}: {ran:?}");
    }
    // What cannot be measured is not good enough.
    dir
        .run(&["eval", BASE[0], BASE[1], "--persona", "stern"])
        .fails(
            1,
            &["stern: distinctness from the nearest tone is not measured (name another persona too"],
        );
}

#[test]
fn the_report_is_one_file_and_escapes_all_text() {
    let dir = dir("loss_at_most = 0.5\n", "");
    dir.write(
        "personas/sunny/adapter/metrics.jsonl",
        "{\"kind\":\"step\",\"step\":1,\"epoch\":1,\"loss\":3.5,\"tokens\":7,\"lr\":0.1,\"grad_norm\":1.0}\n",
    );
    let args = [
        "eval",
        BASE[0],
        BASE[1],
        "--report",
        "page.html",
        "--limit",
        "4",
    ];
    dir.run(&args).fails(1, &["loss_at_most"]);
    let page = std::fs::read_to_string(dir.path("page.html")).unwrap();
    for part in [
        "<!doctype html>",
        "✗ 1 of 5 thresholds missed",
        "Where is &lt;i&gt;order&lt;/i&gt; 0?",
        "Order 0 &amp; &lt;b&gt;sunny&lt;/b&gt;.",
        "<svg",
        "prefers-color-scheme:dark",
        "at scale 0.5",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    let own = page.matches("<i>").count() + page.matches("<b>").count();
    assert_eq!(own, 0, "what comes from rows is escaped");
    for outside in [
        "http://", "https://", "src=", "@import", "url(", "<script", "<link",
    ] {
        let found = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!found.contains(outside), "{outside}");
    }
    // Every element that is opened is closed.
    for tag in [
        "div", "section", "table", "tbody", "tr", "td", "th", "p", "main", "details",
    ] {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    dir.run(&["eval", BASE[0], BASE[1], "--report", "no/such/folder.html"])
        .fails(1, &["no/such/folder.html"]);
}

#[test]
fn gate_alone_gives_the_same_checks() {
    let lenient = "loss_at_most = 50.0\ndistinct_at_least = 0.0\nother_tone_at_most = 1.0\nrepetition_at_most = 1.0";
    let dir = dir(lenient, "drift_at_most = 0.0\nlength_at_most = 90.0");
    let asked = |more: &[&str], code: i32| {
        let ran = dir.run(&[&["eval", BASE[0], BASE[1], "--json"], more].concat());
        assert_eq!(ran.code, code, "{ran:?}");
        serde_json::from_str::<Value>(&ran.out).unwrap()
    };
    let all = asked(&[], 1);
    let alone = asked(&["--gate"], 1);
    assert_eq!(alone["gate"], all["gate"]);
    assert_eq!(alone["missed"], all["missed"]);
    assert_eq!(alone["gate"].as_array().unwrap().len(), 10, "{alone:#}");
    assert!(
        alone["missed"][0]
            .as_str()
            .unwrap()
            .contains("stern: drift")
    );
    assert_eq!(alone.as_object().unwrap().len(), 2, "{alone:#}");
    // A single persona is not compared with others.
    let one = asked(&["--gate", "--persona", "stern"], 1);
    assert_eq!(one["gate"].as_array().unwrap().len(), 4, "{one:#}");

    let shown = dir.run(&["eval", BASE[0], BASE[1], "--gate"]);
    assert!(
        shown.out.contains("drift_at_most") && shown.out.contains("missed"),
        "{}",
        shown.out
    );
    assert!(!shown.out.contains("perplexity"), "{}", shown.out);
    let none = dir.run(&[
        "eval",
        BASE[0],
        BASE[1],
        "--gate",
        "--persona",
        "warm",
        "--rows",
        "../sunny/eval.jsonl",
    ]);
    none.fails(2, &["no persona here has thresholds"]);
}
