//! Invalid requests: the error names the field, and the server continues to serve.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use crate::setup::shared_server;

#[test]
fn invalid_request_is_rejected_by_field_name() {
    let server = shared_server();
    let long = "word ".repeat(600);
    let cases = [
        (
            json!({"user_type": "nobody"}),
            404,
            "persona_not_found",
            "user_type",
            "formal, warm; the base is tiny",
        ),
        (
            json!({"user_type": "warm@9"}),
            404,
            "persona_not_found",
            "user_type",
            "only version 1",
        ),
        (
            json!({"user_type": "warm+nobody"}),
            404,
            "persona_not_found",
            "user_type",
            "`nobody`",
        ),
        (
            json!({"user_type": "warm*x"}),
            400,
            "invalid_persona",
            "user_type",
            "at character 6",
        ),
        (
            json!({"user_type": " "}),
            400,
            "invalid_persona",
            "user_type",
            "empty",
        ),
        (
            json!({"user_type": 3}),
            400,
            "invalid_type",
            "user_type",
            "expected a string",
        ),
        (
            json!({"prompt": ""}),
            400,
            "empty_prompt",
            "prompt",
            "empty",
        ),
        (
            json!({"prompt": " \n\t"}),
            400,
            "empty_prompt",
            "prompt",
            "empty",
        ),
        (
            json!({"prompt": ["a"]}),
            400,
            "invalid_type",
            "prompt",
            "expected a string",
        ),
        (
            json!({"prompt": null}),
            400,
            "invalid_type",
            "prompt",
            "expected a string",
        ),
        (
            json!({"prompt": long}),
            400,
            "context_length_exceeded",
            "prompt",
            "512",
        ),
        (
            json!({"input": long}),
            400,
            "context_length_exceeded",
            "prompt",
            "512",
        ),
        (
            json!({"max_new_tokens": 0}),
            400,
            "invalid_value",
            "max_new_tokens",
            "at least 1",
        ),
        (
            json!({"max_new_tokens": -1}),
            400,
            "invalid_value",
            "max_new_tokens",
            "-1",
        ),
        (
            json!({"max_new_tokens": 1.5}),
            400,
            "invalid_type",
            "max_new_tokens",
            "whole number",
        ),
        (
            json!({"max_new_tokens": "many"}),
            400,
            "invalid_type",
            "max_new_tokens",
            "many",
        ),
        (
            json!({"max_new_tokens": 512}),
            400,
            "context_length_exceeded",
            "max_new_tokens",
            "at most",
        ),
        (
            json!({"temperature": 2.1}),
            400,
            "invalid_value",
            "temperature",
            "from 0 to 2",
        ),
        (
            json!({"temperature": -0.1}),
            400,
            "invalid_value",
            "temperature",
            "from 0 to 2",
        ),
        (
            json!({"temperature": 1e300}),
            400,
            "invalid_value",
            "temperature",
            "",
        ),
        (
            json!({"temperature": "hot"}),
            400,
            "invalid_type",
            "temperature",
            "expected a number",
        ),
        (
            json!({"top_p": 0}),
            400,
            "invalid_value",
            "top_p",
            "above 0",
        ),
        (
            json!({"top_p": 1.01}),
            400,
            "invalid_value",
            "top_p",
            "at most 1",
        ),
        (json!({"top_k": -2}), 400, "invalid_value", "top_k", "-2"),
        (json!({"seed": -1}), 400, "invalid_value", "seed", "-1"),
        (
            json!({"stop": ["a", "b", "c", "d", "e"]}),
            400,
            "invalid_value",
            "stop",
            "at most 4",
        ),
        (
            json!({"stop": [""]}),
            400,
            "invalid_value",
            "stop[0]",
            "from 1",
        ),
        (
            json!({"stop": ["a", 5]}),
            400,
            "invalid_type",
            "stop[1]",
            "expected a string",
        ),
        (
            json!({"stop": {"a": 1}}),
            400,
            "invalid_type",
            "stop",
            "a text or a list",
        ),
        (
            json!({"stream": "yes"}),
            400,
            "invalid_type",
            "stream",
            "boolean",
        ),
        (
            json!({"colour": "red"}),
            400,
            "unknown_field",
            "colour",
            "expected one of",
        ),
    ];
    for (change, status, code, param, message_part) in cases {
        let mut body = json!({"prompt": "Hello!", "user_type": "warm"});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let found = server.post("/generate", &body).error();
        let message = &found.3;
        assert_eq!(
            (found.0, found.1.as_str()),
            (status, code),
            "{change}: {message}"
        );
        assert_eq!(found.2, param, "{message}");
        assert!(message.contains(message_part), "{message}");
        assert!(
            message.contains(param.split('[').next().unwrap()),
            "{message}"
        );
        // A streaming request is rejected with a status, before the stream begins.
        body["stream"] = body.get("stream").cloned().unwrap_or(json!(true));
        assert_eq!(server.post("/generate", &body).error().0, status);
    }
    for missing in ["prompt", "user_type"] {
        let mut body = json!({"prompt": "Hello!", "user_type": "warm"});
        body.as_object_mut().unwrap().shift_remove(missing);
        let (status, code, param, _) = server.post("/generate", &body).error();
        assert_eq!(
            (status, code.as_str(), param),
            (400, "missing_field", json!(missing))
        );
    }
    server.generate(json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 1}));
}

#[test]
fn invalid_json_is_rejected_with_line_and_column() {
    let server = shared_server();
    let refused = |body: &[u8]| server.post_bytes("/generate", body).error();
    let (status, code, _, message) = refused(b"{\"prompt\": \"a\",\n  oops}");
    assert_eq!((status, code.as_str()), (400, "invalid_json"));
    assert!(message.contains("line 2 column 3"), "{message}");
    assert_eq!(refused(b"").1, "invalid_json");
    assert_eq!(refused(b"{\"prompt\": \"\xff\"}").1, "invalid_json");
    assert_eq!(refused(b"[]").0, 400);
    let deep = "[".repeat(100_000);
    assert_eq!(refused(format!("{{\"prompt\":{deep}").as_bytes()).0, 400);
    let deep = format!("{{\"model\": \"warm\", \"messages\": [], \"tools\": {deep}");
    assert_eq!(
        server
            .post_bytes("/v1/chat/completions", deep.as_bytes())
            .error()
            .0,
        400
    );
}

#[test]
fn too_large_body_is_rejected_with_the_limit() {
    let server = shared_server();
    let body = json!({"prompt": "x".repeat(5 << 20), "user_type": "warm"});
    let (status, code, _, message) = server.post("/generate", &body).error();
    assert_eq!((status, code.as_str()), (413, "request_too_large"));
    assert!(message.contains("4194304"), "{message}");
    // A body whose announced length is too large is refused before it arrives.
    let mut stream = server.connect();
    let head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 413");
}

#[test]
fn unknown_media_types_routes_and_methods_get_json_errors() {
    let server = shared_server();
    let body = json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 1}).to_string();
    let with = |content_type: &str| {
        server
            .send(
                "POST",
                "/generate",
                &[("Content-Type", content_type)],
                body.as_bytes(),
            )
            .read_all()
    };
    assert_eq!(with("application/json; charset=utf-8").status, 200);
    let (status, code, _, message) = with("application/x-www-form-urlencoded").error();
    assert_eq!((status, code.as_str()), (415, "unsupported_media_type"));
    assert!(message.contains("application/json"), "{message}");

    for path in ["/studio", "/nothing", "/v1", "/generate/"] {
        let (status, code, param, _) = server.get(path).error();
        assert_eq!(
            (status, code.as_str(), param),
            (404, "not_found", Value::Null),
            "{path}"
        );
    }
    let reply = server.get("/generate");
    let (status, code, ..) = reply.error();
    assert_eq!((status, code.as_str()), (405, "method_not_allowed"));
    assert_eq!(reply.header("allow"), Some("POST"));
    assert_eq!(server.post("/health", &json!({})).status, 405);
}
