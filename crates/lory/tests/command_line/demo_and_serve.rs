//! `lory demo` and `lory serve`.

use std::net::TcpListener;
use std::process::Stdio;

use serde_json::json;
use testkit::server::ServerProcess;

use crate::test_dir::TestDir;

#[test]
fn demo_answers_with_every_persona_in_columns() {
    let dir = TestDir::with_tones();
    dir.persona("later", "description = \"Comes later\"", None);
    let mut command = dir.lory(&["demo", "--once", "--base", "tiny.gguf"]);
    let wide = crate::test_dir::ran(command.env("COLUMNS", "170").output().unwrap());
    let head = wide
        .succeeds()
        .lines()
        .find(|line| line.starts_with("tiny (no persona)"))
        .unwrap();
    for title in ["│  formal", "│  later: not trained yet", "│  warm: Warm"] {
        assert!(head.contains(title), "{}", wide.out);
    }
    assert!(wide.out.contains("What is the status of my order #12345?"));
    assert!(wide.out.contains("4 answers, "), "{}", wide.out);
    for step in [
        "lory chat --base tiny.gguf --persona formal ",
        "lory serve --base tiny.gguf ",
        "lory train --base tiny.gguf --data mine.jsonl --out personas/mine ",
    ] {
        assert!(wide.out.contains(step), "{}", wide.out);
    }

    let mut command = dir.lory(&["demo", "--once", "--base", "tiny.gguf"]);
    let narrow = crate::test_dir::ran(command.env("COLUMNS", "60").output().unwrap());
    assert!(
        narrow.succeeds().contains("warm: Warm\n──────────\n"),
        "{}",
        narrow.out
    );
    // Commands to copy are not wrapped.
    let answers = narrow.out.split("\nNext:").next().unwrap();
    assert!(
        answers
            .lines()
            .all(|line| console::measure_text_width(line) <= 60),
        "{}",
        narrow.out
    );
}

#[test]
fn demo_answers_although_one_adapter_is_broken() {
    let dir = TestDir::with_tones();
    dir.write(
        "personas/formal/adapter/adapter_model.safetensors",
        "truncated",
    );
    let ran = dir.run(&["demo", "--once", "--base", "tiny.gguf"]);
    assert!(ran.succeeds().contains("2 answers, "), "{}", ran.out);
    assert!(ran.out.contains("warm: Warm"), "{}", ran.out);
    assert!(
        ran.err.contains("persona formal did not answer")
            && ran.err.contains("adapter_model.safetensors"),
        "{}",
        ran.err
    );
}

#[test]
fn demo_serves_on_the_next_free_port() {
    let dir = TestDir::with_tones();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let server = dir.serve(&["demo", "--base", "tiny.gguf", "--port", &port.to_string()]);
    assert_ne!(server.address.port(), port);
    assert!(
        server.startup_output().contains("formal, warm"),
        "{}",
        server.startup_output()
    );
    assert_eq!(server.get("/health").status, 200);
}

#[cfg(unix)]
#[test]
fn serve_prints_its_address_and_stops_on_sigterm() {
    let dir = TestDir::with_tones();
    let server = dir.serve(&[
        "serve",
        "--base",
        "tiny.gguf",
        "--personas",
        "personas",
        "--port",
        "0",
        "--kv-memory",
        "16MiB",
    ]);
    assert!(
        server
            .startup_output()
            .contains("curl -s http://127.0.0.1:"),
        "{}",
        server.startup_output()
    );
    assert!(server.get("/v1/models").text.contains("\"formal\""));
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn serve_accepts_an_empty_personas_folder() {
    let dir = TestDir::with_tones();
    std::fs::create_dir(dir.path("none")).unwrap();
    let server = dir.serve(&[
        "serve",
        "--base",
        "tiny.gguf",
        "--personas",
        "none",
        "--port",
        "0",
    ]);
    assert!(
        server.startup_output().contains("personas  none"),
        "{}",
        server.startup_output()
    );
    let studio = format!("studio    http://{}/ in a browser", server.address);
    assert!(
        server.startup_output().contains(&studio),
        "{}",
        server.startup_output()
    );
    assert_eq!(server.get("/ready").status, 200);
}

#[test]
fn taken_port_is_an_error_at_once() {
    let dir = TestDir::with_tones();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ran = dir.run(&["serve", "--base", "tiny.gguf", "--port", &port]);
    ran.fails(
        1,
        &[
            &format!("cannot listen on 127.0.0.1:{port}"),
            "the port is taken",
            "--port",
        ],
    );
}

#[test]
fn serve_ends_if_the_base_cannot_be_loaded() {
    let dir = TestDir::with_tones();
    dir.write("broken.gguf", "no model");
    let args = ["serve", "--base", "broken.gguf", "--port", "0"];
    dir.run(&args).fails(1, &["broken.gguf"]);
}

#[test]
fn adapter_larger_than_the_adapter_memory_is_logged_and_refused_to_requests() {
    let dir = TestDir::with_tones();
    let mut command = dir.lory(&[
        "serve",
        "--base",
        "tiny.gguf",
        "--port",
        "0",
        "--adapter-memory",
        "1KiB",
    ]);
    command.stderr(Stdio::piped());
    let mut server = ServerProcess::spawn(command);
    server.log_line(&["persona formal cannot answer", "adapter memory"]);
    let generate = |name: &str| {
        server.post(
            "/generate",
            &json!({"prompt": "Hi", "user_type": name, "max_new_tokens": 1}),
        )
    };
    let refused = generate("formal");
    assert_eq!(refused.status, 507, "{}", refused.text);
    assert!(refused.text.contains("adapter memory"), "{}", refused.text);
    assert_eq!(generate("base").status, 200);
}
