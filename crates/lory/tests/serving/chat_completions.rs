//! `/v1/chat/completions` and `/v1/models`: OpenAI's wire format.

use serde_json::{Value, json};

use crate::scene::{BASE, Server};

fn ask(model: &str, content: Value) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 16})
}

fn chat(body: &Value) -> Value {
    let reply = Server::shared().post("/v1/chat/completions", body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn the_answer_is_that_of_generate_in_openais_shape() {
    let answer = chat(&ask("warm", json!("Hello!")));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "warm");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["index"], &choice["finish_reason"]),
        (&json!(0), &json!("length"))
    );
    assert_eq!(choice["message"]["role"], "assistant");
    let usage = &answer["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(count("completion_tokens"), 16);
    assert_eq!(count("total_tokens"), count("prompt_tokens") + 16);

    let same = Server::shared()
        .generate(json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 16}));
    assert_eq!(same["response"], content(&answer));
}

#[test]
fn a_stream_carries_role_text_reason_and_usage() {
    let mut body = ask("formal", json!("Hello!"));
    let whole = chat(&body);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = Server::shared().events("/v1/chat/completions", &body);
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, content(&whole));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., last, usage] = chunks.as_slice() else {
        panic!("{chunks:?}")
    };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(usage["choices"], json!([]));
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage["usage"][key], whole["usage"][key], "{key}");
    }
    // The prompt has just been asked.
    let cached = &usage["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().unwrap() > 0, "{cached}");
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk.get("usage").is_some());
    }
    for chunk in &chunks[..chunks.len() - 1] {
        assert!(chunk["usage"].is_null());
    }

    body.as_object_mut().unwrap().shift_remove("stream_options");
    let events = Server::shared().events("/v1/chat/completions", &body);
    assert!(events.iter().all(|event| !event.contains("usage")));
    assert_eq!(events.len(), chunks.len());
}

#[test]
fn parts_of_text_are_one_text() {
    let parts = json!([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]);
    assert_eq!(
        content(&chat(&ask("warm", parts))),
        content(&chat(&ask("warm", json!("Hello!"))))
    );
}

#[test]
fn a_system_turn_replaces_the_personas_own() {
    let with = |system: Option<(&str, &str)>| {
        let mut body = ask("warm", json!("Hello!"));
        if let Some((role, system)) = system {
            let turn = json!({"role": role, "content": system});
            body["messages"].as_array_mut().unwrap().insert(0, turn);
        }
        let answer = chat(&body);
        (
            content(&answer).to_owned(),
            answer["usage"]["prompt_tokens"].clone(),
        )
    };
    let own = with(None);
    assert_eq!(with(Some(("system", "You are warm."))), own);
    assert_eq!(with(Some(("developer", "You are warm."))), own);
    assert_ne!(
        with(Some(("system", "You are a very different system prompt."))).1,
        own.1
    );
}

#[test]
fn settings_that_mean_nothing_are_taken() {
    let plain = ask("warm", json!("Hello!"));
    let mut body = plain.clone();
    for (key, value) in [
        ("n", json!(1)),
        ("user", json!("someone")),
        ("metadata", json!({"a": "b"})),
        ("logprobs", json!(false)),
        ("tools", json!([])),
        ("response_format", json!({"type": "text"})),
        ("frequency_penalty", json!(0)),
        ("presence_penalty", json!(0.0)),
        ("top_p", json!(1)),
        ("temperature", json!(0)),
        ("stop", Value::Null),
        ("seed", json!(-3)),
        ("stream", json!(false)),
    ] {
        body[key] = value;
    }
    assert_eq!(content(&chat(&body)), content(&chat(&plain)));
}

#[test]
fn penalties_change_the_answer() {
    let mut body = ask("warm", json!("Hello!"));
    body["max_tokens"] = json!(60);
    let plain = chat(&body);
    body["frequency_penalty"] = json!(2);
    assert_ne!(content(&chat(&body)), content(&plain));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = |key: &str, value: Value| {
        let mut body = ask("warm", json!("Hello!"));
        body[key] = value;
        let (status, _, param, message) =
            Server::shared().post("/v1/chat/completions", &body).error();
        assert_eq!(status, 400, "{message}");
        assert!(message.contains(param.as_str().unwrap()), "{message}");
        param.as_str().unwrap().to_owned()
    };
    for (key, value) in [
        ("n", json!(2)),
        ("tools", json!([{"type": "function"}])),
        ("logprobs", json!(true)),
        ("response_format", json!({"type": "json_object"})),
        ("logit_bias", json!({"5": 1})),
        ("stream_options", json!({"include_usage": true})),
        ("max_completion_tokens", json!(4)),
        ("frequency_penalty", json!(3)),
        ("colour", json!("red")),
        ("top_p", json!(0)),
    ] {
        let named = refused(key, value);
        assert!(named == key || (key, named.as_str()) == ("max_completion_tokens", "max_tokens"));
    }
    let message = |message: Value| refused("messages", json!([message]));
    assert_eq!(
        message(json!({"role": "tool", "content": "x"})),
        "messages[0].role"
    );
    assert_eq!(message(json!({"role": "user"})), "messages[0].content");
    assert_eq!(
        message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
        "messages[0].content"
    );
    assert_eq!(refused("messages", json!([])), "messages");
    assert_eq!(refused("max_tokens", json!(100_000)), "max_tokens");
}

#[test]
fn models_are_the_base_and_the_personas() {
    let reply = Server::shared().get("/v1/models");
    assert_eq!(reply.status, 200);
    let list = reply.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| {
            assert_eq!(model["object"], "model");
            assert!(model["created"].is_u64() && model["owned_by"].is_string());
            &model["id"]
        })
        .collect();
    assert_eq!(ids, [BASE, "formal", "warm"]);
}
