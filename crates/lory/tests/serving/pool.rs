//! The adapter pool with more adapters than memory and with slow disks.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use engine::EngineConfig;
use formats::disk::slow_file::SlowFile;
use serde_json::{Value, json};
use server::ServerSettings;
use service::{GenerateRequest, Service, Settings};
use testkit::home::TestHome;
use testkit::http::JSON;
use testkit::server::TestServer;
use testkit::tiny::adapter;

use crate::setup;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A home with so many more personas, a service with memory for all of them, and the size of an adapter in memory in bytes.
fn home_with_adapters(adapters: u64) -> (TestHome, Service, u64) {
    let home = setup::home();
    for n in 0..adapters {
        let text = format!("system_prompt = \"You are number {n}.\"");
        home.persona(&format!("t{n:02}"), &text, Some(&adapter(100 + n)));
    }
    let roomy = setup::open(&home, &Settings::default()).unwrap();
    let adapters = roomy.engine().adapters();
    let each = adapters.iter().map(|info| info.bytes).max().unwrap();
    (home, roomy, each)
}

/// The answer of a service with memory for all adapters to [`ask`].
fn expected(roomy: &Service, who: &str) -> Value {
    let ask = GenerateRequest {
        max_new_tokens: Some(12),
        ..GenerateRequest::new(Some(who), "Hello!")
    };
    json!(roomy.generate(&ask).unwrap().text)
}

fn settings(adapter_memory: u64) -> Settings {
    Settings {
        engine: EngineConfig {
            adapter_memory,
            ..EngineConfig::default()
        },
        ..Settings::default()
    }
}

/// Sends a request from a new thread.
fn ask(server: &Arc<TestServer>, who: &str) -> Receiver<Value> {
    let (sender, answer) = channel();
    let server = Arc::clone(server);
    let body = json!({"prompt": "Hello!", "user_type": who, "max_new_tokens": 12});
    thread::spawn(move || sender.send(server.generate(body)));
    answer
}

fn wait_until(service: &Service, wish: impl Fn(&engine::AdapterStats) -> bool) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let stats = service.engine().stats().adapters;
        if wish(&stats) {
            return;
        }
        assert!(Instant::now() < end, "{stats:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn adapters_load_concurrently_and_do_not_block_other_requests() {
    let (home, roomy, each) = home_with_adapters(4);
    // `formal`, `t00` and `t01` are loaded at the start; then the files of `t02` and `t03` become slow.
    let service = Arc::new(setup::open(&home, &settings(3 * each)).unwrap());
    assert_eq!(service.engine().adapters().len(), 3);
    let [first, second] = ["t02", "t03"].map(|name| SlowFile::new(&home.weights(name)));
    let server = Arc::new(TestServer::start(service.clone()));
    let before = service.engine().stats().adapters;

    let slow = [ask(&server, "t02"), ask(&server, "t03")];
    // A second request for the same adapter does not read it again.
    let again = ask(&server, "t02");
    // Both are being read at the same time, and neither reader has received a byte.
    assert!(first.has_reader_within(TIMEOUT));
    assert!(second.has_reader_within(TIMEOUT));
    wait_until(&service, |stats| stats.misses == before.misses + 3);
    // Meanwhile requests for an adapter in memory and for the base are answered.
    for who in ["t01", "base"] {
        let answer = ask(&server, who).recv_timeout(TIMEOUT).unwrap();
        assert_eq!(answer["response"], expected(&roomy, who));
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/v1/lora_adapters").json()["pool"]["loading"], 2);
    for slow in slow.iter().chain([&again]) {
        assert!(
            slow.try_recv().is_err(),
            "answered before its adapter was read"
        );
    }
    drop(second);
    let answer = slow[1].recv_timeout(TIMEOUT).unwrap();
    assert_eq!(answer["response"], expected(&roomy, "t03"));
    drop(first);
    for slow in [&slow[0], &again] {
        let answer = slow.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(answer["response"], expected(&roomy, "t02"));
    }
    let stats = service.engine().stats().adapters;
    let loads = stats.loads.count_all() - before.loads.count_all();
    assert_eq!(loads, 2, "{stats:?}");
    assert!(stats.bytes <= stats.limit, "{stats:?}");
}

#[test]
fn failed_adapter_load_fails_only_its_own_requests() {
    let (home, roomy, each) = home_with_adapters(2);
    let service = Arc::new(setup::open(&home, &settings(2 * each)).unwrap());
    let weights = home.weights("t01");
    let bytes = std::fs::read(&weights).unwrap();
    let slow = SlowFile::new(&weights);
    let server = Arc::new(TestServer::start(service.clone()));
    let body = json!({"prompt": "Hello!", "user_type": "t01"});
    let broken = thread::scope(|scope| {
        let asked = scope.spawn(|| server.post("/generate", &body));
        assert!(slow.has_reader_within(TIMEOUT));
        std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
        drop(slow);
        asked.join().unwrap()
    });
    let (status, code, _, message) = broken.error();
    assert_eq!((status, code.as_str()), (500, "adapter_unusable"));
    // The file, without the folders above it; the log has them.
    assert!(
        message.contains(": adapter/adapter_model.safetensors: "),
        "{message}"
    );
    let stats = service.engine().stats().adapters;
    assert_eq!((stats.load_failures, stats.loading), (1, 0), "{stats:?}");
    // After the file is restored, the adapter loads.
    std::fs::write(&weights, bytes).unwrap();
    let answer = ask(&server, "t01").recv_timeout(TIMEOUT).unwrap();
    assert_eq!(answer["response"], expected(&roomy, "t01"));
}

#[test]
fn evictions_fail_no_request_and_change_no_answer() {
    let (home, roomy, each) = home_with_adapters(8);
    let service = Arc::new(setup::open(&home, &settings(2 * each)).unwrap());
    let server = Arc::new(TestServer::start(service.clone()));
    let mut voices: Vec<String> = (0..8).map(|n| format!("t{n:02}")).collect();
    voices.extend(["warm", "formal", "base", "t01+t05", "warm*0.5+t03"].map(str::to_owned));
    let expected: Vec<Value> = voices.iter().map(|who| expected(&roomy, who)).collect();
    let asked: Vec<_> = (0..104)
        .map(|i| (i * 7) % voices.len())
        .map(|who| (who, ask(&server, &voices[who])))
        .collect();
    for (who, answer) in asked {
        let answer = answer.recv_timeout(TIMEOUT).expect("an answer");
        assert_eq!(answer["response"], expected[who], "{}", voices[who]);
        let stats = service.engine().stats().adapters;
        assert!(stats.bytes <= stats.limit, "{stats:?}");
    }
    let stats = service.engine().stats().adapters;
    assert!(stats.evictions > 8 && stats.waits > 8, "{stats:?}");
    assert_eq!((stats.waiting, stats.loading), (0, 0));
    let adapters = service.engine().adapters();
    assert!(adapters.iter().all(|adapter| adapter.leases == 0));
}

#[test]
fn wait_for_adapter_memory_ends_on_timeout_or_disconnect() {
    let (home, _, each) = home_with_adapters(1);
    let service = Arc::new(setup::open(&home, &settings(each)).unwrap());
    let server = TestServer::start(service.clone());
    // A lease that keeps the memory in use until it is dropped.
    let held = service
        .engine()
        .lease_adapter(service.engine().adapters()[0].id)
        .unwrap();
    let mut body = json!({"prompt": "Hello!", "user_type": "t00", "timeout_ms": 30});
    let (status, code, param, _) = server.post("/generate", &body).error();
    assert_eq!((status, code.as_str()), (504, "timeout"));
    assert_eq!(param, "timeout_ms");
    body["timeout_ms"] = json!(60_000);
    let body = body.to_string();
    let socket = server.write("POST", "/generate", JSON, body.as_bytes());
    wait_until(&service, |stats| stats.waiting == 1);
    assert_eq!(service.engine().stats().in_flight, 1, "it has its place");
    drop(socket);
    wait_until(&service, |stats| stats.waiting == 0);
    drop(held);
    server.generate(json!({"prompt": "Hello!", "user_type": "t00"}));
    let end = Instant::now() + TIMEOUT;
    let counted = |metrics: &str| {
        ["timeout", "cancelled"].iter().all(|outcome| {
            let labels = format!("persona=\"t00\",outcome=\"{outcome}\"");
            metrics.contains(&format!("lory_requests_total{{{labels}}} 1"))
        })
    };
    loop {
        let metrics = server.get("/metrics").text;
        if counted(&metrics) {
            return;
        }
        assert!(Instant::now() < end, "{metrics}");
    }
}

#[test]
fn body_and_its_values_count_until_its_request_is_queued() {
    let (home, _, each) = home_with_adapters(2);
    let service = Arc::new(setup::open(&home, &settings(2 * each)).unwrap());
    let slow = SlowFile::new(&home.weights("t01"));
    // Every server has at least 5 MiB for bodies.
    let small = ServerSettings {
        body_memory: 0,
        ..ServerSettings::default()
    };
    let server = TestServer::start_with(service, small);
    // Its values count for 64 bytes each, 3 MiB in all.
    let labels = vec![0; 48 << 10];
    let ask = |who: &str| {
        let body = json!({"model": who, "prompt": "Hi", "max_tokens": 1, "user": labels});
        server.post("/v1/completions", &body)
    };
    thread::scope(|scope| {
        let waits = scope.spawn(|| ask("t01"));
        assert!(slow.has_reader_within(TIMEOUT));
        let refused = ask("formal");
        let (_, code, _, message) = refused.error();
        assert_eq!(code, "request_bytes_exceeded", "{message}");
        drop(slow);
        assert_eq!(waits.join().unwrap().status, 200);
    });
    assert_eq!(ask("formal").status, 200);
}
