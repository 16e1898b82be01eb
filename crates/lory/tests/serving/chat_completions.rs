//! `/v1/chat/completions` and `/v1/models`: OpenAI's wire format.

use serde_json::{Value, json};
use testkit::home::BASE;

use crate::setup::shared_server;

fn ask(model: &str, content: Value) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 16})
}

fn chat(body: &Value) -> Value {
    let reply = shared_server().post("/v1/chat/completions", body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn chat_returns_the_text_of_generate_in_openais_format() {
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

    let same = shared_server()
        .generate(json!({"prompt": "Hello!", "user_type": "warm", "max_new_tokens": 16}));
    assert_eq!(same["response"], content(&answer));
}

#[test]
fn stream_has_role_text_finish_reason_and_usage() {
    let mut body = ask("formal", json!("Hello!"));
    let whole = chat(&body);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = shared_server().events("/v1/chat/completions", &body);
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
    // The prompt was sent before, so it is in the prefix cache.
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
    let events = shared_server().events("/v1/chat/completions", &body);
    assert!(events.iter().all(|event| !event.contains("usage")));
    assert_eq!(events.len(), chunks.len());
}

#[test]
fn text_parts_are_concatenated() {
    let parts = json!([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]);
    assert_eq!(
        content(&chat(&ask("warm", parts))),
        content(&chat(&ask("warm", json!("Hello!"))))
    );
}

#[test]
fn system_message_replaces_the_personas_system_prompt() {
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
fn fields_at_their_default_values_are_accepted() {
    let plain = ask("warm", json!("Hello!"));
    let mut body = plain.clone();
    for (key, value) in [
        ("n", json!(1)),
        ("user", json!("someone")),
        ("metadata", json!({"a": "b"})),
        ("logprobs", json!(false)),
        ("logit_bias", json!({})),
        ("store", json!(false)),
        ("service_tier", json!("auto")),
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
fn frequency_penalty_changes_the_answer() {
    let mut body = ask("warm", json!("Hello!"));
    body["max_tokens"] = json!(60);
    let plain = chat(&body);
    body["frequency_penalty"] = json!(2);
    assert_ne!(content(&chat(&body)), content(&plain));
}

#[test]
fn logprobs_are_returned_for_each_token() {
    let mut body = ask("warm", json!("Hello!"));
    let plain = chat(&body);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    let answer = chat(&body);
    assert_eq!(content(&answer), content(&plain));
    assert_eq!(plain["choices"][0]["logprobs"], Value::Null);
    let tokens = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(tokens.len(), 16);
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap().clone())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), content(&answer));
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"]), (2, &token["token"]));
        assert!(top[0]["logprob"].as_f64() > top[1]["logprob"].as_f64());
    }
    let streamed: Vec<Value> = shared_server()
        .events("/v1/chat/completions", &body)
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|chunk| {
            chunk["choices"][0]["logprobs"]["content"]
                .as_array()
                .cloned()
        })
        .flatten()
        .collect();
    assert_eq!(streamed, tokens);

    // Tokens that a stop string removes have no logprobs.
    let text = content(&answer).to_owned();
    let cut: String = text.chars().skip(6).take(3).collect();
    body["stop"] = json!(cut);
    let stopped = chat(&body);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let shown = content(&stopped);
    assert!(text.starts_with(shown) && shown.len() < text.len());
    let listed = stopped["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(listed[..], tokens[..listed.len()]);
    let listed: usize = listed
        .iter()
        .map(|token| token["bytes"].as_array().unwrap().len())
        .sum();
    assert!(
        listed >= shown.len() && listed < shown.len() + 4,
        "{listed} for {shown:?}"
    );
}

#[test]
fn each_of_n_choices_has_its_own_seed() {
    let mut body = ask("warm", json!("Hello!"));
    body["temperature"] = json!(1);
    body["seed"] = json!(11);
    let alone = chat(&body);
    body["n"] = json!(4);
    let answer = chat(&body);
    assert_eq!(chat(&body)["choices"], answer["choices"]);
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<&Value> = choices.iter().map(|c| &c["message"]["content"]).collect();
    assert_eq!(texts[0], content(&alone));
    for (i, text) in texts.iter().enumerate() {
        assert!(!texts[i + 1..].contains(text));
    }
    let count = |answer: &Value, key: &str| answer["usage"][key].as_u64().unwrap();
    assert_eq!(
        count(&answer, "prompt_tokens"),
        count(&alone, "prompt_tokens")
    );
    assert_eq!(count(&answer, "completion_tokens"), 64);

    let mut streamed = vec![String::new(); 4];
    let mut roles = [0; 4];
    for event in shared_server().events("/v1/chat/completions", &body) {
        let Ok(chunk) = serde_json::from_str::<Value>(&event) else {
            continue;
        };
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        roles[index] += usize::from(choice["delta"]["role"] == "assistant");
        streamed[index] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(roles, [1; 4]);
    for (text, streamed) in texts.iter().zip(&streamed) {
        assert_eq!(*text, streamed);
    }
}

#[test]
fn system_fingerprint_names_base_and_adapters() {
    let fingerprint = |model: &str| {
        let answer = chat(&ask(model, json!("Hello!")));
        answer["system_fingerprint"].as_str().unwrap().to_owned()
    };
    assert_eq!(fingerprint(BASE), BASE);
    let [warm, formal, both] = ["warm", "formal", "warm*0.5+formal"].map(fingerprint);
    assert!(warm.starts_with("tiny+") && warm.ends_with("*1"), "{warm}");
    assert!(formal.ends_with("*0.5"), "{formal}");
    assert_eq!(both.matches('+').count(), 2);
    let hash = |fingerprint: &str| fingerprint[5..17].to_owned();
    assert_eq!(hash(&both), hash(&warm));
    assert_ne!(hash(&formal), hash(&warm));
}

#[test]
fn embeddings_are_rejected_by_name() {
    let reply = shared_server().post("/v1/embeddings", &json!({"model": BASE, "input": "Hi"}));
    let (status, code, _, message) = reply.error();
    assert_eq!((status, code.as_str()), (400, "unsupported_endpoint"));
    assert!(
        message.starts_with("embeddings are not supported"),
        "{message}"
    );
}

#[test]
fn unsupported_field_is_rejected_by_name() {
    let refused = |key: &str, value: Value| {
        let mut body = ask("warm", json!("Hello!"));
        body[key] = value;
        let (status, _, param, message) =
            shared_server().post("/v1/chat/completions", &body).error();
        assert_eq!(status, 400, "{message}");
        assert!(message.contains(param.as_str().unwrap()), "{message}");
        param.as_str().unwrap().to_owned()
    };
    for (key, value) in [
        ("n", json!(0)),
        ("n", json!(9)),
        ("store", json!(true)),
        ("top_logprobs", json!(1)),
        ("logit_bias", json!({"5": -101})),
        ("functions", json!([{"name": "f"}])),
        ("audio", json!({})),
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
        message(json!({"role": "robot", "content": "x"})),
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
fn conversations_of_other_servers_are_answered() {
    let plain = json!([
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "here"},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "Thanks"},
    ]);
    let answer = |messages: &Value| {
        let body = json!({"model": "warm", "messages": messages, "max_tokens": 8});
        content(&chat(&body)).to_owned()
    };
    let expected = answer(&plain);
    for arguments in [json!(""), json!(" "), json!(null), json!({}), json!("{}")] {
        let mut messages = plain.clone();
        messages[0]["content"] = json!([{"type": "text", "text": "Where is it?", "cache_control": {"type": "ephemeral"}}]);
        messages[1] = json!({
            "id": "m1", "role": "assistant", "content": null, "refusal": null, "annotations": [],
            "audio": null, "function_call": null, "reasoning_content": "hm",
            "provider_specific_fields": {"a": 1},
            "tool_calls": [{
                "id": "c1", "index": 0, "type": "function", "extra_content": {"google": {}},
                "function": {"name": "f", "arguments": arguments, "strict": false},
            }],
        });
        messages[2]["tool_call_id"] = json!("c1");
        messages[3]["cache_control"] = json!({"type": "ephemeral"});
        assert_eq!(answer(&messages), expected);
        // OpenAI's older form.
        messages[1] = json!({
            "role": "assistant", "content": null,
            "function_call": {"name": "f", "arguments": arguments},
        });
        assert_eq!(answer(&messages), expected);
    }
}

#[test]
fn fields_of_other_servers_are_accepted_with_the_value_that_changes_nothing() {
    let expected = chat(&ask("warm", json!("Hello!")));
    for (field, neutral, other) in [
        ("add_generation_prompt", json!(true), json!(false)),
        ("add_special_tokens", json!(false), json!(true)),
        ("best_of", json!(1), json!(2)),
        (
            "chat_template_kwargs",
            json!({}),
            json!({"enable_thinking": false}),
        ),
        ("continue_final_message", json!(false), json!(true)),
        ("documents", json!(null), json!([{"text": "x"}])),
        ("echo", json!(false), json!(true)),
        ("extra_body", json!({}), json!({"top_k": 3})),
        ("include_stop_str_in_output", json!(false), json!(true)),
        ("skip_special_tokens", json!(true), json!(false)),
        ("use_beam_search", json!(false), json!(true)),
        ("min_tokens", json!(0), json!(5)),
        ("length_penalty", json!(1.0), json!(2)),
        ("stop_token_ids", json!([]), json!([3])),
        ("bad_words", json!([]), json!(["x"])),
        ("early_stopping", json!(false), json!("never")),
        ("return_token_ids", json!(null), json!(true)),
        ("return_tokens_as_token_ids", json!(false), json!(true)),
        ("spaces_between_special_tokens", json!(true), json!("x")),
        ("cache_prompt", json!(true), json!(1)),
    ] {
        let mut body = ask("warm", json!("Hello!"));
        body[field] = neutral;
        assert_eq!(content(&chat(&body)), content(&expected), "{field}");
        body[field] = other;
        let (status, _, param, message) =
            shared_server().post("/v1/chat/completions", &body).error();
        assert_eq!((status, &param), (400, &json!(field)), "{message}");
    }
    let mut body = ask("warm", json!("Hello!"));
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let events = shared_server().events("/v1/chat/completions", &body);
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[test]
fn models_lists_the_base_and_the_personas() {
    let reply = shared_server().get("/v1/models");
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
