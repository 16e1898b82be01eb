//! Responses of the server match the schemas of `/openapi.json`.

use serde_json::{Value, json};

use crate::registry_home::RegistryHome;
use testkit::server::TestServer;

use crate::setup::shared_server;

/// Where `value` does not match `schema`, each with its path.
pub fn complaints(document: &Value, schema: &Value, value: &Value, path: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let found = &document["components"]["schemas"][name.rsplit('/').next().unwrap()];
        return complaints(document, found, value, path);
    }
    if let Some(choices) = schema["oneOf"]
        .as_array()
        .or_else(|| schema["anyOf"].as_array())
    {
        let mut each = choices
            .iter()
            .map(|one| complaints(document, one, value, path));
        return match each.any(|found| found.is_empty()) {
            true => Vec::new(),
            false => vec![format!("{path}: none of the choices")],
        };
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => return Vec::new(),
    };
    let fits = types.contains(&kind) || (kind == "integer" && types.contains(&"number"));
    if !fits {
        return vec![format!("{path}: {kind} instead of {types:?}")];
    }
    let mut found = Vec::new();
    match value {
        Value::Object(fields) => {
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap();
                if !fields.contains_key(name) {
                    found.push(format!("{path}.{name}: missing"));
                }
            }
            for (name, field) in fields {
                // All values of a map have one schema.
                let each = &schema["additionalProperties"];
                match schema["properties"]
                    .get(name)
                    .or(each.as_object().map(|_| each))
                {
                    Some(one) => {
                        found.extend(complaints(document, one, field, &format!("{path}.{name}")));
                    }
                    None => found.push(format!("{path}.{name}: not described")),
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let place = format!("{path}[{i}]");
                found.extend(complaints(document, &schema["items"], item, &place));
            }
        }
        _ => {}
    }
    found
}

#[test]
fn responses_match_the_openapi_document() {
    let server = shared_server();
    let document = server.get("/openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let check = |method: &str, path: &str, status: &str, value: &Value| {
        let answer = &document["paths"][path][method]["responses"][status];
        let schema = &answer["content"]["application/json"]["schema"];
        assert!(!schema.is_null(), "{method} {path} {status}");
        let found = complaints(&document, schema, value, path);
        assert!(found.is_empty(), "{found:?} in {value}");
    };
    for path in ["/health", "/ready", "/v1/models", "/v1/lora_adapters"] {
        check("get", path, "200", &server.get(path).json());
    }
    let mut bodies = Vec::new();
    for who in ["warm", "tiny", "warm*0.5+formal"] {
        bodies.push((
            "/generate",
            json!({"prompt": "Hi", "user_type": who, "max_new_tokens": 2}),
        ));
    }
    let talk = json!([{"role": "user", "content": "Hi"}]);
    for logprobs in [false, true] {
        let chat =
            json!({"model": "warm", "messages": talk, "max_tokens": 2, "logprobs": logprobs});
        bodies.push(("/v1/chat/completions", chat));
    }
    bodies.push((
        "/v1/completions",
        json!({"model": "tiny", "prompt": "Hi", "max_tokens": 2, "n": 2}),
    ));
    for (path, body) in bodies {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        check("post", path, "200", &reply.json());
        check(
            "post",
            path,
            "default",
            &server.post(path, &json!({})).json(),
        );
    }
}

#[test]
fn persona_responses_match_the_openapi_document() {
    let home = RegistryHome::new();
    let server = TestServer::start(home.state(true));
    let document = server.get("/openapi.json").json();
    let send = |method: &str, path: &str, body: Value| {
        let headers = [("Content-Type", "application/json")];
        let body = body.to_string();
        server
            .send(method, path, &headers, body.as_bytes())
            .read_all()
    };
    let settings = json!({"system_prompt": "You serve {{shop}} {{tier}}.", "sampling": {"top_k": 4}, "stop": ["."],
        "variables": {"shop": "a shop", "tier": {"required": true}}, "description": "d", "max_new_tokens": 3});
    let first = json!({"adapter_path": "a21", "settings": settings});
    for (method, path, called, body) in [
        (
            "POST",
            "/v1/personas/{name}/versions",
            "/v1/personas/x/versions",
            first,
        ),
        (
            "POST",
            "/v1/personas/{name}/versions",
            "/v1/personas/x/versions",
            json!({"adapter_path": "a22"}),
        ),
        (
            "POST",
            "/v1/personas/{name}/rollback",
            "/v1/personas/x/rollback",
            json!({}),
        ),
        (
            "PUT",
            "/v1/personas/{name}/canary",
            "/v1/personas/x/canary",
            json!({"version": 2, "percent": 5}),
        ),
        (
            "PUT",
            "/v1/personas/{name}/shadow",
            "/v1/personas/x/shadow",
            json!({"version": 2, "percent": 5}),
        ),
        (
            "PUT",
            "/v1/persona_aliases/{alias}",
            "/v1/persona_aliases/y",
            json!({"target": "x@2"}),
        ),
        ("GET", "/v1/personas", "/v1/personas", json!({})),
        ("GET", "/v1/personas/{name}", "/v1/personas/x", json!({})),
        ("GET", "/v1/personas/{name}", "/v1/personas/warm", json!({})),
        ("GET", "/v1/personas/{name}", "/v1/personas/x@2", json!({})),
        (
            "GET",
            "/v1/personas/{name}/versions",
            "/v1/personas/x/versions",
            json!({}),
        ),
        (
            "GET",
            "/v1/personas/{name}/versions",
            "/v1/personas/warm/versions",
            json!({}),
        ),
        (
            "POST",
            "/v1/votes",
            "/v1/votes",
            json!({"a": "x@1", "b": "x@2", "winner": "a"}),
        ),
        ("GET", "/v1/votes", "/v1/votes", json!({})),
        ("GET", "/v1/evaluations", "/v1/evaluations", json!({})),
        (
            "GET",
            "/v1/personas/{name}/history",
            "/v1/personas/x/history",
            json!({}),
        ),
        (
            "POST",
            "/v1/registry/verify",
            "/v1/registry/verify",
            json!({}),
        ),
        (
            "POST",
            "/v1/registry/gc",
            "/v1/registry/gc",
            json!({"dry_run": true}),
        ),
        ("GET", "/v1/lora_adapters", "/v1/lora_adapters", json!({})),
        (
            "DELETE",
            "/v1/persona_aliases/{alias}",
            "/v1/persona_aliases/y",
            json!({}),
        ),
        (
            "DELETE",
            "/v1/personas/{name}/shadow",
            "/v1/personas/x/shadow",
            json!({}),
        ),
        (
            "DELETE",
            "/v1/personas/{name}/canary",
            "/v1/personas/x/canary",
            json!({}),
        ),
        (
            "DELETE",
            "/v1/personas/{name}",
            "/v1/personas/x@2",
            json!({}),
        ),
        ("DELETE", "/v1/personas/{name}", "/v1/personas/x", json!({})),
    ] {
        let reply = send(method, called, body);
        assert!(reply.status < 300, "{method} {called}: {}", reply.text);
        let answer = &document["paths"][path][method.to_lowercase()]["responses"];
        let schema = &answer[reply.status.to_string()]["content"]["application/json"]["schema"];
        let found = complaints(&document, schema, &reply.json(), path);
        assert!(
            !schema.is_null() && found.is_empty(),
            "{method} {called}: {found:?} in {}",
            reply.text
        );
    }
}

#[test]
fn docs_page_loads_nothing_from_other_servers() {
    let reply = shared_server().get("/docs");
    assert_eq!(reply.status, 200);
    assert!(
        reply
            .header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert!(
        !reply.text.contains("//cdn")
            && !reply.text.contains("http://")
            && !reply.text.contains("https://")
    );
}
