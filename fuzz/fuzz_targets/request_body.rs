//! The body of a request: the first byte chooses the route. The server answers or refuses it; no body makes it fail.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use registry::Personas;
use service::{Service, Settings};
use testkit::home::TestHome;
use testkit::server::TestServer;

const ROUTES: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/generate",
    "/v1/load_lora_adapter",
    "/v1/personas/warm/canary",
    "/v1/fine_tuning/plan",
    "/v1/evaluations",
    "/v1/votes",
];

struct Running {
    server: TestServer,
    _home: TestHome,
}

static RUNNING: LazyLock<Running> = LazyLock::new(|| {
    let home = TestHome::new("tiny.gguf", 128);
    std::fs::create_dir_all(home.personas()).unwrap();
    let personas = Personas::open(&home.personas()).unwrap();
    let service = Service::open(&home.base(), personas, &Settings::default()).unwrap();
    Running {
        server: TestServer::start(Arc::new(service)),
        _home: home,
    }
});

fuzz_target!(|data: &[u8]| {
    let Some((route, body)) = data.split_first() else {
        return;
    };
    let route = ROUTES[usize::from(*route) % ROUTES.len()];
    let reply = RUNNING.server.post_bytes(route, body);
    assert!(reply.status != 500, "{route}: {} {}", reply.status, reply.text);
});
