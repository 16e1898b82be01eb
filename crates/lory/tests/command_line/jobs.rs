//! Training jobs of a server that is killed: the next one goes on with them, to the same bytes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::scene::Scene;
use crate::serving::Serving;

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
fn upload(serving: &Serving, rows: &str) -> String {
    let body = format!(
        "--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--XX\r\nContent-Disposition: form-data; \
         name=\"file\"; filename=\"mine.jsonl\"\r\n\r\n{rows}\r\n--XX--\r\n"
    );
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    write!(
        stream,
        "POST /v1/files HTTP/1.0\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let file: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    file["id"].as_str().unwrap().to_owned()
}

fn create(serving: &Serving, file: &str, suffix: &str) -> String {
    let body = json!({
        "model": "tiny", "training_file": file, "suffix": suffix,
        "hyperparameters": {"n_epochs": 20, "batch_size": 4, "rank": 4, "lr": 0.01},
    });
    let (status, answer) = serving.post("/v1/fine_tuning/jobs", &body);
    assert_eq!(status, 200, "{answer}");
    let job: Value = serde_json::from_str(&answer).unwrap();
    job["id"].as_str().unwrap().to_owned()
}

fn job(serving: &Serving, id: &str) -> Value {
    let answer = serving.get(&format!("/v1/fine_tuning/jobs/{id}"));
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The job, once `when` holds of it.
#[track_caller]
fn once(serving: &Serving, id: &str, when: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let job = job(serving, id);
        if when(&job) {
            return job;
        }
        assert_ne!(job["status"], "failed", "{job:#}");
        assert!(began.elapsed() < Duration::from_secs(120), "{job:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The hash of the adapter that answers for `who`.
fn hash(serving: &Serving, who: &str) -> Value {
    let body = json!({"prompt": "Hi", "user_type": who, "max_new_tokens": 2});
    let (status, answer) = serving.post("/generate", &body);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["persona"]["adapters"][0]["sha256"].clone()
}

#[test]
fn a_killed_servers_job_goes_on_to_the_same_bytes() {
    let scene = Scene::with_tones();
    let row = |i: usize| {
        format!("{{\"instruction\":\"Where is order {i}?\",\"output\":\"Yay, order {i}.\"}}\n")
    };
    let rows: String = (100..124).map(row).collect();
    let serving = Serving::start(&scene, &SERVE);
    let file = upload(&serving, &rows);
    let whole = create(&serving, &file, "whole");
    let whole = once(&serving, &whole, |job| job["status"] == "succeeded");
    assert_eq!(whole["fine_tuned_model"], "whole@1");
    let expected = hash(&serving, "whole");
    let id = create(&serving, &file, "killed");
    let mut serving = serving;
    // Before its first step, and in the middle of it, two times.
    for step in [0, 20, 60] {
        let done = |job: &Value| {
            job["status"] == "succeeded" || job["lory"]["progress"]["step"].as_u64() >= Some(step)
        };
        once(&serving, &id, done);
        // SIGKILL: no handler runs, nothing is flushed.
        drop(serving);
        serving = Serving::start(&scene, &SERVE);
    }
    let job = once(&serving, &id, |job| job["status"] == "succeeded");
    assert_eq!(job["fine_tuned_model"], "killed@1");
    assert_eq!(hash(&serving, "killed"), expected);
    // Every step stands in the events once.
    assert_eq!(job["trained_tokens"], whole["trained_tokens"]);
    // One version, however often the process before was at it.
    let answer = serving.get("/v1/personas/killed");
    assert!(!answer.contains("killed@2"), "{answer}");
}
