//! Publishing into a running server: which version each request gets, and what is rejected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::home::BASE;
use testkit::http::{JSON, Response, events_of};
use testkit::server::TestServer;

use crate::registry_home::RegistryHome;
use crate::setup::shared_server;

fn load(server: &TestServer, name: &str, path: &str) -> Response {
    server.post(
        "/v1/load_lora_adapter",
        &json!({"lora_name": name, "lora_path": path}),
    )
}

fn ask(server: &TestServer, who: &str) -> Value {
    server.generate(json!({"prompt": "Hello!", "user_type": who, "max_new_tokens": 4}))
}

/// The version that answered, and the adapter's hash.
fn answered(answer: &Value) -> (u64, String) {
    let persona = &answer["persona"];
    let sha256 = persona["adapters"][0]["sha256"]
        .as_str()
        .unwrap_or_default();
    (persona["version"].as_u64().unwrap(), sha256.to_owned())
}

#[test]
fn load_and_unload_lora_adapter_answer_as_vllm() {
    let home = RegistryHome::new();
    let server = TestServer::start(home.service(true));
    let reply = load(&server, "sql", "a21");
    assert_eq!(
        (reply.status, reply.text.as_str()),
        (200, "Success: LoRA adapter 'sql' added successfully.")
    );
    let (version, first) = answered(&ask(&server, "sql"));
    assert_eq!(version, 1);
    // A blend with it, and another route's `model`.
    ask(&server, "sql*0.5+warm*0.5");
    let completion = json!({"model": "sql", "prompt": "a", "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", &completion).status, 200);

    let (status, code, param, message) = load(&server, "sql", "a22").error();
    assert_eq!(
        (status, code.as_str(), &param),
        (400, "already_loaded", &json!("lora_name"))
    );
    assert_eq!(
        message,
        "The lora adapter 'sql' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to \
         True."
    );
    let inplace = json!({"lora_name": "sql", "lora_path": "a22", "load_inplace": true});
    assert_eq!(server.post("/v1/load_lora_adapter", &inplace).status, 200);
    let (version, second) = answered(&ask(&server, "sql"));
    assert_eq!((version, second != first), (2, true));
    assert_eq!(answered(&ask(&server, "sql@1")), (1, first));

    let models = server.get("/v1/models").json();
    let card = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["id"] == "sql")
        .unwrap();
    assert_eq!(card["parent"], BASE);
    assert!(card["root"].as_str().unwrap().ends_with(&second), "{card}");
    assert_eq!(models["data"][0]["parent"], Value::Null);

    let unload = |name: &str| server.post("/v1/unload_lora_adapter", &json!({"lora_name": name}));
    let reply = unload("sql");
    assert_eq!(
        (reply.status, reply.text.as_str()),
        (200, "Success: LoRA adapter 'sql' removed successfully.")
    );
    let (status, _, _, message) = unload("sql").error();
    assert_eq!(
        (status, message.as_str()),
        (404, "The lora adapter 'sql' cannot be found.")
    );
    let (status, _, _, message) = unload("").error();
    assert_eq!(status, 400);
    assert_eq!(
        message,
        "'lora_name' needs to be provided to unload a LoRA adapter."
    );
    let (status, _, _, message) = load(&server, "x", "").error();
    assert_eq!(status, 400);
    assert_eq!(
        message,
        "Both 'lora_name' and 'lora_path' must be provided."
    );
    let gone = json!({"prompt": "Hello!", "user_type": "sql"});
    assert_eq!(server.post("/generate", &gone).status, 404);
    // `warm` is in the folder of personas, which requests cannot change.
    let (status, _, _, message) = unload("warm").error();
    assert_eq!(status, 409);
    assert_eq!(
        message,
        "warm is not published: it is in the folder of personas; remove it there"
    );
}

#[cfg(unix)]
#[test]
fn only_adapters_under_the_adapter_root_are_loaded() {
    let home = RegistryHome::new();
    let server = TestServer::start(home.service(true));
    let outside = home.adapter("elsewhere", 5, &[]);
    std::os::unix::fs::symlink(&outside, home.path("root/link")).unwrap();
    let inside = home.path("root/a21");
    for path in [
        outside.to_str().unwrap(),
        "../elsewhere",
        "a21/../../elsewhere",
        "link",
        "/etc",
        "../nothing",
        "/nothing/there",
    ] {
        let (status, code, param, message) = load(&server, "x", path).error();
        assert_eq!(
            (status, code.as_str()),
            (403, "adapter_path_refused"),
            "{path}: {message}"
        );
        assert_eq!(param, "lora_path");
    }
    let (status, code, _, message) = load(&server, "x", "nothing").error();
    assert_eq!(
        (status, code.as_str()),
        (404, "adapter_not_found"),
        "{message}"
    );
    std::fs::create_dir(home.path("root/empty")).unwrap();
    let (status, code, _, message) = load(&server, "x", "empty").error();
    assert_eq!(
        (status, code.as_str()),
        (400, "adapter_unusable"),
        "{message}"
    );
    assert!(message.contains("adapter_config.json"), "{message}");
    assert_eq!(load(&server, "x", inside.to_str().unwrap()).status, 200);

    let closed = TestServer::start(home.service(false));
    let (status, _, _, message) = load(&closed, "y", "a21").error();
    assert_eq!(status, 403);
    assert!(message.contains("--adapter-root"), "{message}");
}

#[test]
fn adapter_of_another_base_is_rejected_with_both_hashes() {
    let home = RegistryHome::new();
    let service = home.service(true);
    let own = service.base().fingerprint.sha256().unwrap().to_owned();
    let other = "ab".repeat(32);
    home.adapter("root/own", 31, &[("lory.base_sha256", &own)]);
    home.adapter("root/other", 32, &[("lory.base_sha256", &other)]);
    home.adapter("root/words", 33, &[("lory.tokenizer_hash", "abc")]);
    let server = TestServer::start(service);
    assert_eq!(load(&server, "own", "own").status, 200);
    let (status, code, _, message) = load(&server, "other", "other").error();
    assert_eq!((status, code.as_str()), (400, "adapter_of_another_base"));
    assert!(
        message.contains(&own) && message.contains(&other),
        "{message}"
    );
    assert_eq!(load(&server, "words", "words").error().0, 400);
    assert_eq!(home.registry().refresh().unwrap().head, 1);

    // Another process publishes it into the same registry: it is not served here, but the other personas are.
    let content = registry::AdapterContent::read(&home.path("root/other")).unwrap();
    let publication = registry::Publication {
        name: "other",
        content: Some(&content),
        settings: None,
        current: true,
        only_new: true,
    };
    home.registry().publish(&publication).unwrap();
    let again = TestServer::start(home.service(true));
    let body = json!({"prompt": "Hello!", "user_type": "other"});
    let (status, code, _, message) = again.post("/generate", &body).error();
    assert_eq!(
        (status, code.as_str()),
        (409, "adapter_of_another_base"),
        "{message}"
    );
    assert!(
        message.contains(&own) && message.contains(&other),
        "{message}"
    );
    ask(&again, "own");
}

#[test]
fn running_request_keeps_its_version_after_a_publication() {
    let home = RegistryHome::new();
    let service = home.service(true);
    let server = TestServer::start(Arc::clone(&service));
    assert_eq!(load(&server, "tone", "a21").status, 200);
    let long = json!({
        "prompt": "Hello!", "user_type": "tone", "max_new_tokens": 40, "temperature": 1.0, "seed": 3,
    });
    let alone = server.generate(long.clone());
    let mut body = long.clone();
    body["stream"] = json!(true);
    let text = body.to_string();
    let mut open = server.send("POST", "/generate", JSON, text.as_bytes());
    open.wait_for_body();
    let inplace = json!({"lora_name": "tone", "lora_path": "a22", "load_inplace": true});
    assert_eq!(server.post("/v1/load_lora_adapter", &inplace).status, 200);
    let next = server.generate(long);
    let events = events_of(&open.read_all().text);
    let end: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(answered(&end), answered(&alone));
    assert_eq!(answered(&next).0, 2);
    let deltas: String = events[..events.len() - 1]
        .iter()
        .map(|event| {
            serde_json::from_str::<Value>(event).unwrap()["delta"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(deltas, alone["response"].as_str().unwrap());
}

#[test]
fn publication_of_another_process_is_served() {
    let home = RegistryHome::new();
    let service = home.service(true);
    service.follow(Duration::from_millis(20));
    let server = TestServer::start(Arc::clone(&service));
    let content = registry::AdapterContent::read(&home.path("root/a21")).unwrap();
    let publication = registry::Publication {
        name: "late",
        content: Some(&content),
        settings: None,
        current: true,
        only_new: true,
    };
    home.registry().publish(&publication).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let body = json!({"prompt": "Hello!", "user_type": "late", "max_new_tokens": 1});
    while server.post("/generate", &body).status != 200 {
        assert!(
            Instant::now() < end,
            "the publication was not served in time"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn admin_routes_change_the_registry() {
    let home = RegistryHome::new();
    let server = TestServer::start(home.service(true));
    let publish = |body: Value| server.post("/v1/personas/shop/versions", &body);
    let settings =
        json!({"system_prompt": "You sell.", "sampling": {"temperature": 0.5}, "scale": 0.5});
    let reply = publish(json!({"adapter_path": "a21", "settings": settings}));
    assert_eq!(reply.status, 201, "{}", reply.text);
    let shown = reply.json();
    assert_eq!(
        (&shown["version"], &shown["current"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(shown["settings"]["sampling"], json!({"temperature": 0.5}));
    let second = publish(json!({"adapter_path": "a22", "current": false})).json();
    assert_eq!(
        (&second["version"], &second["current"]),
        (&json!(2), &json!(false))
    );
    // Settings that are not given stay as they were.
    assert_eq!(second["settings"]["system_prompt"], "You sell.");
    assert_eq!(answered(&ask(&server, "shop")).0, 1);
    assert_eq!(answered(&ask(&server, "shop@2")).0, 2);

    let put = |path: &str, body: Value| server.put(path, &body);
    let delete = |path: &str| server.delete(path);
    let reply = put(
        "/v1/personas/shop/canary",
        json!({"version": 2, "percent": 100}),
    );
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(answered(&ask(&server, "shop")).0, 2);
    assert_eq!(answered(&ask(&server, "shop@1")).0, 1);
    assert_eq!(delete("/v1/personas/shop/canary").status, 200);
    assert_eq!(answered(&ask(&server, "shop")).0, 1);
    assert_eq!(delete("/v1/personas/shop/canary").status, 400);

    assert_eq!(
        put("/v1/persona_aliases/store", json!({"target": "shop@2"})).status,
        200
    );
    let answer = ask(&server, "store");
    assert_eq!(
        (&answer["persona"]["name"], answered(&answer).0),
        (&json!("shop"), 2)
    );
    let reply = server.post("/v1/personas/shop/rollback", &json!({"version": 2}));
    assert_eq!(reply.json()["version"], 2);
    assert_eq!(
        server.post("/v1/personas/shop/rollback", &json!({})).json()["version"],
        1
    );

    let list = server.get("/v1/personas").json();
    let names: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["name"])
        .collect();
    assert_eq!(names, ["formal", "shop", "warm"]);
    assert_eq!(list["aliases"], json!({"store": "shop@2"}));
    let one = server.get("/v1/personas/shop@2").json();
    assert_eq!(one["aliases"], json!(["store"]));
    assert_eq!(server.get("/v1/personas/warm").json()["source"], "folder");
    let history = server.get("/v1/personas/shop/history").json();
    let ops: Vec<&Value> = history["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["change"]["op"])
        .collect();
    assert_eq!(
        ops,
        [
            "publish", "publish", "canary", "canary", "alias", "rollback", "rollback"
        ]
    );
    let verified = server
        .send("POST", "/v1/registry/verify", &[], b"")
        .read_all()
        .json();
    assert_eq!(
        (
            &verified["broken"],
            verified["data"].as_array().unwrap().len()
        ),
        (&json!(0), 2)
    );

    assert_eq!(delete("/v1/personas/shop@2").error().1, "persona_refused");
    assert_eq!(delete("/v1/persona_aliases/store").status, 200);
    assert_eq!(delete("/v1/personas/shop@2").status, 200);
    assert_eq!(delete("/v1/personas/shop").status, 200);
    let gc = server
        .post("/v1/registry/gc", &json!({"older_than": 0}))
        .json();
    assert_eq!(gc["removed"].as_array().unwrap().len(), 2, "{gc}");

    for (path, status, code) in [
        ("/v1/personas/shop", 404, "persona_not_found"),
        ("/v1/personas/shop@9", 404, "persona_not_found"),
        ("/v1/personas/Shop", 400, "invalid_persona"),
        ("/v1/personas/warm@9", 404, "persona_not_found"),
        ("/v1/personas/nobody/history", 404, "persona_not_found"),
    ] {
        let (found, named, _, message) = server.get(path).error();
        assert_eq!((found, named.as_str()), (status, code), "{path}: {message}");
    }
    let wrong = |body: Value| publish(body).error();
    assert_eq!(wrong(json!({})).1, "missing_field");
    assert_eq!(wrong(json!({"colour": 1})).1, "unknown_field");
    let hot = wrong(json!({"settings": {"sampling": {"temperature": 9}}}));
    assert!(hot.3.contains("temperature must be from 0 to 2"), "{hot:?}");
    let taken = server.post("/v1/personas/tiny/versions", &json!({"settings": {}}));
    assert!(taken.error().3.contains("is the name of the base"));
}

#[test]
fn publishing_without_a_registry_is_rejected() {
    let (status, code, _, message) = load(shared_server(), "x", "y").error();
    assert_eq!(
        (status, code.as_str()),
        (403, "adapter_path_refused"),
        "{message}"
    );
    let body = json!({"settings": {}});
    let (status, code, _, _) = shared_server()
        .post("/v1/personas/x/versions", &body)
        .error();
    assert_eq!((status, code.as_str()), (409, "no_registry"));
}

#[test]
fn shadow_version_changes_only_the_comparison_metrics() {
    let home = RegistryHome::new();
    let service = home.service(true);
    service.compare_shadows();
    let server = TestServer::start(Arc::clone(&service));
    let publish = |path: &str, current: bool| {
        let body = json!({"adapter_path": path, "current": current});
        assert_eq!(server.post("/v1/personas/tone/versions", &body).status, 201);
    };
    publish("a21", true);
    publish("a21", false);
    publish("a22", false);
    let shadow = |version: u32| {
        let body = json!({"version": version, "percent": 100});
        let reply = server.put("/v1/personas/tone/shadow", &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
    };
    let body = json!({"prompt": "Hello!", "user_type": "tone", "max_new_tokens": 24});
    let counted = |line: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        while !server
            .get("/metrics")
            .text
            .lines()
            .any(|found| found == line)
        {
            assert!(
                Instant::now() < end,
                "{line} is missing: {}",
                server.get("/metrics").text
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let alone = server.generate(body.clone());
    // Version 2 has the same adapter, so its answer is the same.
    shadow(2);
    let answer = server.generate(body.clone());
    assert_eq!(
        (answered(&answer), &answer["response"]),
        (answered(&alone), &alone["response"])
    );
    counted("lory_shadow_requests_total{persona=\"tone\",outcome=\"same\"} 1");
    shadow(3);
    let answer = server.generate(body);
    assert_eq!(answer["response"], alone["response"]);
    counted("lory_shadow_requests_total{persona=\"tone\",outcome=\"different\"} 1");
    // Only the three requests of clients are counted, not those to shadows.
    let reason = alone["finish_reason"].as_str().unwrap();
    counted(&format!(
        "lory_requests_total{{persona=\"tone\",outcome=\"{reason}\"}} 3"
    ));
}
