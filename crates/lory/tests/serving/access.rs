//! API keys over HTTP: authentication, allowed personas, rate limits, CORS.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use auth::Keys;
use auth::secret::SecretHash;
use serde_json::{Value, json};
use server::ServerSettings;
use service::Settings;
use tempfile::TempDir;
use testkit::home::BASE;
use testkit::http::Response;
use testkit::server::TestServer;

use crate::setup::{self, shared_server};

/// A server with these keys; the secret of each is `secret-` and its name.
struct ServerWithKeys {
    server: TestServer,
    file: PathBuf,
    _folder: TempDir,
}

fn table(name: &str, more: &str) -> String {
    let sha256 = SecretHash::of(&format!("secret-{name}"));
    format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\n{more}\n")
}

impl ServerWithKeys {
    fn new(keys: &[(&str, &str)], settings: ServerSettings) -> ServerWithKeys {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        let text: String = keys.iter().map(|(name, more)| table(name, more)).collect();
        std::fs::write(&file, text).unwrap();
        let keys = Keys::open(Some(&file), None).unwrap().map(Arc::new);
        let settings = ServerSettings { keys, ..settings };
        ServerWithKeys {
            server: TestServer::start_with(setup::service(&Settings::default()), settings),
            file,
            _folder: folder,
        }
    }

    fn send(&self, key: &str, method: &str, path: &str, body: &Value) -> Response {
        let bearer = format!("Bearer secret-{key}");
        let headers = [
            ("Content-Type", "application/json"),
            ("Authorization", &*bearer),
        ];
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.server
            .send(method, path, &headers, body.as_bytes())
            .read_all()
    }

    fn ask(&self, key: &str, who: &str, max_new_tokens: usize) -> Response {
        let body = json!({"prompt": "Hi", "user_type": who, "max_new_tokens": max_new_tokens});
        self.send(key, "POST", "/generate", &body)
    }
}

#[track_caller]
fn refused(reply: &Response, status: u16, code: &str, expected: &str) {
    let (found, found_code, _, message) = reply.error();
    assert_eq!((found, found_code.as_str()), (status, code), "{message}");
    assert!(message.contains(expected), "{message}");
    assert!(!message.contains("secret-"), "{message}");
}

#[test]
fn without_a_key_only_open_routes_answer() {
    let guarded = ServerWithKeys::new(&[("a", "")], ServerSettings::default());
    let server = &guarded.server;
    assert_eq!(server.get("/health").status, 200);
    let ready = server.get("/ready");
    // Persona names are not shown without a key.
    assert_eq!((ready.status, ready.json().get("personas")), (200, None));
    let hello = json!({"prompt": "Hi", "user_type": "warm"});
    for reply in [
        server.get("/v1/models"),
        server.get("/metrics"),
        server.get("/v1/lora_adapters"),
        server.post("/generate", &hello),
        server.post("/v1/chat/completions", &json!({"no": "JSON of ours"})),
        server.post("/v1/completions", &hello),
    ] {
        refused(&reply, 401, "missing_api_key", "Authorization: Bearer");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        assert_eq!(reply.json()["error"]["type"], "authentication_error");
    }
    for wrong in ["b", "a ", "", "A"] {
        let reply = guarded.ask(wrong, "warm", 1);
        let code = if wrong == "a " { "" } else { "invalid_api_key" };
        match code {
            // Trailing spaces are part of the header syntax, not of the key.
            "" => assert_eq!(reply.status, 200),
            code => refused(&reply, 401, code, "not known here"),
        }
    }
    assert_eq!(guarded.ask("a", "warm", 1).status, 200);
}

#[test]
fn address_that_sends_many_unknown_keys_is_limited_and_valid_keys_are_served() {
    let guarded = ServerWithKeys::new(&[("a", "")], ServerSettings::default());
    for _ in 0..20 {
        let reply = guarded.ask("unknown", "warm", 1);
        refused(&reply, 401, "invalid_api_key", "not known here");
    }
    let limited = guarded.ask("unknown", "warm", 1);
    refused(&limited, 429, "too_many_rejected_keys", "your address");
    assert!(limited.header("retry-after").is_some());
    assert_eq!(guarded.ask("a", "warm", 1).status, 200);
}

#[test]
fn key_reaches_only_its_own_personas_and_sees_no_other_names() {
    let guarded = ServerWithKeys::new(
        &[
            ("one", "personas = ['warm']"),
            ("tenant", "personas = ['acme-*']\nbase = true"),
            ("all", "base = false"),
        ],
        ServerSettings::default(),
    );
    assert_eq!(guarded.ask("one", "warm", 1).status, 200);
    assert_eq!(guarded.ask("one", "warm@1*0.5", 1).status, 200);
    for who in [
        "formal",
        "warm*0.5+formal*0.5",
        "tiny",
        "base",
        "nobody",
        "formal@99",
    ] {
        let reply = guarded.ask("one", who, 1);
        refused(&reply, 403, "persona_not_allowed", "key one may not use");
        assert_eq!(reply.error().2, "user_type");
        assert_eq!(reply.json()["error"]["type"], "permission_error");
    }
    // An allowed persona that does not exist is not found, and the error lists no other names.
    let reply = guarded.ask("tenant", "acme-warm", 1);
    refused(
        &reply,
        404,
        "persona_not_found",
        "unknown persona `acme-warm`",
    );
    assert!(!reply.text.contains("formal"), "{}", reply.text);
    assert_eq!(guarded.ask("tenant", "tiny", 1).status, 200);
    assert_eq!(guarded.ask("all", "formal", 1).status, 200);
    refused(
        &guarded.ask("all", "base", 1),
        403,
        "persona_not_allowed",
        "every persona",
    );

    let models = |key: &str| -> Vec<String> {
        let list = guarded.send(key, "GET", "/v1/models", &Value::Null).json();
        let data = list["data"].as_array().unwrap().clone();
        data.iter()
            .map(|model| model["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(models("one"), ["warm"]);
    assert_eq!(models("tenant"), ["tiny"]);
    assert_eq!(models("all"), ["formal", "warm"]);

    let chat = json!({"model": "formal", "messages": [{"role": "user", "content": "Hi"}]});
    let reply = guarded.send("one", "POST", "/v1/chat/completions", &chat);
    refused(&reply, 403, "persona_not_allowed", "formal");
    let text = json!({"model": "tiny", "prompt": "Hi"});
    let reply = guarded.send("one", "POST", "/v1/completions", &text);
    refused(&reply, 403, "persona_not_allowed", "tiny");
}

#[test]
fn admin_routes_need_an_admin_key() {
    let keys = [("user", ""), ("ops", "admin = true")];
    let guarded = ServerWithKeys::new(&keys, ServerSettings::default());
    for path in ["/metrics", "/v1/lora_adapters"] {
        let reply = guarded.send("user", "GET", path, &Value::Null);
        refused(&reply, 403, "admin_only", "key user has no admin rights");
        assert_eq!(guarded.send("ops", "GET", path, &Value::Null).status, 200);
    }
    let first = json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 1, "priority": -1});
    let reply = guarded.send("user", "POST", "/generate", &first);
    refused(&reply, 403, "priority_not_allowed", "below 0");
    assert_eq!(guarded.send("ops", "POST", "/generate", &first).status, 200);

    let open = ServerSettings {
        open_metrics: true,
        ..ServerSettings::default()
    };
    let guarded = ServerWithKeys::new(&keys, open);
    assert_eq!(guarded.server.get("/metrics").status, 200);
    assert_eq!(guarded.server.get("/v1/lora_adapters").status, 401);
}

#[test]
fn key_over_its_rate_gets_retry_after() {
    let keys = [
        ("few", "requests_per_minute = 2"),
        ("short", "tokens_per_minute = 300"),
        ("free", ""),
    ];
    let guarded = ServerWithKeys::new(&keys, ServerSettings::default());
    assert_eq!(guarded.ask("few", "warm", 1).status, 200);
    assert_eq!(guarded.ask("few", "nobody", 1).status, 404);
    let reply = guarded.ask("few", "warm", 1);
    refused(
        &reply,
        429,
        "request_rate_exceeded",
        "key few may make 2 requests a minute",
    );
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&after), "{after}");
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");

    // Reserved tokens that an answer does not use are returned to the key's budget.
    let used = |reply: &Response| {
        let usage = &reply.json()["usage"];
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    };
    let first = guarded.ask("short", "warm", 60);
    assert_eq!(first.status, 200, "{}", first.text);
    let left = 300 - used(&first);
    let prompt = first.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    // The bucket refills at five tokens a second, so the test allows a slow machine ten seconds.
    let too_many = usize::try_from(left + 50 - prompt).unwrap();
    let reply = guarded.ask("short", "warm", too_many);
    refused(
        &reply,
        429,
        "token_rate_exceeded",
        "key short may use 300 tokens a minute",
    );
    assert!(reply.header("retry-after").is_some());
    for _ in 0..5 {
        assert_eq!(guarded.ask("free", "warm", 1).status, 200);
    }
}

#[test]
fn changed_keys_file_is_reloaded_while_serving() {
    let guarded = ServerWithKeys::new(&[("old", "")], ServerSettings::default());
    assert_eq!(guarded.ask("old", "warm", 1).status, 200);
    std::fs::write(&guarded.file, table("new", "")).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while guarded.ask("new", "warm", 1).status != 200 {
        assert!(
            std::time::Instant::now() < end,
            "the new key was never taken"
        );
        // Unknown keys are limited, but a key that has become valid is served at once.
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let old = guarded.ask("old", "warm", 1);
    assert!([401, 429].contains(&old.status), "{}", old.text);
}

#[test]
fn other_origins_are_rejected_unless_allowed() {
    let settings = ServerSettings {
        origins: vec!["https://shop.example".parse().unwrap()],
        ..ServerSettings::default()
    };
    let server = TestServer::start_with(setup::service(&Settings::default()), settings);
    let body = json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 1}).to_string();
    let ask = |origin: &str| {
        let headers = [("Content-Type", "application/json"), ("Origin", origin)];
        server
            .send("POST", "/generate", &headers, body.as_bytes())
            .read_all()
    };
    let named = ask("https://shop.example");
    assert_eq!(named.status, 200, "{}", named.text);
    let allowed = named.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://shop.example"));
    // The origin of this server's own pages.
    assert_eq!(ask(&format!("http://{}", server.address)).status, 200);
    let other = ask("https://evil.example");
    assert_eq!(
        (other.error().0, other.error().1.as_str()),
        (403, "origin_not_allowed")
    );
    assert_eq!(other.header("access-control-allow-origin"), None);
    let preflight = |server: &TestServer, origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            (
                "Access-Control-Request-Headers",
                "authorization,content-type",
            ),
        ];
        let reply = server
            .send("OPTIONS", "/generate", &headers, b"")
            .read_all();
        reply
            .header("access-control-allow-origin")
            .map(str::to_owned)
    };
    let allowed = preflight(&server, "https://shop.example");
    assert_eq!(allowed.as_deref(), Some("https://shop.example"));
    assert_eq!(preflight(&server, "https://evil.example"), None);
    assert_eq!(preflight(shared_server(), "https://shop.example"), None);
}

#[test]
fn preflight_allows_all_headers_and_the_origins_of_apps() {
    let origins = [
        "https://shop.example/",
        "app://obsidian.md",
        "tauri://localhost",
    ];
    let settings = ServerSettings {
        origins: origins.map(|origin| origin.parse().unwrap()).to_vec(),
        ..ServerSettings::default()
    };
    let server = TestServer::start_with(setup::service(&Settings::default()), settings);
    let requested = "authorization,content-type,user-agent,x-stainless-lang,x-anything";
    let preflight = |server: &TestServer, origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", requested),
            ("Access-Control-Request-Private-Network", "true"),
        ];
        let path = "/v1/chat/completions";
        server.send("OPTIONS", path, &headers, b"").read_all()
    };
    for origin in [
        "https://shop.example",
        "app://obsidian.md",
        "tauri://localhost",
    ] {
        let reply = preflight(&server, origin);
        let header = |name: &str| reply.header(&format!("access-control-allow-{name}"));
        assert_eq!(header("origin"), Some(origin));
        assert_eq!(header("headers"), Some(requested));
        assert_eq!(header("private-network"), Some("true"));
    }
    let settings = ServerSettings {
        origins: vec!["*".parse().unwrap()],
        ..ServerSettings::default()
    };
    let open = TestServer::start_with(setup::service(&Settings::default()), settings);
    let reply = preflight(&open, "chrome-extension://abcdefghijklmnop");
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    let headers = [("Origin", "https://other.example")];
    let models = open.send("GET", "/v1/models", &headers, b"").read_all();
    assert_eq!(models.status, 200);
}

#[test]
fn slow_bodies_of_one_key_do_not_take_all_connections() {
    let settings = ServerSettings {
        max_connections: 16,
        ..ServerSettings::default()
    };
    let guarded = ServerWithKeys::new(&[("slow", ""), ("other", "")], settings);
    let sends_slowly = || {
        let mut stream = std::net::TcpStream::connect(guarded.server.address).unwrap();
        let head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret-slow\r\n\
                    Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let mut slow: Vec<_> = (0..16).map(|_| sends_slowly()).collect();
    // All but two are refused.
    let began = std::time::Instant::now();
    while slow.len() > 2 {
        assert!(began.elapsed().as_secs() < 30, "{} wait", slow.len());
        slow.retain_mut(|stream| {
            let time = std::time::Duration::from_millis(20);
            stream.set_read_timeout(Some(time)).unwrap();
            let mut start = [0; 12];
            let refused = stream.read_exact(&mut start).is_ok();
            assert!(!refused || &start == b"HTTP/1.1 429");
            !refused
        });
    }
    for _ in 0..4 {
        let other = guarded.ask("other", "warm", 1);
        assert_eq!(other.status, 200, "{}", other.text);
    }
    let refused_one = guarded.ask("slow", "warm", 1);
    refused(
        &refused_one,
        429,
        "too_many_bodies",
        "2 requests of this key",
    );
    drop(slow);
}

#[test]
fn every_route_except_the_open_ones_needs_a_key() {
    let keys = [("user", ""), ("trainer", "train = true")];
    let guarded = ServerWithKeys::new(&keys, ServerSettings::default());
    let kept = guarded.send(
        "trainer",
        "GET",
        "/v1/evaluations/00000000001764000000",
        &json!({}),
    );
    refused(&kept, 403, "admin_only", "no admin rights");
    let document = guarded.server.get("/openapi.json").json();
    let mut open = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let filled = path.replace(['{', '}'], "");
        for method in item.as_object().unwrap().keys() {
            let reply = guarded
                .server
                .send(&method.to_uppercase(), &filled, &[], b"")
                .read_all();
            match reply.status {
                401 => {}
                _ => open.push(path.clone()),
            }
            // Routes that change personas are for admins.
            if [
                "/v1/personas",
                "/v1/registry",
                "/v1/persona_aliases",
                "/v1/adapters",
                "/v1/load",
                "/v1/unload",
            ]
            .iter()
            .any(|beginning| path.starts_with(beginning))
            {
                let reply = guarded.send("user", &method.to_uppercase(), &filled, &json!({}));
                refused(&reply, 403, "admin_only", "no admin rights");
            }
            // Running an evaluation needs the right to train; the list of all evaluations needs an admin key.
            if path.starts_with("/v1/evaluations") {
                let listed = path == "/v1/evaluations" && method == "get";
                let (code, why) = if listed {
                    ("admin_only", "no admin rights")
                } else {
                    ("training_not_allowed", "may not train")
                };
                let reply = guarded.send("user", &method.to_uppercase(), &filled, &json!({}));
                refused(&reply, 403, code, why);
            }
        }
    }
    open.sort();
    let known = [
        "/",
        "/docs",
        "/health",
        "/openapi.json",
        "/ready",
        "/studio/{file}",
    ];
    assert_eq!(open, known);
}

#[test]
fn adapter_paths_are_shown_to_admins_only() {
    let keys = [("admin", "admin = true"), ("a", "personas = ['warm']")];
    let guarded = ServerWithKeys::new(&keys, ServerSettings::default());
    let roots = |key: &str| {
        let models = guarded.send(key, "GET", "/v1/models", &Value::Null).json();
        let card = models["data"]
            .as_array()
            .unwrap()
            .iter()
            .find(|card| card["id"] == "warm");
        card.unwrap()["root"].as_str().unwrap().to_owned()
    };
    assert!(
        roots("admin").ends_with("warm/adapter"),
        "{}",
        roots("admin")
    );
    assert_eq!(roots("a"), BASE);
}
