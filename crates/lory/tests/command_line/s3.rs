//! The registry in a bucket of a local S3 server. `.ci/run` installs it and runs these tests; by hand:
//!
//! ```text
//! python3 -m venv target/moto && target/moto/bin/pip install 'moto[server]'
//! LORY_MOTO_SERVER=$PWD/target/moto/bin/moto_server cargo test -p lory --test command_line s3 -- --ignored
//! ```

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::http::Client;
use testkit::server::ServerProcess;

use crate::test_dir::{Ran, TestDir, ran};

const PUBLISHERS: usize = 2;
const EACH: usize = 6;

/// A server with an empty bucket; dropped, it is killed.
struct Bucket {
    server: Child,
    port: u16,
}

impl Bucket {
    fn start() -> Bucket {
        let program =
            std::env::var("LORY_MOTO_SERVER").expect("LORY_MOTO_SERVER names moto_server");
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bucket = Bucket { server, port };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "moto_server does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        let client = Client {
            address: ([127, 0, 0, 1], port).into(),
        };
        let host = format!("127.0.0.1:{port}");
        let created = client.send("PUT", "/tones", &[("Host", &host)], b"");
        let created = created.read_all();
        assert_eq!(created.status, 200, "{}", created.text);
        bucket
    }

    /// The program with the bucket for its registry.
    fn lory(&self, dir: &TestDir, args: &[&str]) -> Command {
        let mut command = dir.lory(args);
        self.describe(&mut command);
        command
    }

    fn describe(&self, command: &mut Command) {
        command
            .env("LORY_REGISTRY", "s3://tones/eu")
            .env("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port))
            .env("AWS_ACCESS_KEY_ID", "testing")
            .env("AWS_SECRET_ACCESS_KEY", "testing")
            .env("AWS_REGION", "us-east-1");
    }

    fn run(&self, dir: &TestDir, args: &[&str]) -> Ran {
        ran(self.lory(dir, args).output().unwrap())
    }

    fn json(&self, dir: &TestDir, args: &[&str]) -> Value {
        serde_json::from_str(self.run(dir, args).succeeds()).unwrap()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
#[ignore = "needs moto_server"]
fn concurrent_publications_to_a_bucket_are_all_kept_and_served() {
    let (dir, bucket) = (TestDir::with_tones(), Bucket::start());
    let names = ["warm", "formal"];
    let versions: Vec<u64> = std::thread::scope(|scope| {
        let publishers: Vec<_> = names[..PUBLISHERS]
            .iter()
            .map(|from| {
                let (dir, bucket) = (&dir, &bucket);
                scope.spawn(move || {
                    let args = [
                        "persona",
                        "publish",
                        from,
                        "--as",
                        "shared",
                        "--base",
                        "tiny.gguf",
                        "--json",
                    ];
                    let publish = |_| bucket.json(dir, &args)["version"].as_u64().unwrap();
                    (0..EACH).map(publish).collect::<Vec<u64>>()
                })
            })
            .collect();
        publishers
            .into_iter()
            .flat_map(|publisher| publisher.join().unwrap())
            .collect()
    });
    let all = (PUBLISHERS * EACH) as u64;
    let distinct: BTreeSet<u64> = versions.into_iter().collect();
    assert_eq!(distinct, (1..=all).collect());
    let history = bucket.json(&dir, &["persona", "history", "--json"]);
    assert_eq!(history["data"].as_array().unwrap().len() as u64, all);
    bucket
        .run(&dir, &["persona", "alias", "other", "shared@1"])
        .succeeds();
    let verified = bucket.json(&dir, &["persona", "verify", "--json"]);
    assert_eq!(
        (
            &verified["broken"],
            verified["data"].as_array().unwrap().len()
        ),
        (&0.into(), 2)
    );

    // Another machine: it has no personas in a folder and no copies of adapters yet.
    let elsewhere = TestDir::new();
    std::fs::create_dir(elsewhere.path("personas")).unwrap();
    std::fs::copy(dir.path("tiny.gguf"), elsewhere.path("tiny.gguf")).unwrap();
    let args = [
        "generate",
        "--persona",
        "shared",
        "--persona",
        "other",
        "--json",
        "Hi",
        "--base",
        "tiny.gguf",
    ];
    for _ in 0..2 {
        let ran = bucket.run(&elsewhere, &args);
        let answers: Vec<Value> = ran
            .succeeds()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(answers[0]["persona"]["version"], all);
        assert_eq!(answers[1]["persona"]["version"], 1);
    }
    let copies = elsewhere.names("home/adapters");
    assert!((1..=2).contains(&copies.len()), "{copies:?}");

    // A server there follows the bucket.
    let args = [
        "serve",
        "--base",
        "tiny.gguf",
        "--port",
        "0",
        "--kv-memory",
        "16MiB",
        "--registry-poll",
        "50ms",
    ];
    let server = ServerProcess::spawn(bucket.lory(&elsewhere, &args));
    bucket
        .run(
            &dir,
            &[
                "persona",
                "publish",
                "warm",
                "--as",
                "late",
                "--base",
                "tiny.gguf",
            ],
        )
        .succeeds();
    let ask = serde_json::json!({"prompt": "Hi", "user_type": "late", "max_new_tokens": 1});
    let end = Instant::now() + Duration::from_secs(60);
    while server.post("/generate", &ask).status != 200 {
        assert!(Instant::now() < end, "it never came");
        std::thread::sleep(Duration::from_millis(50));
    }

    bucket.run(&dir, &["persona", "remove", "late"]).succeeds();
    bucket
        .run(&dir, &["persona", "alias", "other", "--remove"])
        .succeeds();
    bucket
        .run(&dir, &["persona", "remove", "shared"])
        .succeeds();
    let gc = bucket.json(&dir, &["persona", "gc", "--older-than", "0s", "--json"]);
    assert_eq!(gc["removed"].as_array().unwrap().len(), 2, "{gc}");
}

#[test]
#[ignore = "needs moto_server"]
fn a_missing_bucket_is_reported() {
    let (dir, bucket) = (TestDir::with_tones(), Bucket::start());
    let mut command = bucket.lory(&dir, &["persona", "publish", "warm", "--base", "tiny.gguf"]);
    command.env("LORY_REGISTRY", "s3://nowhere");
    ran(command.output().unwrap()).fails(1, &["s3://nowhere", "NoSuchBucket"]);
}
