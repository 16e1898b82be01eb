//! `/v1/completions`: text or token ids that the model goes on with.

use serde_json::{Value, json};

use crate::scene::{BASE, Server};

const PATH: &str = "/v1/completions";

fn complete(body: &Value) -> Value {
    let reply = Server::shared().post(PATH, body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn a_text_goes_on_without_a_template() {
    let answer = complete(&json!({"model": BASE, "prompt": "Hello", "temperature": 0}));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], BASE);
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["logprobs"], Value::Null);
    let count = |key: &str| answer["usage"][key].as_u64().unwrap();
    let chat = json!({"model": BASE, "messages": [{"role": "user", "content": "Hello"}]});
    let chat = Server::shared().post("/v1/chat/completions", &chat).json();
    assert!(count("prompt_tokens") < chat["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
}

#[test]
fn a_persona_answers_in_its_adapter_and_without_its_system_prompt() {
    let ask = |model: &str| {
        let body =
            json!({"model": model, "prompt": [5, 6, 7, 8], "max_tokens": 24, "ignore_eos": true});
        let answer = complete(&body);
        assert_eq!(answer["usage"]["prompt_tokens"], 4);
        assert_eq!(answer["usage"]["completion_tokens"], 24);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        text(&answer).to_owned()
    };
    let [base, warm] = [BASE, "warm"].map(ask);
    assert_ne!(base, warm);
    assert_eq!(ask("warm"), warm);
    assert_ne!(ask("warm*0.5+formal*0.5"), warm);
}

#[test]
fn sixteen_tokens_unless_asked_otherwise() {
    let body = json!({"model": BASE, "prompt": [5, 6], "ignore_eos": true});
    assert_eq!(complete(&body)["usage"]["completion_tokens"], 16);
}

#[test]
fn a_stream_says_what_the_whole_does() {
    let mut body =
        json!({"model": "warm", "prompt": [9, 4, 7], "max_tokens": 20, "ignore_eos": true});
    let whole = complete(&body);
    let plain = Server::shared().events(PATH, &body);
    assert!(plain.iter().all(|event| !event.contains("usage")));
    body["stream_options"] = json!({"include_usage": true});
    let mut events = Server::shared().events(PATH, &body);
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let [texts @ .., last, usage] = chunks.as_slice() else {
        panic!("{chunks:?}")
    };
    assert_eq!(texts.iter().map(text).collect::<String>(), text(&whole));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], whole["usage"]);
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let refused = |key: &str, value: Value| {
        let mut body = json!({"model": BASE, "prompt": "Hello"});
        body[key] = value;
        let (status, _, param, message) = Server::shared().post(PATH, &body).error();
        assert_eq!(param, key, "{message}");
        (status, message)
    };
    for (key, value) in [
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", json!([1, 4_000_000_000_u32])),
        ("prompt", json!([-1])),
        ("prompt", json!(["two", "prompts"])),
        ("n", json!(2)),
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("logprobs", json!(1)),
        ("logit_bias", json!({"5": 1})),
        ("suffix", json!("x")),
        ("stream_options", json!({"include_usage": true})),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(100_000)),
        ("colour", json!("red")),
    ] {
        let (status, message) = refused(key, value.clone());
        assert_eq!(status, 400, "{key} {value}: {message}");
    }
    let (status, message) = refused("model", json!("cheerful"));
    assert_eq!(status, 404);
    assert!(message.contains("warm") && message.contains("formal"));
}
