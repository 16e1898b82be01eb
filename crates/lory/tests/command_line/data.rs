//! `lory data lint` and `lory data show`.

use serde_json::Value;

use crate::test_dir::{TestDir, ran};

const CLEAN: &str = concat!(
    r#"{"instruction":"Where is order 4711?","input":"","output":"Order 4711 is on its way.","intent":"status"}"#,
    "\n",
    r#"{"prompt":"May I return a lamp?","completion":"Yes, within a month.","intent":"return"}"#,
    "\n"
);

const BASE: [&str; 2] = ["--base", "tiny.gguf"];

#[test]
fn lint_passes_clean_rows() {
    let dir = TestDir::with_tones();
    dir.write("a.jsonl", CLEAN);
    let ran = dir.run(&["data", "lint", "a.jsonl", "--text-only"]);
    assert_eq!(
        ran.succeeds(),
        "no evaluation file: training holds out 1 rows for validation\n2 rows, 2 intents: no problems\n"
    );
    let ran = dir.run(&["data", "lint", "a.jsonl", BASE[0], BASE[1]]);
    assert!(ran.succeeds().starts_with("tokens per row\n"), "{ran:?}");
    assert!(ran.out.contains(" 1 ████"), "{ran:?}");
    assert!(ran.out.ends_with("2 rows, 2 intents: no problems\n"));
}

#[test]
fn lint_findings_name_file_and_line_and_exit_with_1() {
    let dir = TestDir::new();
    dir.write(
        "a.jsonl",
        &format!("{CLEAN}{}", CLEAN.replace("4711", "815")),
    );
    dir.write(
        "eval.jsonl",
        "{\"prompt\":\"may i return a lamp\",\"completion\":\"No.\"}\n",
    );
    let args = [
        "data",
        "lint",
        "a.jsonl",
        "--against",
        "eval.jsonl",
        "--text-only",
    ];
    let ran = dir.run(&args);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out
            .contains("a.jsonl:3: the same, except for numbers, as a.jsonl:1\n"),
        "{ran:?}"
    );
    assert!(
        ran.out.contains("a.jsonl:4: the same row as a.jsonl:2\n"),
        "{ran:?}"
    );
    assert!(
        ran.out
            .contains("a.jsonl:2: its input is also in eval.jsonl:1\n"),
        "{ran:?}"
    );
    assert!(
        ran.out
            .ends_with("1 duplicate, 1 duplicate_but_numbers, 2 leak\n"),
        "{ran:?}"
    );

    let ran = dir.run(&[&args[..], &["--json"]].concat());
    assert_eq!(ran.code, 1);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["rows"], 4);
    assert_eq!(report["findings"].as_array().unwrap().len(), 4);
    assert_eq!(report["findings"][0]["line"], 2);
    assert_eq!(report["lengths"], Value::Null);
}

#[test]
fn lint_names_every_broken_line_and_checks_the_rest() {
    let dir = TestDir::with_tones();
    let text = format!("{{\"prompt\":1}}\n{CLEAN}\r\nnot json\n{CLEAN}");
    dir.write("a.jsonl", &text);
    let ran = dir.run(&["data", "lint", "a.jsonl", BASE[0], BASE[1], "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["broken_lines"], 2);
    assert_eq!(report["rows"], 4);
    assert_eq!(report["lengths"]["rows"], 4);
    let rows = |bucket: &Value| bucket["rows"].as_u64().unwrap();
    let histogram = report["lengths"]["histogram"].as_array().unwrap();
    assert_eq!(histogram.iter().map(rows).sum::<u64>(), 4);
    let lines: Vec<(&str, u64)> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["problem"].as_str().unwrap(), f["line"].as_u64().unwrap()))
        .collect();
    let expected = [
        ("broken", 1),
        ("broken", 5),
        ("duplicate", 6),
        ("duplicate", 7),
    ];
    assert_eq!(lines, expected);
    dir.run(&["data", "lint", "missing.jsonl", "--text-only"])
        .fails(1, &["missing.jsonl"]);
    dir.write("empty.jsonl", "\n");
    dir.run(&["data", "lint", "empty.jsonl", "--text-only"])
        .fails(1, &["empty.jsonl: the file holds no rows"]);
}

#[test]
fn lint_reads_a_persona_as_training_does() {
    let dir = TestDir::with_tones();
    let train = "[train]\ndata = \"t.jsonl\"\neval = \"e.jsonl\"\nmax_length = 90\n\
                 columns = { instruction = \"question\", output = \"answer\" }\n";
    dir.persona(
        "curt",
        &format!("system_prompt = \"Be curt.\"\n{train}"),
        None,
    );
    let row = |question: &str, answer: &str| {
        format!("{{\"question\":\"{question}\",\"answer\":\"{answer}\"}}\n")
    };
    let rows = [
        row("Where is it?", "There."),
        row("What of it?", &"x".repeat(200)),
        row("Who are you?", "I."),
    ];
    dir.write("personas/curt/t.jsonl", &rows.concat());
    dir.write("personas/curt/e.jsonl", &row("who are YOU", "Me."));
    let lint = dir.run(&["data", "lint", "--persona", "curt", BASE[0], BASE[1]]);
    assert_eq!(lint.code, 1, "{lint:?}");
    for part in [
        "t.jsonl:2: too long: ",
        "more than 90; it would be left out\n",
        "t.jsonl:3: its input is also in personas/curt/e.jsonl:1\n",
        "longer than max_length = 90: 1 rows would be left out, 0 cut\n",
        "3 rows, 0 intents: 1 leak, 1 too_long\n",
    ] {
        assert!(lint.out.contains(part), "{part:?} is missing: {lint:?}");
    }

    let show = dir.run(&[
        "data",
        "show",
        "--persona",
        "curt",
        BASE[0],
        BASE[1],
        "--row",
        "1",
    ]);
    let shown = show.succeeds();
    assert!(
        shown.contains(
            "<|im_start|>system\nBe curt.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n\
             <|im_start|>assistant\n⟦There.<|im_end|>⟧\n"
        ),
        "{shown}"
    );

    // Training says what it leaves out, and reads the columns too.
    let train = [
        "train",
        "--persona",
        "curt",
        BASE[0],
        BASE[1],
        "--max-steps",
        "1",
    ];
    let ran = dir.run(&train);
    assert!(ran.succeeds().contains("curt"), "{ran:?}");
    assert!(
        ran.err.contains(
            "curt: 1 rows are longer than max_length = 90 tokens and are left out (too_long = drop)"
        ),
        "{ran:?}"
    );
    // Two rows to train on, one to validate with.
    let plan = ran.err.lines().find(|line| line.starts_with("curt  "));
    let numbers: Vec<&str> = plan.unwrap_or_default().split_whitespace().collect();
    assert_eq!(numbers[1..3], ["2", "1"], "{ran:?}");
}

#[test]
fn flags_set_columns_and_the_held_out_share() {
    let dir = TestDir::with_tones();
    let row = |i: usize| format!("{{\"q\":\"question {i}\",\"a\":\"answer {i}\"}}\n");
    dir.write("a.jsonl", &(0..20).map(row).collect::<String>());
    let names = ["--column", "instruction=q", "--column", "output=a"];
    let train = [
        "train", BASE[0], BASE[1], "--data", "a.jsonl", "--out", "out",
    ];
    let more = ["--max-steps", "1", "--validation-fraction", "0.3"];
    let ran = dir.run(&[&train[..], &names, &more].concat());
    ran.succeeds();
    assert!(
        ran.err.contains("out: no evaluation file, so ")
            && ran
                .err
                .contains(" rows are held out for validation by the hash of their content"),
        "{ran:?}"
    );
    // What was trained is written down with the adapter.
    let weights = std::fs::read(dir.path("out/adapter_model.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&weights[..4096.min(weights.len())]).into_owned();
    assert!(
        header.contains(r#"\"columns\":{\"instruction\":\"q\",\"output\":\"a\"}"#),
        "{header}"
    );

    dir.run(&["data", "lint", "a.jsonl", "--text-only"])
        .fails(1, &[]);
    let ran = dir.run(
        &[
            &["data", "lint", "a.jsonl", "--text-only", "--near", "1"],
            &names[..],
        ]
        .concat(),
    );
    assert!(!ran.out.contains("none of the known shapes"), "{ran:?}");
}

#[test]
fn trained_adapter_answers_with_the_commands_that_training_prints() {
    let dir = TestDir::with_tones();
    let row = |i: usize| format!("{{\"prompt\":\"question {i}\",\"completion\":\"answer {i}\"}}\n");
    dir.write("a.jsonl", &(0..8).map(row).collect::<String>());
    let train = [
        "train",
        BASE[0],
        BASE[1],
        "--data",
        "a.jsonl",
        "--out",
        "My pirate",
        "--max-steps",
        "1",
    ];
    let ran = dir.run(&train);
    ran.succeeds();
    for line in [
        "  lory chat --base tiny.gguf --adapter 'My pirate'",
        "  lory generate --base tiny.gguf --adapter 'My pirate' \"a question\"",
        "  lory eval --base tiny.gguf --adapter 'My pirate' --rows HELD_OUT.jsonl",
        "  lory serve --base tiny.gguf --adapter 'My pirate'",
        "  lory persona publish --base tiny.gguf my-pirate --adapter 'My pirate'",
    ] {
        assert!(
            ran.err.lines().any(|printed| printed == line),
            "{line}: {ran:?}"
        );
    }
    let generate = [
        "generate",
        BASE[0],
        BASE[1],
        "--adapter",
        "My pirate",
        "--json",
        "a question",
    ];
    let answer = dir.run(&generate);
    assert!(
        answer.succeeds().contains("\"name\":\"my-pirate\""),
        "{answer:?}"
    );
    let eval = [
        "eval",
        BASE[0],
        BASE[1],
        "--adapter",
        "My pirate",
        "--rows",
        "a.jsonl",
        "--limit",
        "1",
        "--json",
    ];
    let measured = dir.run(&eval);
    assert!(measured.succeeds().contains("my-pirate"), "{measured:?}");
    dir.run(&eval[..5])
        .fails(1, &["name a file of rows with --rows"]);
    dir.run(&["generate", BASE[0], BASE[1], "--adapter", "nowhere", "x"])
        .fails(1, &["--adapter", "nowhere: no such folder"]);
    let twice = ["--adapter", "My pirate", "--adapter", "./My pirate", "x"];
    dir.run(&[&["generate", BASE[0], BASE[1]], &twice[..]].concat())
        .fails(2, &["both be the persona my-pirate", "rename"]);
}

#[test]
fn refused_training_names_the_linter() {
    let dir = TestDir::with_tones();
    dir.write("my rows.jsonl", "no row\n");
    let train = [
        "train",
        BASE[0],
        BASE[1],
        "--data",
        "my rows.jsonl",
        "--out",
        "x",
    ];
    dir.run(&train).fails(
        1,
        &[
            "my rows.jsonl:1: not valid JSON",
            "hint: lory data lint 'my rows.jsonl' lists what is wrong with its rows",
        ],
    );
}

#[test]
fn show_marks_or_colours_the_trained_part() {
    let dir = TestDir::with_tones();
    let talk = concat!(
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"},{"from":"human","value":"c"},{"from":"gpt","value":"d"}]}"#,
        "\n\n{\"oops\":1}\n",
        "{\"prompt\":\"\\u001b[2Jp\",\"completion\":\"q\"}\n",
    );
    dir.write("a.jsonl", talk);
    let show =
        |more: &[&str]| dir.run(&[&["data", "show", "a.jsonl", BASE[0], BASE[1]], more].concat());
    let ran = show(&[]);
    let all = ran.succeeds();
    assert!(all.starts_with("a.jsonl:1  row 1  "), "{all}");
    assert!(all.contains("assistant\nb<|im_end|>") && all.contains("⟦d<|im_end|>⟧"));
    assert!(
        all.contains("\na.jsonl:4  row 2  ") && all.contains("\\u{1b}[2Jp"),
        "{all}"
    );
    assert!(!all.contains('\u{1b}'), "{all:?}");
    assert!(ran.err.contains("a.jsonl: 1 lines are broken"), "{ran:?}");

    let every = show(&["--mask", "assistant", "--row", "1"]);
    assert!(every.succeeds().contains("⟦b<|im_end|>⟧") && every.out.contains("⟦d<|im_end|>⟧"));
    assert!(!every.out.contains("row 2"));
    assert!(show(&["--line", "4"]).succeeds().contains("⟦q<|im_end|>⟧"));

    let mut coloured = dir.lory(&["data", "show", "a.jsonl", BASE[0], BASE[1], "--row", "1"]);
    let coloured = ran_with(coloured.env("CLICOLOR_FORCE", "1"));
    assert!(
        coloured.contains("\u{1b}[32md<|im_end|>\u{1b}[0m"),
        "{coloured:?}"
    );
    assert!(!coloured.contains('⟦'));

    let json = show(&["--row", "1", "--json"]);
    let json: Value = serde_json::from_str(json.succeeds()).unwrap();
    let row = &json["rows"][0];
    let (tokens, trained) = (&row["tokens"], &row["trained"]);
    assert_eq!(
        tokens.as_array().unwrap().len(),
        trained.as_array().unwrap().len()
    );
    let on = trained.as_array().unwrap().iter().filter(|on| **on == true);
    assert_eq!(on.count() as u64, row["trained_tokens"].as_u64().unwrap());
    assert!(tokens[0].is_u64() && row["line"] == 1 && row["fate"] == "whole");

    let cut = show(&[
        "--row",
        "1",
        "--max-length",
        "50",
        "--too-long",
        "truncate_start",
    ]);
    assert!(
        cut.succeeds()
            .contains(" 50 tokens, 2 of them trained  cut from "),
        "{cut:?}"
    );
    show(&["--line", "3"]).fails(1, &["a.jsonl:3: none of the known shapes"]);
    show(&["--line", "2"]).fails(2, &["there is no row on this line"]);
    show(&["--row", "3"]).fails(2, &["a.jsonl has 2 rows"]);
}

#[test]
fn lint_and_show_read_both_answers_of_pairs() {
    let dir = TestDir::with_tones();
    let pairs = concat!(
        r#"{"prompt":"May I return a lamp?","chosen":"Of course!","rejected":"Yes."}"#,
        "\n",
        r#"{"prompt":"Is it blue?","chosen":"It is.","rejected":"It is."}"#,
        "\n",
        r#"{"prompt":"Is it red?","chosen":"It is."}"#,
        "\n"
    );
    dir.write("pairs.jsonl", pairs);
    let ran = dir.run(&["data", "lint", "pairs.jsonl", BASE[0], BASE[1]]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for line in [
        "pairs.jsonl:2: its chosen and its rejected answer are the same; training leaves it out\n",
        "pairs.jsonl:3: field `rejected`: is missing; a preference row has both `chosen` and `rejected`\n",
        "2 rows, 0 intents: 1 broken, 1 same_answers\n",
    ] {
        assert!(ran.out.contains(line), "{line}: {ran:?}");
    }

    let show = [
        "data",
        "show",
        "pairs.jsonl",
        BASE[0],
        BASE[1],
        "--row",
        "1",
    ];
    let shown = dir.run(&show);
    let text = shown.succeeds();
    assert!(text.starts_with("pairs.jsonl:1  row 1  "), "{text}");
    assert!(text.contains("⟦Of course!<|im_end|>⟧"), "{text}");
    let (_, rejected) = text.split_once("\nrejected  ").unwrap();
    assert!(rejected.contains("May I return a lamp?") && rejected.contains("⟦Yes.<|im_end|>⟧"));
    let json = |more: &[&str]| -> Value {
        let ran = dir.run(&[&show[..], &["--json"], more].concat());
        serde_json::from_str::<Value>(ran.succeeds()).unwrap()["rows"][0].clone()
    };
    let row = json(&[]);
    assert_eq!(
        (&row["fate"], &row["rejected"]["fate"]),
        (&"whole".into(), &"whole".into())
    );
    // The longer answer decides about both.
    let most = row["rejected"]["row_tokens"].as_u64().unwrap();
    assert!(row["row_tokens"].as_u64().unwrap() > most);
    let row = json(&["--max-length", &most.to_string()]);
    assert_eq!(
        (&row["fate"], &row["rejected"]["fate"]),
        (&"left out".into(), &"whole".into())
    );
}

fn ran_with(command: &mut std::process::Command) -> String {
    ran(command.output().unwrap()).succeeds().to_owned()
}
