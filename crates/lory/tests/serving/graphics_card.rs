//! The service on a graphics card: Vulkan, for which Mesa's llvmpipe is enough. Skipped without a Vulkan driver.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::json;
use service::Settings;
use testkit::server::TestServer;

use crate::batch_invariance::{
    mixed_personas_answer_as_alone, penalties_and_biases_answer_as_alone,
};
use crate::setup;

/// A server whose KV cache is so small that requests preempt each other; none without a Vulkan driver.
fn server() -> Option<&'static TestServer> {
    static SERVER: OnceLock<Option<TestServer>> = OnceLock::new();
    let start = || {
        let settings = Settings {
            device: testkit::gpu::vulkan()?,
            // 40 blocks of 16 tokens.
            kv_memory: 160 << 10,
            ..Settings::default()
        };
        Some(TestServer::start(setup::service(&settings)))
    };
    SERVER.get_or_init(start).as_ref()
}

fn metric(server: &TestServer, name: &str) -> f64 {
    let text = server.get("/metrics").text;
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.unwrap_or_else(|| panic!("{name} in {text}"));
    value.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn requests_after_a_card_failed_get_503_with_the_reason() {
    let Some(device) = testkit::gpu::vulkan() else {
        return;
    };
    let service = setup::service(&Settings {
        device,
        ..Settings::default()
    });
    let server = TestServer::start(Arc::clone(&service));
    let long = json!({"model": "warm", "prompt": "Hi", "max_tokens": 400, "ignore_eos": true});
    assert_eq!(server.get("/ready").status, 200);
    // One request runs when the card fails, and one comes later.
    let running = thread::scope(|scope| {
        let running = scope.spawn(|| server.post("/v1/completions", &long));
        while metric(&server, "lory_requests_running") == 0.0 {
            thread::sleep(Duration::from_millis(1));
        }
        service.base().model.device().lose();
        running.join().unwrap()
    });
    let later = server.post("/v1/completions", &long);
    for reply in [running, later, server.get("/ready")] {
        let (status, code, _, message) = reply.error();
        assert_eq!((status, code.as_str()), (503, "device_failed"), "{message}");
        assert!(message.contains("vulkan:0"), "{message}");
        assert!(message.contains("--device cpu"), "{message}");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn answers_on_a_card_are_the_same_alone_batched_preempted_and_with_a_prefix_hit() {
    let Some(server) = server() else { return };
    penalties_and_biases_answer_as_alone(server, 8);
    mixed_personas_answer_as_alone(server, 12);
    assert!(metric(server, "lory_preemptions_total") > 0.0);
    assert!(metric(server, "lory_prefix_cache_hit_tokens_total") > 0.0);
}
