//! Training jobs of a server that is killed: the next server continues them and ends with the same bytes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::http::{FORM, JSON, form};
use testkit::server::ServerProcess;

use crate::test_dir::TestDir;

const SERVE: [&str; 7] = [
    "serve",
    "--base",
    "tiny.gguf",
    "--personas",
    "personas",
    "--port",
    "0",
];

/// Uploads rows; the file's id.
fn upload(server: &ServerProcess, rows: &str) -> String {
    let body = form(&[
        ("purpose", None, "fine-tune"),
        ("file", Some("mine.jsonl"), rows),
    ]);
    let reply = server.send("POST", "/v1/files", &[FORM], &body).read_all();
    reply.json()["id"].as_str().unwrap().to_owned()
}

fn create(server: &ServerProcess, file: &str, suffix: &str) -> String {
    let body = json!({
        "model": "tiny", "training_file": file, "suffix": suffix,
        "hyperparameters": {"n_epochs": 20, "batch_size": 4, "rank": 4, "lr": 0.01},
    });
    let reply = server.post("/v1/fine_tuning/jobs", &body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["id"].as_str().unwrap().to_owned()
}

fn job(server: &ServerProcess, id: &str) -> Value {
    server.get(&format!("/v1/fine_tuning/jobs/{id}")).json()
}

/// The job, once `when` holds of it.
#[track_caller]
fn once(server: &ServerProcess, id: &str, when: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let job = job(server, id);
        if when(&job) {
            return job;
        }
        assert_ne!(job["status"], "failed", "{job:#}");
        assert!(began.elapsed() < Duration::from_secs(120), "{job:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The hash of the adapter that answers for `who`.
fn hash(server: &ServerProcess, who: &str) -> Value {
    let body = json!({"prompt": "Hi", "user_type": who, "max_new_tokens": 2});
    server.generate(body)["persona"]["adapters"][0]["sha256"].clone()
}

#[test]
fn job_of_a_killed_server_ends_with_the_same_bytes() {
    let dir = TestDir::with_tones();
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"Yay, order {i}.\"}}\n")
    };
    let rows: String = (100..124).map(row).collect();
    let server = dir.serve(&SERVE);
    let file = upload(&server, &rows);
    let whole = create(&server, &file, "whole");
    let whole = once(&server, &whole, |job| job["status"] == "succeeded");
    assert_eq!(whole["fine_tuned_model"], "whole@1");
    let expected = hash(&server, "whole");
    let id = create(&server, &file, "killed");
    let mut server = server;
    // Before the first step, and twice in the middle.
    for step in [0, 20, 60] {
        let done = |job: &Value| {
            job["status"] == "succeeded" || job["lory"]["progress"]["step"].as_u64() >= Some(step)
        };
        once(&server, &id, done);
        // SIGKILL: no handler runs, nothing is flushed.
        drop(server);
        server = dir.serve(&SERVE);
    }
    let job = once(&server, &id, |job| job["status"] == "succeeded");
    assert_eq!(job["fine_tuned_model"], "killed@1");
    assert_eq!(hash(&server, "killed"), expected);
    // Every step is counted once.
    assert_eq!(job["trained_tokens"], whole["trained_tokens"]);
    // Only one version is published.
    let answer = server.get("/v1/personas/killed").text;
    assert!(!answer.contains("killed@2"), "{answer}");
}

#[cfg(unix)]
#[test]
fn sigterm_is_obeyed_while_plans_of_clients_that_disconnected_wait() {
    let dir = TestDir::with_tones();
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"Yay, order {i}.\"}}\n")
    };
    let rows: String = (0..20_000).map(row).collect();
    let server = dir.serve(&[&SERVE[..], &["--drain-timeout", "5s"]].concat());
    let file = upload(&server, &rows);
    let plan = json!({"model": "tiny", "training_file": file}).to_string();
    for _ in 0..1200 {
        let path = "/v1/fine_tuning/plan";
        drop(server.write("POST", path, JSON, plan.as_bytes()));
    }
    server.signal("-TERM");
    let stopped = Instant::now();
    assert_eq!(server.wait(), Some(0));
    // The drain timeout, and time for a slow machine.
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(35), "{took:?}");
}
