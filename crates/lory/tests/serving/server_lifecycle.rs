//! The server's lifecycle: loading, serving, stopping.

use serde_json::json;
use server::AppState;
use service::Settings;
use testkit::http::events_of;
use testkit::server::TestServer;

use crate::setup;

#[test]
fn health_is_ok_before_the_base_is_loaded() {
    let state = AppState::loading();
    let server = TestServer::start(state.clone());
    let hello = json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 1});
    assert_eq!(server.get("/health").status, 200);
    for reply in [
        server.get("/ready"),
        server.get("/v1/models"),
        server.post("/generate", &hello),
    ] {
        assert_eq!(
            (reply.error().0, reply.error().1.as_str()),
            (503, "loading")
        );
        assert!(reply.header("retry-after").is_some());
    }
    state.set_service(setup::service(&Settings::default()));
    let ready = server.get("/ready");
    assert_eq!((ready.status, &ready.json()["base"]), (200, &json!("tiny")));
    server.generate(hello);
}

#[test]
fn stream_ends_before_a_graceful_shutdown_does() {
    let mut server = TestServer::start(setup::service(&Settings::default()));
    let body =
        json!({"prompt": "Go on.", "user_type": "warm", "max_new_tokens": 300, "stream": true});
    let headers = [("Content-Type", "application/json")];
    let mut open = server.send("POST", "/generate", &headers, body.to_string().as_bytes());
    open.wait_for_body();
    server.stop();
    let events = events_of(&open.read_all().text);
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 300);
    server.join();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}
