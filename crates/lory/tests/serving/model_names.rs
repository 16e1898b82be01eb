//! What requests may call a model: names of other servers' models, the base's own spelling, and aliases that the operator sets.

use std::sync::Arc;

use auth::Keys;
use auth::secret::SecretHash;
use serde_json::{Value, json};
use server::ServerSettings;
use service::{ModelAlias, Settings};
use testkit::server::TestServer;

use crate::setup::{self, shared_server};

fn ask(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4})
}

fn alias(text: &str) -> ModelAlias {
    text.parse().unwrap()
}

#[test]
fn name_that_no_persona_can_have_is_a_404_with_the_known_names() {
    let server = shared_server();
    for name in [
        "gpt-3.5-turbo",
        "Qwen/Qwen2.5-0.5B",
        "warm:latest",
        "openai/warm",
        "Warm",
        "../warm",
        "ünïcode",
        "warm\n",
        "\twarm",
        "tiny\n",
        // With versions and weights, too.
        "WARM@1",
        "gpt-4o@2024-08-06",
        "nobody@x",
        "Warm*0.7+formal*0.3",
    ] {
        for (path, body) in [
            ("/v1/chat/completions", ask(name)),
            ("/v1/completions", json!({"model": name, "prompt": "Hello"})),
        ] {
            let (status, code, param, message) = server.post(path, &body).error();
            assert_eq!(
                (status, code.as_str()),
                (404, "model_not_found"),
                "{message}"
            );
            assert_eq!(param, "model");
            let expected =
                format!("model: no model is named {name:?}; the models are tiny, formal, warm");
            assert_eq!(message, expected);
        }
        let escaped = name
            .replace('/', "%2F")
            .replace('ü', "%C3%BC")
            .replace('ï', "%C3%AF")
            .replace('\n', "%0A")
            .replace('\t', "%09");
        let (status, code, _, _) = server.get(&format!("/v1/models/{escaped}")).error();
        assert_eq!((status, code.as_str()), (404, "model_not_found"), "{name}");
    }
    let (status, code, param, _) = server
        .post("/generate", &json!({"prompt": "Hi", "user_type": "Warm"}))
        .error();
    assert_eq!(
        (status, code.as_str(), param),
        (404, "model_not_found", json!("user_type"))
    );
    // A blend with a mistake is told where the mistake is.
    for name in ["warm*x", "warm@x", "warm*9+formal", "warm+"] {
        let (status, code, _, message) = server.post("/v1/chat/completions", &ask(name)).error();
        assert_eq!(
            (status, code.as_str()),
            (400, "invalid_persona"),
            "{message}"
        );
    }
    // A long name is not repeated in whole.
    let (status, _, _, message) = server
        .post("/v1/chat/completions", &ask(&"X".repeat(1000)))
        .error();
    assert_eq!(status, 404);
    assert!(message.len() < 250, "{message}");
}

#[test]
fn base_answers_to_its_own_spelling() {
    let server = shared_server();
    let text = |name: &str| {
        let reply = server.post("/v1/chat/completions", &ask(name));
        assert_eq!(reply.status, 200, "{}", reply.text);
        let answer = reply.json();
        assert_eq!(answer["model"], *name);
        assert_eq!(answer["system_fingerprint"], "tiny");
        answer["choices"][0]["message"]["content"].clone()
    };
    let expected = text("tiny");
    for name in ["Tiny", "TINY", "Lory/Tiny", "base"] {
        assert_eq!(text(name), expected, "{name}");
    }
    let (status, ..) = server.post("/v1/chat/completions", &ask("Base")).error();
    assert_eq!(status, 404);
}

#[test]
fn spaces_around_a_name_are_ignored_and_not_repeated() {
    let server = shared_server();
    for name in [" warm", "warm  ", " tiny ", " warm*0.5 + formal*0.5 "] {
        let reply = server.post("/v1/chat/completions", &ask(name));
        assert_eq!(reply.json()["model"], name.trim(), "{}", reply.text);
        let body = json!({"model": name, "prompt": "Hello", "max_tokens": 2});
        let reply = server.post("/v1/completions", &body);
        assert_eq!(reply.json()["model"], name.trim(), "{}", reply.text);
        let body = json!({"user_type": name, "prompt": "Hello", "max_new_tokens": 2});
        let reply = server.post("/generate", &body);
        assert_eq!(reply.json()["user_type"], name.trim(), "{}", reply.text);
        let path = name.replace(' ', "%20").replace('+', "%2B");
        let reply = server.get(&format!("/v1/models/{path}"));
        assert_eq!(reply.json()["id"], name.trim(), "{}", reply.text);
    }
}

#[test]
fn models_are_retrieved_by_name() {
    let server = shared_server();
    let list = server.get("/v1/models").json();
    for listed in list["data"].as_array().unwrap() {
        let id = listed["id"].as_str().unwrap();
        let model = server.get(&format!("/v1/models/{id}"));
        assert_eq!(model.status, 200, "{}", model.text);
        assert_eq!(&model.json(), listed);
    }
    for (path, id, parent) in [
        ("formal@2", "formal@2", json!("tiny")),
        (
            "warm*0.5%2Bformal*0.5",
            "warm*0.5+formal*0.5",
            json!("tiny"),
        ),
        ("Lory/Tiny", "Lory/Tiny", json!(null)),
        ("Lory%2FTiny", "Lory/Tiny", json!(null)),
    ] {
        let model = server.get(&format!("/v1/models/{path}")).json();
        assert_eq!((&model["id"], &model["parent"]), (&json!(id), &parent));
        assert_eq!(model["object"], "model");
    }
    let (status, code, ..) = server.get("/v1/models/nobody").error();
    assert_eq!((status, code.as_str()), (404, "persona_not_found"));
    let (status, code, ..) = server.get("/v1/models/openai/warm").error();
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
}

/// The text and the fingerprint of an answer.
fn answer(server: &TestServer, model: &str) -> (Value, Value) {
    let reply = server.post("/v1/chat/completions", &ask(model));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let answer = reply.json();
    assert_eq!(answer["model"], *model);
    (
        answer["choices"][0]["message"]["content"].clone(),
        answer["system_fingerprint"].clone(),
    )
}

#[test]
fn alias_goes_before_the_persona_of_its_name() {
    let settings = Settings {
        model_aliases: ["gpt-4o-mini=warm", "formal=warm"].map(alias).to_vec(),
        ..Settings::default()
    };
    let server = TestServer::start(setup::service(&settings));
    assert_eq!(answer(&server, "formal"), answer(&server, "warm"));
    // A version or a weight behind an alias does not reach the persona of the same name.
    for name in [
        "formal@2",
        "formal*0.5",
        "warm*0.5+formal*0.5",
        "gpt-4o-mini@1",
    ] {
        let (status, code, ..) = server.post("/v1/chat/completions", &ask(name)).error();
        assert_eq!((status, code.as_str()), (404, "model_not_found"), "{name}");
    }
}

#[test]
fn alias_answers_as_its_target() {
    let settings = Settings {
        model_aliases: [
            "gpt-4o-mini=warm",
            "openai/gpt-4o = warm*0.5+formal*0.5",
            "gpt-3.5-turbo=tiny",
            "later=unpublished",
        ]
        .map(alias)
        .to_vec(),
        ..Settings::default()
    };
    let server = TestServer::start(setup::service(&settings));
    let answer = |model: &str| answer(&server, model);
    assert_eq!(answer("gpt-4o-mini"), answer("warm"));
    let blend = shared_server().post("/v1/chat/completions", &ask("warm*0.5+formal@2*0.5"));
    let blend = blend.json();
    assert_eq!(
        answer("openai/gpt-4o"),
        (
            blend["choices"][0]["message"]["content"].clone(),
            blend["system_fingerprint"].clone()
        )
    );
    assert_eq!(answer("gpt-3.5-turbo"), answer("tiny"));
    let (status, code, _, message) = server.post("/v1/chat/completions", &ask("later")).error();
    assert_eq!(
        (status, code.as_str()),
        (404, "persona_not_found"),
        "{message}"
    );
    let list = server.get("/v1/models").json();
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        [
            "tiny",
            "gpt-3.5-turbo",
            "gpt-4o-mini",
            "openai/gpt-4o",
            "formal",
            "warm"
        ]
    );
    for path in ["openai/gpt-4o", "openai%2Fgpt-4o"] {
        let model = server.get(&format!("/v1/models/{path}")).json();
        assert_eq!(
            (&model["id"], &model["parent"]),
            (&json!("openai/gpt-4o"), &json!("tiny"))
        );
    }
}

#[test]
fn alias_needs_the_permission_of_its_target_and_hides_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let key = |name: &str, more: &str| {
        let sha256 = SecretHash::of(&format!("secret-{name}"));
        format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\n{more}\n")
    };
    let keys = key("warm-only", "personas = ['warm']\nbase = false")
        + &key("formal-only", "personas = ['formal']\nbase = false");
    std::fs::write(&file, keys).unwrap();
    let settings = Settings {
        model_aliases: ["gpt-4o=warm", "gpt-4=formal", "gpt-3=tiny", "GPT-4o=warm"]
            .map(alias)
            .to_vec(),
        ..Settings::default()
    };
    let keys = Keys::open(Some(&file), None).unwrap().map(Arc::new);
    let with_keys = ServerSettings {
        keys,
        ..ServerSettings::default()
    };
    let server = TestServer::start_with(setup::service(&settings), with_keys);
    let send = |key: &str, method: &str, path: &str, body: &Value| {
        let bearer = format!("Bearer secret-{key}");
        let headers = [
            ("Content-Type", "application/json"),
            ("Authorization", &*bearer),
        ];
        let body = body.to_string();
        server
            .send(method, path, &headers, body.as_bytes())
            .read_all()
    };
    let chat = |key: &str, model: &str| send(key, "POST", "/v1/chat/completions", &ask(model));
    assert_eq!(chat("warm-only", "gpt-4o").status, 200);
    assert_eq!(chat("formal-only", "gpt-4").status, 200);
    for (key, model) in [
        ("warm-only", "gpt-4"),
        ("warm-only", "gpt-3"),
        ("formal-only", "gpt-4o"),
    ] {
        for reply in [
            chat(key, model),
            send(key, "GET", &format!("/v1/models/{model}"), &json!(null)),
        ] {
            let (status, code, _, message) = reply.error();
            assert_eq!(
                (status, code.as_str()),
                (403, "persona_not_allowed"),
                "{message}"
            );
            let expected = format!(
                "may not use {model:?}; it may use {}",
                key.replace("-only", "")
            );
            assert!(message.ends_with(&expected), "{message}");
        }
    }
    let list = send("warm-only", "GET", "/v1/models", &json!(null)).json();
    let ids: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["GPT-4o", "gpt-4o", "warm"]);
    // A name that cannot be a persona's is unknown, whether or not it is an alias of what the key may not use.
    assert_eq!(chat("warm-only", "GPT-4o").status, 200);
    for reply in [
        chat("formal-only", "GPT-4o"),
        send("formal-only", "GET", "/v1/models/GPT-4o", &json!(null)),
    ] {
        let (status, code, ..) = reply.error();
        assert_eq!((status, code.as_str()), (404, "model_not_found"));
    }
    // The names of others are not listed.
    let (_, code, _, message) = chat("formal-only", "GPT-5").error();
    assert_eq!(code, "model_not_found");
    assert_eq!(
        message,
        "model: no model is named \"GPT-5\"; the models are gpt-4, formal"
    );
}

#[test]
fn alias_that_cannot_be_used_is_reported_at_start() {
    for (aliases, expected) in [
        (
            vec!["Tiny=warm"],
            "--model-alias Tiny=warm: \"Tiny\" is a name of the base",
        ),
        (vec!["base=warm"], "\"base\" is a name of the base"),
        (
            vec!["a=Warm"],
            "--model-alias a=Warm: persona spec at character 1: `Warm` is not a valid",
        ),
        (
            vec!["a=warm", "b=a"],
            "\"a\" is an alias itself; name the persona that it means",
        ),
        (vec!["a=a"], "\"a\" is an alias itself"),
        (
            vec!["a=warm", "b=formal*0.5+a*0.5"],
            "--model-alias b=formal*0.5+a*0.5: \"a\" is an alias itself",
        ),
        (vec!["a=warm", "a=formal"], "\"a\" is set twice"),
    ] {
        let settings = Settings {
            model_aliases: aliases.into_iter().map(alias).collect(),
            ..Settings::default()
        };
        let error = setup::open(&setup::home(), &settings)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
