//! `/generate`: whole responses and streams.

use serde_json::{Value, json};
use testkit::home::BASE;

use crate::setup::shared_server;

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn response_has_the_documented_fields() {
    let server = shared_server();
    let answer = server.generate(
        json!({"prompt": "Where is order #12345?", "user_type": "formal", "max_new_tokens": 12}),
    );
    assert_eq!(
        keys(&answer),
        [
            "response",
            "user_type",
            "persona",
            "finish_reason",
            "usage",
            "timings"
        ]
    );
    assert_eq!(answer["user_type"], "formal");
    assert_eq!(answer["finish_reason"], "length");
    let persona = &answer["persona"];
    assert_eq!(keys(persona), ["name", "version", "adapters"]);
    assert_eq!(
        (&persona["name"], &persona["version"]),
        (&json!("formal"), &json!(2))
    );
    assert_eq!(persona["adapters"].as_array().unwrap().len(), 1);
    assert_eq!(persona["adapters"][0]["scale"], 0.5);
    assert_eq!(persona["adapters"][0]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 20);
    let timings = &answer["timings"];
    let ms = |key: &str| timings[key].as_f64().unwrap();
    assert!(ms("queue_ms") >= 0.0);
    assert!(ms("first_token_ms") >= ms("queue_ms"));
    assert!(ms("total_ms") >= ms("first_token_ms"));
}

#[test]
fn personas_differ_and_are_deterministic() {
    let server = shared_server();
    let say = |who: &str| {
        let body = json!({"prompt": "Hello!", "user_type": who, "max_new_tokens": 24});
        server.generate(body)["response"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let answers: Vec<String> = [BASE, "warm", "formal", "warm*0.7+formal*0.6", "warm*0.3"]
        .map(say)
        .to_vec();
    for (i, text) in answers.iter().enumerate() {
        assert!(!answers[..i].contains(text), "{answers:?}");
    }
    assert_eq!(say("warm"), answers[1]);
    assert_eq!(say("warm@1"), answers[1]);
    assert_eq!(say("warm*1.0"), answers[1]);
    assert_eq!(say("base"), answers[0]);
}

#[test]
fn blend_lists_its_adapters_and_uses_the_settings_of_the_larger_scale() {
    let server = shared_server();
    let spec = "warm*0.25+formal*1.5";
    let answer = server.generate(json!({"prompt": "Hello!", "user_type": spec}));
    assert_eq!(answer["persona"]["name"], spec);
    assert!(answer["persona"]["version"].is_null());
    let scales: Vec<&Value> = answer["persona"]["adapters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|adapter| &adapter["scale"])
        .collect();
    // The scale is the weight in the request times the persona's scale.
    assert_eq!(scales, [&json!(0.25), &json!(0.75)]);
    // `formal` has the larger scale, so its max_new_tokens applies.
    assert_eq!(answer["usage"]["completion_tokens"], 20);
}

#[test]
fn input_is_appended_to_the_prompt_as_in_training() {
    let server = shared_server();
    let split =
        server.generate(json!({"prompt": "Answer.", "input": "It is #77.", "user_type": "warm"}));
    let joined = server.generate(json!({"prompt": "Answer.\n\nIt is #77.", "user_type": "warm"}));
    assert_eq!(split["response"], joined["response"]);
    assert_eq!(split["usage"], joined["usage"]);
}

#[test]
fn seed_makes_sampling_repeatable() {
    let server = shared_server();
    let say = |seed: u64| {
        let body = json!({"prompt": "Hi", "user_type": "warm", "temperature": 1.0, "top_p": 0.95, "top_k": 50,
            "seed": seed, "max_new_tokens": 30});
        server.generate(body)["response"].clone()
    };
    assert_eq!(say(7), say(7));
    assert_ne!(say(7), say(8));
}

#[test]
fn stop_string_ends_the_answer_and_is_removed() {
    let server = shared_server();
    let ask = |stop: Value| {
        server.generate(
            json!({"prompt": "Hi", "user_type": "warm", "max_new_tokens": 40, "stop": stop}),
        )
    };
    let whole = ask(json!([]));
    let text = whole["response"].as_str().unwrap();
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[12..15].iter().collect();
    let stopped = ask(json!(stop));
    let before = text.split(&stop).next().unwrap();
    assert_eq!(stopped["response"], before);
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(
        stopped["usage"]["completion_tokens"].as_u64()
            < whole["usage"]["completion_tokens"].as_u64()
    );
    assert_eq!(ask(json!(["never this", stop]))["response"], before);
}

#[test]
fn stream_has_the_same_answer_as_the_whole_response() {
    let server = shared_server();
    for stop in [json!([]), json!(["e"])] {
        let body = json!({"prompt": "Tell me.", "user_type": "formal", "max_new_tokens": 30, "stop": stop});
        let mut whole = server.generate(body.clone());
        let events = server.events("/generate", &body);
        let mut events: Vec<Value> = events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        let mut last = events.pop().unwrap();
        let mut text = String::new();
        for event in &events {
            assert_eq!(keys(event), ["delta"]);
            let delta = event["delta"].as_str().unwrap();
            assert!(!delta.is_empty());
            text += delta;
        }
        assert_eq!(whole["response"], text);
        whole.as_object_mut().unwrap().shift_remove("response");
        assert_eq!(keys(&last), keys(&whole));
        last["timings"] = Value::Null;
        whole["timings"] = Value::Null;
        assert_eq!(last, whole);
    }
}

#[test]
fn user_text_never_becomes_a_control_token() {
    let server = shared_server();
    let tokens = |prompt: &str| {
        let answer =
            server.generate(json!({"prompt": prompt, "user_type": "warm", "max_new_tokens": 1}));
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    // As text it takes many tokens of the tiny vocabulary; as a control token it would take one.
    assert!(tokens("a<|im_end|>b") >= tokens("ab") + 5);
}

#[test]
fn max_new_tokens_defaults_to_the_rest_of_the_context() {
    let server = shared_server();
    let prompt = "x ".repeat(205);
    let answer = server.generate(json!({"prompt": prompt, "user_type": BASE}));
    let usage = &answer["usage"];
    let (before, new) = (
        usage["prompt_tokens"].as_u64().unwrap(),
        usage["completion_tokens"].as_u64().unwrap(),
    );
    assert_eq!(before + new, 512);
    assert!(new < 128);
}
