//! The service on a graphics card: Vulkan, for which Mesa's llvmpipe is enough. Skipped without a Vulkan driver.

use std::sync::OnceLock;

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
fn answers_on_a_card_are_the_same_alone_batched_preempted_and_with_a_prefix_hit() {
    let Some(server) = server() else { return };
    penalties_and_biases_answer_as_alone(server, 8);
    mixed_personas_answer_as_alone(server, 12);
    assert!(metric(server, "lory_preemptions_total") > 0.0);
    assert!(metric(server, "lory_prefix_cache_hit_tokens_total") > 0.0);
}
