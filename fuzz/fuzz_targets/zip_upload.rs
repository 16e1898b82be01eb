//! A zip archive that a client uploads as an adapter. It is stored or refused; the server does not fail.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use registry::Personas;
use service::{Service, Settings};
use testkit::home::TestHome;
use testkit::server::TestServer;

struct Running {
    server: TestServer,
    _home: TestHome,
}

static RUNNING: LazyLock<Running> = LazyLock::new(|| {
    let home = TestHome::new("tiny.gguf", 256);
    std::fs::create_dir_all(home.personas()).unwrap();
    let personas = Personas::open(&home.personas()).unwrap();
    let service = Service::open(&home.base(), personas, &Settings::default()).unwrap();
    Running {
        server: TestServer::start(Arc::new(service)),
        _home: home,
    }
});

fuzz_target!(|data: &[u8]| {
    let reply = RUNNING.server.post_bytes("/v1/adapters", data);
    assert!(reply.status < 500, "{} {}", reply.status, reply.text);
});
