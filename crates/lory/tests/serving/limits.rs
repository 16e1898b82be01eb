//! Limits on time, size and number of connections, and responses while the server drains.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use server::{MAX_HEADERS, MAX_URI, ServerSettings};
use service::Settings;
use testkit::http::{JSON, events_of};
use testkit::server::TestServer;

use crate::setup::{self, shared_server};

fn serve(settings: ServerSettings) -> TestServer {
    TestServer::start_with(setup::service(&Settings::default()), settings)
}

fn error_of(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("application/json"), "{head}");
    let value: Value = serde_json::from_str(body).unwrap();
    value["error"].clone()
}

#[test]
fn slow_request_gets_408_and_is_closed() {
    let server = serve(ServerSettings {
        header_timeout: Duration::from_millis(200),
        body_timeout: Duration::from_millis(200),
        ..ServerSettings::default()
    });
    let answer = server.send_raw(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let error = error_of(&answer);
    assert_eq!(error["code"], "headers_too_slow");
    assert!(
        error["message"].as_str().unwrap().contains("200ms"),
        "{error}"
    );

    let begun =
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"prompt\"";
    let answer = server.send_raw(begun);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(error_of(&answer)["code"], "body_too_slow");
    // Waiting for a long answer is not a timeout.
    let body = json!({"prompt": "Go on.", "user_type": "warm", "max_new_tokens": 300});
    assert_eq!(server.post("/generate", &body).status, 200);
    // A connection that sends nothing is closed without a response.
    assert_eq!(server.send_raw(b""), "");
}

#[test]
fn too_large_headers_are_rejected_with_the_limit() {
    let server = shared_server();
    let long = "x".repeat(MAX_HEADERS);
    let reply = server
        .send("GET", "/health", &[("X-Long", &long)], b"")
        .read_all();
    assert_eq!(
        (reply.error().0, reply.error().1.as_str()),
        (431, "headers_too_large")
    );
    assert!(reply.error().3.contains(&MAX_HEADERS.to_string()));
}

#[test]
fn too_long_uri_is_rejected_with_the_limit() {
    let path = format!("/v1/files?after={}", "x".repeat(MAX_URI));
    let (status, code, _, message) = shared_server().get(&path).error();
    assert_eq!((status, &*code), (414, "uri_too_long"));
    assert!(message.contains(&MAX_URI.to_string()), "{message}");
}

/// The HTTP library refuses these itself, with the status only.
#[test]
fn head_that_cannot_be_read_gets_the_status_and_the_connection_ends() {
    let server = shared_server();
    let many: String = (0..101).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (path, headers, statuses) in [
        ("/".to_owned(), many, &["431"][..]),
        (
            "/".to_owned(),
            format!("X-Long: {}\r\n", "x".repeat(1 << 20)),
            &["431"],
        ),
        (
            format!("/{}", "x".repeat(1 << 20)),
            String::new(),
            &["431", "414"],
        ),
    ] {
        let mut stream = server.connect();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        // It ends without a reset, so the client gets the status.
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap();
        assert!(statuses.contains(&status), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[test]
fn connection_over_the_limit_gets_health_only() {
    let server = serve(ServerSettings {
        max_connections: 1,
        ..ServerSettings::default()
    });
    // A client with a request in progress.
    let mut held = TcpStream::connect(server.address).unwrap();
    let begun = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    held.write_all(begun).unwrap();
    // The server asks for the body once the request is in progress.
    let mut asked = [0; 25];
    held.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    let models = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = until_status(&server, models, "503");
    assert!(answer.contains("retry-after: "), "{answer}");
    let error = error_of(&answer);
    assert_eq!(error["code"], "too_many_connections");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("--max-connections"), "{message}");
    // A probe learns that the server is alive.
    assert_eq!(server.get("/health").status, 200);
    drop(held);
    until_status(&server, models, "200");
}

/// Sends a request until the response has this status.
fn until_status(server: &TestServer, request: &[u8], status: &str) -> String {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    let request = [&request[..request.len() - 2], b"Connection: close\r\n\r\n"].concat();
    loop {
        let answer = server.send_raw(&request);
        if answer.starts_with(&format!("HTTP/1.1 {status} ")) {
            return answer;
        }
        assert!(std::time::Instant::now() < end, "{answer}");
    }
}

#[test]
fn idle_connections_make_room_for_new_ones() {
    let server = serve(ServerSettings {
        max_connections: 8,
        ..ServerSettings::default()
    });
    let idle: Vec<TcpStream> = (0..64)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    for _ in 0..20 {
        assert_eq!(server.get("/health").status, 200);
        server.generate(json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 1}));
    }
    drop(idle);
}

#[test]
fn request_id_is_returned() {
    let server = shared_server();
    let id = |given: &str| {
        let reply = server
            .send("GET", "/health", &[("X-Request-Id", given)], b"")
            .read_all();
        reply.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("order-7"), "order-7");
    assert!(id("has spaces").starts_with("req-"));
    assert!(server.get("/nowhere").header("x-request-id").is_some());
    assert!(
        server
            .post("/generate", &json!({}))
            .header("x-request-id")
            .is_some()
    );
}

#[test]
fn draining_server_rejects_new_requests_and_finishes_running_ones() {
    let mut server = serve(ServerSettings::default());
    let body =
        json!({"prompt": "Go on.", "user_type": "warm", "max_new_tokens": 400, "stream": true});
    let mut open = server.send("POST", "/generate", JSON, body.to_string().as_bytes());
    open.wait_for_body();
    server.stop();
    // The server notices the stop after a moment.
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while server.get("/ready").status == 200 {
        assert!(std::time::Instant::now() < end);
    }
    let ready = server.get("/ready");
    assert_eq!(
        (ready.error().0, ready.error().1.as_str()),
        (503, "shutting_down")
    );
    let hello = json!({"prompt": "Hello!", "user_type": "warm"});
    let refused = server.post("/generate", &hello);
    assert_eq!(
        (refused.error().0, refused.error().1.as_str()),
        (503, "shutting_down")
    );
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(server.get("/health").status, 200);
    let events = events_of(&open.read_all().text);
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 400);
    server.join();
}

#[test]
fn request_over_the_drain_timeout_is_closed() {
    let mut server = serve(ServerSettings {
        drain_timeout: Duration::from_millis(50),
        ..ServerSettings::default()
    });
    // A client that never sends its body keeps its request running.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let begun = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(begun).unwrap();
    // The server asks for the body once the request runs.
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{").unwrap();
    server.stop();
    server.join();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn responses_are_counted_by_route_and_status() {
    let server = serve(ServerSettings::default());
    server.get("/nowhere");
    server.get("/nowhere/else?key=value");
    server.post("/generate", &json!({}));
    let text = server.get("/metrics").text;
    for line in [
        "lory_http_responses_total{route=\"none\",status=\"404\"} 2",
        "lory_http_responses_total{route=\"/generate\",status=\"400\"} 1",
        "lory_http_connections_refused_total 0",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
