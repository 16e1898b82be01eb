//! The document beside what the server does: real answers have the shapes that it gives them.

use serde_json::{Value, json};

use crate::scene::Server;

/// What of `value` is not as `schema` says, with its path.
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
                match schema["properties"].get(name) {
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
fn answers_are_as_the_document_says() {
    let server = Server::shared();
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
fn the_page_asks_nobody_but_this_server() {
    let reply = Server::shared().get("/docs");
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
