//! What one API key can learn or take from another: cached prompts, the base, places in the queue, rate limits, the base's name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use auth::Keys;
use auth::secret::SecretHash;
use engine::EngineConfig;
use serde_json::{Value, json};
use server::ServerSettings;
use service::{Service, Settings};
use testkit::http::Response;
use testkit::server::TestServer;
use testkit::tiny::adapter;

use crate::registry_home::RegistryHome;
use crate::setup::{self, shared_server};

/// A server with these keys; the secret of each is `secret-` and its name.
struct TenantServer {
    server: TestServer,
    _folder: tempfile::TempDir,
}

impl TenantServer {
    fn new(keys: &[(&str, &str)], settings: &Settings) -> TenantServer {
        TenantServer::of(keys, setup::service(settings))
    }

    fn of(keys: &[(&str, &str)], service: Arc<Service>) -> TenantServer {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        let table = |(name, more): &(&str, &str)| {
            let sha256 = SecretHash::of(&format!("secret-{name}"));
            format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\n{more}\n")
        };
        let text: String = keys.iter().map(table).collect();
        std::fs::write(&file, text).unwrap();
        let keys = Keys::open(Some(&file), None).unwrap().map(Arc::new);
        let with_keys = ServerSettings {
            keys,
            ..ServerSettings::default()
        };
        TenantServer {
            server: TestServer::start_with(service, with_keys),
            _folder: folder,
        }
    }

    fn post(&self, key: &str, path: &str, body: &Value) -> Response {
        let bearer = format!("Bearer secret-{key}");
        let headers = [
            ("Content-Type", "application/json"),
            ("Authorization", &*bearer),
        ];
        let body = body.to_string();
        self.server
            .send("POST", path, &headers, body.as_bytes())
            .read_all()
    }

    /// The prompt's tokens and those of them that were cached.
    fn cached(&self, key: &str, body: &Value) -> (u64, u64) {
        let reply = self.post(key, "/v1/chat/completions", body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        let usage = &reply.json()["usage"];
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        (
            usage["prompt_tokens"].as_u64().unwrap(),
            cached.as_u64().unwrap(),
        )
    }
}

#[track_caller]
fn refused(reply: &Response, status: u16, code: &str, said: &str) {
    let (found, found_code, _, message) = reply.error();
    assert_eq!((found, found_code.as_str()), (status, code), "{message}");
    assert!(message.contains(said), "{message}");
}

fn chat(system: Option<&str>, user: &str, salt: Option<&str>) -> Value {
    let mut messages = vec![json!({"role": "user", "content": user})];
    if let Some(system) = system {
        messages.insert(0, json!({"role": "system", "content": system}));
    }
    let mut body = json!({"model": "warm", "messages": messages, "max_completion_tokens": 1});
    if let Some(salt) = salt {
        body["cache_salt"] = json!(salt);
    }
    body
}

#[test]
fn cached_tokens_tell_a_key_nothing_about_another_keys_prompts() {
    let keys = [
        ("a", ""),
        ("b", ""),
        ("c", "cache_group = 'team'"),
        ("d", "cache_group = 'team'"),
    ];
    let server = TenantServer::new(&keys, &Settings::default());
    let secret = "The code of the safe in the back room is 4711, and nobody else may know it.";
    let body = chat(Some(secret), "Hello", None);
    let (prompt, first) = server.cached("a", &body);
    let block = 16;
    assert!(prompt > 3 * block, "{prompt}");
    let (_, own) = server.cached("a", &body);
    assert!(own >= prompt - block, "{own} of {prompt}");
    // The template alone may be shared; it begins the prompt and is the same in all of them.
    assert!(first < block);
    let (_, other) = server.cached("b", &body);
    assert_eq!(other, first);
    // Keys of one group share.
    let (_, alone) = server.cached("c", &body);
    assert_eq!(alone, first);
    let (_, shared) = server.cached("d", &body);
    assert!(shared >= prompt - block, "{shared} of {prompt}");
    // A salt separates the prompts of one key.
    let salted = chat(Some(secret), "Hello", Some("user 7"));
    assert_eq!(server.cached("a", &salted).1, first);
    assert!(server.cached("a", &salted).1 >= prompt - block);
    let reply = server.post("a", "/v1/chat/completions", &chat(None, "Hello", Some("")));
    refused(
        &reply,
        400,
        "invalid_value",
        "cache_salt must have from 1 to 256 bytes, not 0",
    );
}

#[test]
fn system_prompt_of_a_persona_is_cached_for_all_of_its_keys() {
    let server = TenantServer::new(&[("a", ""), ("b", "")], &Settings::default());
    let user = "A question that is long enough for some blocks of sixteen tokens each.";
    let (prompt, _) = server.cached("a", &chat(None, user, None));
    let (_, other) = server.cached("b", &chat(None, user, None));
    // A block or more of the system prompt, and nothing of the question.
    let question = 3 * 16;
    assert!(
        other >= 16 && other + question < prompt,
        "{other} of {prompt}"
    );
    // Another persona with the same text would not find it.
    let mut formal = chat(None, user, None);
    formal["model"] = json!("formal");
    assert_eq!(server.cached("b", &formal).1, 0);
}

#[test]
fn system_prompts_of_two_personas_and_of_requests_are_not_shared() {
    let home = setup::home();
    let text = "system_prompt = \"The shop's secret code is {{code}}, and it opens the door to the back room of the shop.\"\n\
                [variables]\ncode = \"4711\"";
    home.persona("shop", text, Some(&adapter(21)));
    // Another tenant's persona that guesses the text, with the same adapter.
    home.persona("guess", text, Some(&adapter(21)));
    let service = setup::open(&home, &Settings::default()).unwrap();
    let server = TenantServer::of(&[("a", ""), ("b", ""), ("c", "")], Arc::new(service));
    let ask = |key: &str, model: &str, code: Option<&str>| {
        let mut body = chat(None, "Hi", None);
        body["model"] = json!(model);
        if let Some(code) = code {
            body["variables"] = json!({"code": code});
        }
        server.cached(key, &body).1
    };
    assert_eq!(ask("a", "shop", None), 0);
    assert!(ask("b", "shop", None) >= 16);
    assert_eq!(ask("b", "guess", None), 0);
    // The value of a variable is the client's.
    let own = ask("a", "shop", Some("8128"));
    assert_eq!(ask("b", "shop", Some("8128")), own);
    assert_eq!(ask("c", "shop", Some("8128")), own);
}

#[test]
fn key_without_base_cannot_reach_it_by_scales() {
    let keys = [("one", "personas = ['warm', 'formal']"), ("all", "")];
    let server = TenantServer::new(&keys, &Settings::default());
    let ask = |key: &str, who: &str| {
        let body = json!({"prompt": "Hi", "user_type": who, "max_new_tokens": 1});
        server.post(key, "/generate", &body)
    };
    for who in [
        "warm*0",
        "warm*-1",
        "warm@1*0",
        "warm*1+formal*0",
        "warm*1+formal*-1",
        "warm*0.01+formal*0.01",
    ] {
        let reply = ask("one", who);
        refused(
            &reply,
            403,
            "persona_not_allowed",
            "give every persona a scale above 0",
        );
        assert_eq!(ask("all", who).status, 200, "{who}");
    }
    for who in ["warm", "warm*0.5", "warm*0.7+formal*0.3"] {
        assert_eq!(ask("one", who).status, 200, "{who}");
    }
    // `base` never means a persona.
    refused(
        &ask("one", "base"),
        403,
        "persona_not_allowed",
        "may not use",
    );
}

#[test]
fn every_answer_counts_against_the_requests_a_minute() {
    let keys = [("ten", "requests_per_minute = 10"), ("free", "")];
    let server = TenantServer::new(&keys, &Settings::default());
    let ask = |key: &str, prompts: usize, n: usize| {
        let prompts = vec!["a"; prompts];
        let body = json!({"model": "warm", "prompt": prompts, "n": n, "max_tokens": 1});
        server.post(key, "/v1/completions", &body)
    };
    assert_eq!(ask("ten", 2, 4).status, 200);
    let reply = ask("ten", 2, 4);
    refused(
        &reply,
        429,
        "request_rate_exceeded",
        "key ten may make 10 requests a minute, and each of this request's 8 answers counts as one",
    );
    assert!(reply.header("retry-after").is_some());
    assert_eq!(ask("free", 16, 8).status, 200);
}

#[test]
fn answers_above_the_tokens_a_minute_are_refused_at_once_and_take_none() {
    let server = TenantServer::new(&[("a", "tokens_per_minute = 300")], &Settings::default());
    let ask = |prompts: usize, n: usize, max_tokens: usize| {
        let prompts = vec!["Once upon a time"; prompts];
        let body = json!({"model": "warm", "prompt": prompts, "n": n, "max_tokens": max_tokens});
        server.post("a", "/v1/completions", &body)
    };
    for (prompts, n) in [(1, 8), (4, 2)] {
        let reply = ask(prompts, n, 100);
        refused(
            &reply,
            400,
            "token_rate_exceeded",
            "key a may use 300 tokens a minute, and this request's 8 answers may take 8",
        );
        assert_eq!(reply.header("retry-after"), None);
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    // All tokens of the minute are left.
    assert_eq!(ask(2, 2, 50).status, 200);
}

#[test]
fn request_that_is_refused_for_its_content_counts_once() {
    let keys = [("ten", "requests_per_minute = 10")];
    let server = TenantServer::new(&keys, &Settings::default());
    let valid = json!({"model": "warm", "prompt": ["a", "a"], "n": 2, "max_tokens": 1});
    let with = |field: &str, value: Value| {
        let mut body = valid.clone();
        body[field] = value;
        server.post("ten", "/v1/completions", &body)
    };
    for reply in [
        with("temperature", json!(7)),
        with("prompt", json!(["a", ""])),
        with("prompt", json!(["a", "long ".repeat(4000)])),
        with("max_tokens", json!(1_000_000)),
    ] {
        assert_eq!(reply.status, 400, "{}", reply.text);
    }
    assert_eq!(server.post("ten", "/v1/completions", &valid).status, 200);
    // Of ten, four were refused and four were answered.
    let reply = server.post("ten", "/v1/completions", &valid);
    refused(&reply, 429, "request_rate_exceeded", "4 answers");
}

#[test]
fn answers_that_never_fit_into_the_queue_are_refused_for_good() {
    let settings = Settings {
        engine: EngineConfig {
            max_batch: 2,
            max_queue: 2,
            ..EngineConfig::default()
        },
        ..Settings::default()
    };
    let server = TenantServer::new(&[("a", "")], &settings);
    let body = json!({"model": "warm", "prompt": ["a", "a"], "n": 3, "max_tokens": 1});
    let reply = server.post("a", "/v1/completions", &body);
    refused(
        &reply,
        400,
        "invalid_value",
        "this request needs 6 answers, and this server takes at most ",
    );
    assert_eq!(reply.error().2, "n");
}

#[test]
fn key_cannot_hold_all_places_of_the_queue() {
    let server = TenantServer::new(&[("greedy", ""), ("other", "")], &Settings::default());
    let bearer = "Bearer secret-greedy";
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", bearer),
    ];
    let prompts = vec!["Once upon a time"; 16];
    let body = json!({"model": "warm", "prompt": prompts, "n": 8, "max_tokens": 100, "stream": true,
        "ignore_eos": true, "temperature": 1});
    let body = body.to_string();
    // Of 288 places one key gets 168, so the second request of 128 is above its part.
    let first = server
        .server
        .send("POST", "/v1/completions", &headers, body.as_bytes());
    let second = server.post(
        "greedy",
        "/v1/completions",
        &serde_json::from_str(&body).unwrap(),
    );
    refused(&second, 429, "above_share", "this key has ");
    for _ in 0..3 {
        let body = json!({"model": "warm", "prompt": "Hi", "max_tokens": 2});
        assert_eq!(server.post("other", "/v1/completions", &body).status, 200);
    }
    drop(first);
}

#[test]
fn request_that_is_refused_for_lack_of_room_does_not_count() {
    let server = TenantServer::new(
        &[("greedy", "requests_per_minute = 300")],
        &Settings::default(),
    );
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer secret-greedy"),
    ];
    let prompts = vec!["Once upon a time"; 16];
    let body = json!({"model": "warm", "prompt": prompts, "n": 8, "max_tokens": 100, "stream": true,
        "ignore_eos": true, "temperature": 1});
    let first = server.server.send(
        "POST",
        "/v1/completions",
        &headers,
        body.to_string().as_bytes(),
    );
    // Each of them would take 128 of the 172 that are left, and one of them after 45 others, if a single one stayed counted.
    for _ in 0..60 {
        let reply = server.post("greedy", "/v1/completions", &body);
        refused(&reply, 429, "above_share", "this key has ");
    }
    drop(first);
}

#[test]
fn many_refusals_of_a_key_are_sent_at_an_even_rate() {
    let tenants = TenantServer::new(&[("hostile", "")], &Settings::default());
    let started = Instant::now();
    for _ in 0..150 {
        let reply = tenants.post("hostile", "/generate", &json!({"prompt": 7}));
        assert_eq!(reply.status, 400);
    }
    // A hundred at once, then one every 10 ms.
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
}

#[test]
fn conversation_that_is_too_long_is_refused_with_its_size() {
    let turn = json!({"role": "user", "content": "word ".repeat(10)});
    let messages = vec![turn; 5_000];
    let body = json!({"model": "warm", "messages": messages});
    let reply = shared_server().post("/v1/chat/completions", &body);
    refused(
        &reply,
        400,
        "context_length_exceeded",
        "messages is too long: 5001 messages with 250013 bytes",
    );
}

/// The template's limit of work is below the context: the conversation is to blame, not the template.
#[test]
fn conversation_that_exceeds_the_templates_work_is_refused_with_its_size() {
    let home = setup::home_with_context(65_536);
    let service = setup::open(&home, &Settings::default()).unwrap();
    let server = TestServer::start(Arc::new(service));
    let messages = vec![json!({"role": "user", "content": "a"}); 40_000];
    let body = json!({"model": "warm", "messages": messages, "max_tokens": 1});
    let reply = server.post("/v1/chat/completions", &body);
    refused(
        &reply,
        400,
        "context_length_exceeded",
        "messages is too long: 40001 messages with 40013 bytes",
    );
}

#[test]
fn too_many_log_probabilities_are_refused() {
    let prompts = vec!["a"; 16];
    let body =
        json!({"model": "warm", "prompt": prompts, "n": 8, "max_tokens": 100, "logprobs": 20});
    let reply = shared_server().post("/v1/completions", &body);
    refused(
        &reply,
        400,
        "invalid_value",
        "logprobs needs up to 16800 log-probabilities for each prompt: 8 answers x 100 tokens x 21 (the token and 20 alternatives); \
         at most 15625 are allowed; lower the number of alternatives, max_tokens or n, or send fewer prompts",
    );
}

#[test]
fn name_of_the_base_is_reserved() {
    let home = RegistryHome::new();
    let server = TestServer::start(home.service(true));
    let load = json!({"lora_name": "base", "lora_path": "a21"});
    let (status, _, _, message) = server.post("/v1/load_lora_adapter", &load).error();
    assert!(status == 400 || status == 409, "{status} {message}");
    assert!(
        message.contains("\"base\" always means the base"),
        "{message}"
    );
    let settings = json!({"settings": {"system_prompt": "x"}});
    let reply = server.post("/v1/personas/base/versions", &settings);
    assert!(
        reply.error().3.contains("\"base\" always means the base"),
        "{}",
        reply.text
    );
    let answer = server.generate(json!({"prompt": "a", "user_type": "base", "max_new_tokens": 1}));
    assert_eq!(answer["persona"]["adapters"], json!([]));
}
