//! What one client can do to the others: host names of other web pages, bodies that take memory, work without an end.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;
use server::{MAX_BODY, ServerSettings};
use service::Settings;
use testkit::http::JSON;
use testkit::server::TestServer;

use crate::setup::{self, shared_server};

fn serve(settings: ServerSettings) -> TestServer {
    TestServer::start_with(setup::service(&Settings::default()), settings)
}

#[test]
fn foreign_host_is_refused_on_every_route_and_the_message_names_the_flag() {
    let server = shared_server();
    let hello = json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 1}).to_string();
    // A page whose name points to this machine sends its own name, in both headers.
    let headers = [
        ("Host", "evil.example:8000"),
        ("Origin", "http://evil.example:8000"),
        ("Content-Type", "application/json"),
    ];
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/ready"),
        ("GET", "/v1/models"),
        ("POST", "/generate"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/votes"),
        ("DELETE", "/v1/personas/warm"),
        ("GET", "/nowhere"),
    ] {
        let reply = server.send(method, path, &headers, hello.as_bytes());
        let (status, code, _, message) = reply.read_all().error();
        assert_eq!((status, &*code), (421, "host_not_allowed"), "{path}");
        assert!(message.contains("--allowed-host"), "{message}");
    }
    for host in ["localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.7.7"] {
        let headers = [("Host", host), ("Content-Type", "application/json")];
        let reply = server.send("POST", "/generate", &headers, hello.as_bytes());
        assert_eq!(reply.read_all().status, 200, "{host}");
    }
}

#[test]
fn every_host_that_a_request_names_counts() {
    let server = shared_server();
    let ask = |lines: &str| {
        let answer = server.send_raw(format!("{lines}\r\nConnection: close\r\n\r\n").as_bytes());
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        (status, answer)
    };
    let evil = "GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost";
    let (status, answer) = ask(evil);
    assert!(
        status == "421" && answer.contains("host_not_allowed"),
        "{answer}"
    );
    let (status, answer) = ask("GET http://localhost/v1/models HTTP/1.1\r\nHost: evil.example");
    assert!(
        status == "421" && answer.contains("evil.example"),
        "{answer}"
    );
    let (status, answer) = ask("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example");
    assert!(
        status == "400" && answer.contains("invalid_host"),
        "{answer}"
    );
    let (status, answer) = ask("GET http://localhost/v1/models HTTP/1.1\r\nHost: localhost");
    assert_eq!(status, "200", "{answer}");
}

#[test]
fn client_that_still_sends_gets_the_error() {
    let server = shared_server();
    // Refused before its body: the server is done with it while the client sends.
    let head = format!(
        "POST /generate HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\n\
         Content-Length: {MAX_BODY}\r\n\r\n"
    );
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                let mut stream = server.connect();
                stream.write_all(head.as_bytes()).unwrap();
                for _ in 0..16 {
                    stream.write_all(&vec![b' '; MAX_BODY / 16]).unwrap();
                    std::thread::sleep(Duration::from_millis(5));
                }
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
            });
        }
    });
}

#[test]
fn allowed_host_is_served() {
    let server = serve(ServerSettings {
        allowed_hosts: vec!["lory.example".parse().unwrap()],
        ..ServerSettings::default()
    });
    let status = |host: &str| {
        let reply = server.send("GET", "/v1/models", &[("Host", host)], b"");
        reply.read_all().status
    };
    assert_eq!(status("lory.example"), 200);
    assert_eq!(status("other.example"), 421);
}

#[test]
fn path_that_is_not_utf8_gets_the_shape_of_all_errors() {
    let server = shared_server();
    for path in [
        "/v1/personas/%ff",
        "/v1/files/%ff",
        "/v1/evaluations/%ff",
        "/v1/fine_tuning/jobs/%ff",
        "/studio/%ff",
    ] {
        let (status, code, _, message) = server.get(path).error();
        assert_eq!((status, &*code), (400, "invalid_path"), "{path}: {message}");
    }
    let long = format!("/v1/personas/{}", "x".repeat(3000));
    let (status, code, _, message) = server.get(&long).error();
    assert_eq!((status, &*code), (400, "invalid_path"), "{message}");
    assert!(message.len() < 300, "{message}");
    // An unknown path is not repeated as a whole.
    let long = format!("/{}", "x".repeat(3000));
    assert!(server.get(&long).error().3.len() < 300);
}

#[test]
fn compressed_body_is_refused_by_name() {
    let headers = [
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
    ];
    let reply = shared_server().send("POST", "/generate", &headers, b"\x1f\x8b\x08");
    let (status, code, _, message) = reply.read_all().error();
    assert_eq!((status, &*code), (415, "unsupported_content_encoding"));
    assert!(message.contains("gzip"), "{message}");
}

#[test]
fn prompt_that_cannot_fit_is_refused_before_it_is_tokenized() {
    let server = shared_server();
    let digits = "7".repeat(4_000_000);
    for (path, body) in [
        ("/generate", json!({"prompt": digits, "user_type": "warm"})),
        (
            "/v1/completions",
            json!({"model": "warm", "prompt": ["a", digits]}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "warm", "messages": [{"role": "user", "content": digits}]}),
        ),
    ] {
        let (status, code, _, message) = server.post(path, &body).error();
        assert_eq!(
            (status, &*code),
            (400, "context_length_exceeded"),
            "{message}"
        );
        // The number of tokens is not known.
        assert!(message.contains(" bytes"), "{path}: {message}");
    }
    // Many empty messages have few bytes.
    let turns = vec![json!({"role": "assistant", "content": ""}); 2000];
    let body = json!({"model": "warm", "messages": turns});
    let (status, code, _, message) = server.post("/v1/chat/completions", &body).error();
    assert_eq!(
        (status, &*code),
        (400, "context_length_exceeded"),
        "{message}"
    );
}

#[test]
fn long_model_name_is_refused_and_not_repeated() {
    let server = shared_server();
    let padded = format!("warm{}", " ".repeat(1_900_000));
    let scaled = format!("warm*1.{}", "0".repeat(1_900_000));
    for model in [padded, scaled] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1});
        let (status, _, param, message) = server.post("/v1/chat/completions", &body).error();
        assert_eq!((status, param.as_str()), (400, Some("model")), "{message}");
        assert!(message.len() < 200, "{}", message.len());
        let vote = json!({"a": model, "b": "base", "winner": "a"});
        let (status, _, _, message) = server.post("/v1/votes", &vote).error();
        assert!(status == 400 && message.len() < 200, "{status} {message}");
    }
}

#[test]
fn errors_that_quote_the_request_are_short() {
    let server = shared_server();
    let long = "ü".repeat(900_000);
    for path in ["/v1/chat/completions", "/v1/completions", "/generate"] {
        let (status, code, param, message) = server.post(path, &json!({&long: 1})).error();
        assert_eq!((status, code.as_str()), (400, "unknown_field"), "{path}");
        assert!(message.len() < 9 << 10 && param.as_str().unwrap().len() < 300);
    }
    let vote = json!({"a": "warm", "b": "base", "winner": long});
    let (status, _, _, message) = server.post("/v1/votes", &vote).error();
    assert!(status == 400 && message.len() < 9 << 10, "{status}");
}

#[test]
fn body_of_too_many_small_values_is_refused() {
    let lists = "[],".repeat(MAX_BODY / 3 - 100);
    let body = format!("{{\"model\": \"warm\", \"prompt\": \"Hi\", \"user\": [{lists}[]]}}");
    let reply = shared_server().post_bytes("/v1/completions", body.as_bytes());
    let (status, code, _, message) = reply.error();
    assert_eq!((status, &*code), (413, "request_too_large"), "{message}");
    assert!(message.contains("JSON values"), "{message}");
}

#[test]
fn body_that_never_fits_into_the_memory_for_bodies_is_refused_for_good() {
    let server = serve(ServerSettings {
        body_memory: MAX_BODY,
        ..ServerSettings::default()
    });
    let body = |values: usize| {
        let labels = "0,".repeat(values);
        let mut body = format!(
            "{{\"model\": \"warm\", \"prompt\": \"Hi\", \"max_tokens\": 1, \"user\": [{labels}0]}}"
        );
        body.extend(std::iter::repeat_n(' ', MAX_BODY - body.len()));
        server.post_bytes("/v1/completions", body.as_bytes())
    };
    // The largest body with few values fits.
    let largest = body(1_000);
    assert_eq!(largest.status, 200, "{}", largest.text);
    let (status, code, _, message) = body(20_000).error();
    assert_eq!((status, &*code), (413, "request_too_large"), "{message}");
    assert!(
        message.contains("may have 5242880 together (from --body-memory)"),
        "{message}"
    );
}

#[test]
fn bodies_in_flight_are_bounded_together() {
    let server = serve(ServerSettings {
        body_memory: MAX_BODY,
        ..ServerSettings::default()
    });
    // A client that has sent most of a large body.
    let slow_client = || {
        let mut slow = server.connect();
        let head = format!(
            "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY}\r\n\r\n"
        );
        slow.write_all(head.as_bytes()).unwrap();
        let _ = slow.write_all(&vec![b' '; 3 << 20]);
        slow
    };
    let large = format!(
        "{{\"prompt\": \"Hi\", \"user_type\": \"warm\", \"max_new_tokens\": 1}}{}",
        " ".repeat(2 << 20)
    );
    let end = Instant::now() + Duration::from_secs(60);
    let mut pause = Duration::from_millis(50);
    // Until the server has read those bytes, it may take the other request and refuse them.
    let (slow, refused) = loop {
        let slow = slow_client();
        std::thread::sleep(pause);
        let reply = server.post_bytes("/generate", large.as_bytes());
        if reply.status != 200 {
            break (slow, reply);
        }
        assert!(Instant::now() < end, "the bodies were never refused");
        pause *= 2;
    };
    let (_, code, _, message) = refused.error();
    assert_eq!(code, "request_bytes_exceeded", "{message}");
    // A small request still fits.
    let small = json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 1});
    server.generate(small);
    // The bytes are free again when the client is gone.
    drop(slow);
    let end = Instant::now() + Duration::from_secs(20);
    while server.post_bytes("/generate", large.as_bytes()).status != 200 {
        assert!(Instant::now() < end);
    }
}

#[test]
fn prompts_of_clients_that_disconnected_delay_nobody() {
    let server = shared_server();
    let hard = json!({
        "model": "warm", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {
            "type": "object", "properties": {"n": {"type": "string", "pattern": "^(a|b)*a(a|b){12}$"}},
        }}},
    });
    for number in 0..200 {
        let mut hard = hard.clone();
        // Each schema is another one.
        hard["response_format"]["json_schema"]["schema"]["title"] = json!(number.to_string());
        drop(server.write(
            "POST",
            "/v1/chat/completions",
            JSON,
            hard.to_string().as_bytes(),
        ));
    }
    server.generate(json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 1}));
    let mut text = String::new();
    let mut health = server.write("GET", "/health", &[], b"");
    health.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}
