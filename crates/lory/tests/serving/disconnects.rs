//! Disconnects, full queues and timeouts.

use std::time::{Duration, Instant};

use engine::EngineConfig;
use serde_json::json;
use service::{Service, Settings};
use testkit::http::{JSON, ResponseStream, events_of};
use testkit::server::TestServer;

use crate::setup;

/// A stream of 400 tokens whose first bytes have arrived.
fn long_stream(server: &TestServer) -> ResponseStream {
    let body =
        json!({"prompt": "Go on.", "user_type": "warm", "max_new_tokens": 400, "stream": true});
    let mut open = server.send("POST", "/generate", JSON, body.to_string().as_bytes());
    open.wait_for_body();
    open
}

#[test]
fn disconnect_cancels_all_n_choices() {
    let service = setup::service(&Settings {
        engine: EngineConfig {
            max_batch: 2,
            ..EngineConfig::default()
        },
        ..Settings::default()
    });
    let server = TestServer::start(service.clone());
    let body = json!({
        "model": "warm", "prompt": [9, 4, 7], "max_tokens": 400, "ignore_eos": true, "n": 8,
        "temperature": 1, "stream": true,
    });
    for _ in 0..3 {
        let body = body.to_string();
        let mut open = server.send("POST", "/v1/completions", JSON, body.as_bytes());
        open.wait_for_body();
        drop(open);
        idle(&service);
    }
    let stats = service.engine().stats();
    assert_eq!(stats.in_flight, 0);
    assert!(stats.finished_cancelled >= 3, "{stats:?}");
    assert!(stats.sampled_tokens < 24 * 400, "{stats:?}");
}

#[test]
fn error_during_a_stream_is_its_last_event() {
    let service = setup::service(&Settings::default());
    let server = TestServer::start(service.clone());
    let body = json!({
        "model": "warm", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 400,
        "ignore_eos": true, "n": 2, "stream": true,
    });
    let body = body.to_string();
    let mut open = server.send("POST", "/v1/chat/completions", JSON, body.as_bytes());
    open.wait_for_body();
    service.engine().shutdown();
    let events = events_of(&open.read_all().text);
    let (last, before) = events.split_last().unwrap();
    assert!(
        before
            .iter()
            .all(|event| event.contains("chat.completion.chunk"))
    );
    let error: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["code"], "shutting_down");
    assert_eq!(error["error"]["type"], "server_error");
}

fn idle(service: &Service) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = service.engine().stats();
        if stats.running == 0 && stats.waiting == 0 {
            assert_eq!(stats.free_blocks, stats.blocks);
            return;
        }
        assert!(Instant::now() < end, "{stats:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn disconnect_during_a_stream_frees_its_blocks() {
    let service = setup::service(&Settings::default());
    let server = TestServer::start(service.clone());
    let streams: Vec<ResponseStream> = (0..8).map(|_| long_stream(&server)).collect();
    drop(streams);
    idle(&service);
    let stats = service.engine().stats();
    assert!(stats.finished_cancelled > 0, "{stats:?}");
    assert!(stats.sampled_tokens < 8 * 400, "{stats:?}");
    let adapters = service.engine().adapters();
    assert!(adapters.iter().all(|adapter| adapter.leases == 0));
    server.generate(json!({"prompt": "Hello!", "user_type": "warm"}));
}

#[test]
fn disconnect_before_the_response_frees_its_blocks() {
    let service = setup::service(&Settings::default());
    let server = TestServer::start(service.clone());
    let body = json!({"prompt": "Go on.", "user_type": "warm", "max_new_tokens": 400}).to_string();
    let sockets: Vec<std::net::TcpStream> = (0..8)
        .map(|_| server.write("POST", "/generate", JSON, body.as_bytes()))
        .collect();
    let end = Instant::now() + Duration::from_secs(20);
    while service.engine().stats().sampled_tokens == 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(sockets);
    idle(&service);
    let stats = service.engine().stats();
    assert!(stats.finished_cancelled > 0, "{stats:?}");
}

#[test]
fn full_queue_is_rejected_with_retry_after() {
    let service = setup::service(&Settings {
        engine: EngineConfig {
            max_batch: 1,
            max_queue: 1,
            ..EngineConfig::default()
        },
        ..Settings::default()
    });
    let server = TestServer::start(service.clone());
    let first = long_stream(&server);
    let hello = json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 400});
    let replies: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| server.post("/generate", &hello)))
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    drop(first);
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!(!refused.is_empty());
    for reply in refused {
        let (status, code, _, message) = reply.error();
        assert_eq!((status, code.as_str()), (429, "queue_full"), "{message}");
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    }
    idle(&service);
    server.generate(json!({"prompt": "Hello!", "user_type": "warm"}));
}

#[test]
fn timed_out_request_returns_the_tokens_it_has() {
    let service = setup::service(&Settings {
        engine: EngineConfig {
            max_batch: 1,
            ..EngineConfig::default()
        },
        ..Settings::default()
    });
    let server = TestServer::start(service.clone());
    let first = long_stream(&server);
    let mut hello = json!({"prompt": "Hello!", "user_type": "warm", "timeout_ms": 1});
    let reply = server.post("/generate", &hello);
    let (status, code, param, message) = reply.error();
    assert_eq!((status, code.as_str()), (504, "timeout"), "{message}");
    assert_eq!(param, "timeout_ms");
    hello["stream"] = json!(true);
    let events = server.events("/generate", &hello);
    assert_eq!(events.len(), 1);
    assert!(events[0].contains("\"timeout\""), "{}", events[0]);
    drop(first);
    idle(&service);
    assert_eq!(service.engine().stats().finished_deadline, 2);

    // On a machine of any speed, some timeout is long enough for one token and too short for all.
    let mut long =
        json!({"model": "warm", "prompt": [9, 4, 7], "max_tokens": 400, "ignore_eos": true});
    let cut = (1..2000).map(|ms| {
        long["timeout_ms"] = json!(ms);
        server.post("/v1/completions", &long)
    });
    let cut = cut.into_iter().find(|reply| reply.status == 200).unwrap();
    let answer = cut.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "timeout");
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..400).contains(&tokens), "{answer}");
}
