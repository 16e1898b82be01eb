//! `lory chat` with lines from a pipe, and with keys from a terminal.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::test_dir::{Ran, TestDir, ran};

const TINY: [&str; 5] = ["chat", "--base", "tiny.gguf", "--max-new-tokens", "6"];

/// Runs `lory chat` with these lines on stdin.
fn chat(dir: &TestDir, args: &[&str], lines: &str) -> Ran {
    let mut command = dir.lory(&[&TINY[..], args].concat());
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    ran(child.wait_with_output().unwrap())
}

/// The answer of `lory generate` to the same message.
fn generated(dir: &TestDir, args: &[&str], prompt: &str) -> String {
    let args = [&["generate"], &TINY[1..], args, &[prompt]].concat();
    dir.run(&args).succeeds().to_owned()
}

#[test]
fn a_message_is_answered_as_by_generate() {
    let dir = TestDir::with_tones();
    for persona in [&[][..], &["--persona", "warm"]] {
        let answer = chat(&dir, persona, "Where is order 12345?\n");
        let expected = generated(&dir, persona, "Where is order 12345?");
        assert_eq!(answer.succeeds(), expected);
    }
}

#[test]
fn the_tone_changes_in_the_middle_of_a_conversation() {
    let dir = TestDir::with_tones();
    let question = "Where is my parcel?";
    let lines = format!("{question}\n/tone formal\n/retry\n/blend warm 0.5 formal 0.5\n/retry\n");
    let answers = chat(&dir, &["--persona", "warm"], &lines);
    let expected = ["warm", "formal", "warm*0.5+formal*0.5"]
        .map(|persona| generated(&dir, &["--persona", persona], question));
    assert_eq!(answers.succeeds(), expected.concat());
    assert!(
        answers.err.contains("formal answers from now on; /retry"),
        "{answers:?}"
    );
    // Without a name it lists them, with what answers.
    let list = chat(&dir, &["--persona", "warm"], "/tone\n");
    assert_eq!(
        list.succeeds(),
        "  tiny    the base, without an adapter\n  formal\n→ warm    Warm\n"
    );
}

#[test]
fn a_conversation_is_saved_as_a_row_to_train_on() {
    let dir = TestDir::with_tones();
    // Answers that end by themselves: others are not trained.
    dir.persona(
        "brief",
        "stop = [\"a\", \"e\", \"o\", \"s\"]\n[sampling]\ntemperature = 1.5\nseed = 3",
        None,
    );
    let args = ["--persona", "brief", "--max-new-tokens", "100"];
    let lines = "/system You sell lamps.\nHello!\nDo you ship\\\nto Norway?\n/save rows.jsonl\n\
                 /undo\n/save rows.jsonl\n/clear\n/save rows.jsonl\nAnother\n/save rows.jsonl\n";
    let mut command = dir.lory(&[&TINY[..3], &args].concat());
    command.stdin(std::fs::File::open(dir.write("lines.txt", lines)).unwrap());
    let ran = ran(command.output().unwrap());
    ran.fails(
        1,
        &[
            "a row of 5 messages was added to rows.jsonl",
            "a row of 3 messages was replaced in rows.jsonl",
            // After /clear.
            "no complete answer to save",
        ],
    );
    let shown = dir.run(&[
        "data",
        "show",
        "rows.jsonl",
        "--base",
        "tiny.gguf",
        "--row",
        "2",
    ]);
    assert!(shown.succeeds().contains("You sell lamps."), "{shown:?}");
    let rows = std::fs::read_to_string(dir.path("rows.jsonl")).unwrap();
    let rows: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    let roles: Vec<&str> = rows[0]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(rows[0]["messages"][0]["content"], "You sell lamps.");
    assert_eq!(rows[1]["messages"][1]["content"], "Another");
}

#[test]
fn an_input_that_fails_is_reported_and_the_conversation_continues() {
    let dir = TestDir::with_tones();
    let lines = "/sing\n/tone nobody\n/blend warm\n/retry\n/undo\n/save rows.txt\n/save none/rows.jsonl\nHello\n";
    let ran = chat(&dir, &[], lines);
    ran.fails(
        1,
        &[
            "unknown command /sing; the commands are /tone, /blend, /system",
            "unknown persona `nobody`; the personas are formal, warm",
            "write names and weights",
            "nothing was answered yet",
            "the conversation has no messages",
            "ends in .jsonl",
        ],
    );
    assert_eq!(ran.out, generated(&dir, &[], "Hello"));
    let ran = chat(&dir, &["--persona", "warm", "--variable", "shop=x"], "");
    ran.fails(2, &["--variable shop", "warm has no variable"]);
    chat(&dir, &["--persona", "nobody"], "").fails(1, &["unknown persona `nobody`"]);
}

#[test]
fn without_any_personas_the_base_answers() {
    let dir = TestDir::with_tones();
    dir.write("none/.keep", "");
    let ran = chat(&dir, &["--personas", "none"], "/tone\nHello\n");
    let list = "→ tiny  the base, without an adapter\n";
    assert_eq!(
        ran.succeeds(),
        format!("{list}{}", generated(&dir, &[], "Hello"))
    );
}

#[test]
fn an_adapter_that_is_not_a_persona_answers() {
    let dir = TestDir::with_tones();
    dir.adapter("pirate", &testkit::tiny::adapter(13));
    let ran = chat(
        &dir,
        &["--adapter", "pirate"],
        "Hello\n/tone\n/tone base\n/retry\n",
    );
    let out = ran.succeeds();
    assert!(
        out.starts_with(&generated(&dir, &["--adapter", "pirate"], "Hello")),
        "{ran:?}"
    );
    assert!(out.contains("\n→ pirate"), "{ran:?}");
    assert!(out.ends_with(&generated(&dir, &[], "Hello")), "{ran:?}");
}

#[test]
fn personas_of_another_base_do_not_stop_a_conversation_with_this_one() {
    let dir = TestDir::with_tones();
    // Only the shipped personas are found, next to the program. They are for another base.
    std::fs::rename(dir.path("personas"), dir.path("elsewhere")).unwrap();
    let ran = chat(&dir, &[], "Hello\n");
    assert_eq!(ran.succeeds(), generated(&dir, &[], "Hello"));
}

#[test]
fn a_full_context_is_reported_with_what_to_do() {
    let dir = TestDir::with_tones();
    dir.write_base(64);
    let long = "Where is my order? ".repeat(20);
    let refused = chat(&dir, &[], &format!("{long}\nHi\n"));
    refused.fails(1, &["the context holds 64", "/clear removes all"]);
    assert_eq!(refused.out, generated(&dir, &[], "Hi"));
    dir.persona("talker", "max_new_tokens = 500", None);
    let mut command = dir.lory(&["chat", "--base", "tiny.gguf", "--persona", "talker"]);
    let hello = dir.write("hello.txt", "Hello\n");
    command.stdin(std::fs::File::open(hello).unwrap());
    let ran = ran(command.output().unwrap());
    assert!(
        ran.err.contains("the context of 64 tokens is full"),
        "{ran:?}"
    );
}

#[cfg(unix)]
mod terminal {
    use super::*;

    /// Runs `lory chat` in a terminal; see `terminal.py`.
    fn chat(dir: &TestDir, args: &[&str], steps: &[(&str, f64, &str)]) -> Ran {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/command_line/terminal.py"
        );
        let steps = serde_json::to_string(steps).unwrap();
        let program = env!("CARGO_BIN_EXE_lory");
        let command = [
            &[script, &steps, program, "chat", "--base", "tiny.gguf"],
            args,
        ]
        .concat();
        ran(dir.command("python3", &command).output().unwrap())
    }

    #[test]
    fn keys_edit_lines_and_end_the_conversation() {
        let dir = TestDir::with_tones();
        let prompt = "(tiny)\u{1b}[0m > ";
        let steps = [
            (prompt, 0.0, "\u{3}"),
            ("Ctrl-D or /quit ends the conversation", 0.0, ""),
            (prompt, 0.0, "one\\\r"),
            ("\n", 0.2, "two\r"),
            ("cut off after 6 tokens", 0.0, ""),
            // Pasted text is one message.
            (prompt, 0.0, "\u{1b}[200~three\nfour\u{1b}[201~"),
            ("four", 0.0, "\r"),
            ("cut off after 6 tokens", 0.0, ""),
            // A name is completed.
            (prompt, 0.0, "/tone fo\t"),
            ("formal", 0.0, "\r"),
            ("(formal)\u{1b}[0m > ", 0.0, "\u{4}"),
        ];
        let ran = chat(&dir, &["--max-new-tokens", "6"], &steps);
        ran.succeeds();
        assert!(ran.out.contains("tones: formal, warm"), "{ran:?}");
        let history = std::fs::read_to_string(dir.path("home/chat_history")).unwrap();
        for input in ["one", "three\\nfour", "/tone formal"] {
            assert!(history.contains(input), "{history}");
        }
    }

    #[test]
    fn ctrl_c_stops_an_answer_and_keeps_what_was_said() {
        let dir = TestDir::with_tones();
        dir.write_base(8192);
        let prompt = "(tiny)\u{1b}[0m > ";
        let steps = [
            (prompt, 0.0, "Hello\r"),
            ("\n", 1.0, "\u{3}"),
            ("stopped", 0.0, ""),
            (prompt, 0.0, "/undo\r"),
            ("removed: Hello", 0.0, "/quit\r"),
        ];
        let ran = chat(&dir, &["--max-new-tokens", "8000"], &steps);
        ran.succeeds();
        assert!(!ran.out.contains("before the answer began"), "{ran:?}");
    }
}
