//! `/v1/completions`: the model continues text or token ids.

use serde_json::{Value, json};

use service::Settings;
use testkit::home::BASE;
use testkit::server::TestServer;

use crate::setup::{self, shared_server};

const PATH: &str = "/v1/completions";

fn complete(body: &Value) -> Value {
    let reply = shared_server().post(PATH, body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn completion_uses_no_chat_template() {
    let answer = complete(&json!({"model": BASE, "prompt": "Hello", "temperature": 0}));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], BASE);
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(answer["system_fingerprint"], BASE);
    let count = |key: &str| answer["usage"][key].as_u64().unwrap();
    let chat = json!({"model": BASE, "messages": [{"role": "user", "content": "Hello"}]});
    let chat = shared_server().post("/v1/chat/completions", &chat).json();
    assert!(count("prompt_tokens") < chat["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
}

#[test]
fn completion_uses_the_personas_adapter_and_not_its_system_prompt() {
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
fn character_that_max_tokens_cuts_is_left_out() {
    // The first byte of an emoji; bytes follow the three control tokens.
    let first = (3 + 0xf0u32).to_string();
    let mut body = json!({"model": BASE, "prompt": [5, 6], "max_tokens": 1, "logit_bias": {first: 100}, "logprobs": 0});
    let answer = complete(&body);
    assert_eq!(text(&answer), "");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 1);
    body["stream"] = json!(true);
    let events = shared_server().events(PATH, &body).concat();
    assert!(
        !events.contains('\u{fffd}') && !events.contains("\\ufffd"),
        "{events}"
    );
}

#[test]
fn max_tokens_defaults_to_sixteen() {
    let body = json!({"model": BASE, "prompt": [5, 6], "ignore_eos": true});
    assert_eq!(complete(&body)["usage"]["completion_tokens"], 16);
}

#[test]
fn stream_has_the_text_of_the_whole_response() {
    let mut body =
        json!({"model": "warm", "prompt": [9, 4, 7], "max_tokens": 20, "ignore_eos": true});
    let whole = complete(&body);
    let plain = shared_server().events(PATH, &body);
    assert!(plain.iter().all(|event| !event.contains("usage")));
    body["stream_options"] = json!({"include_usage": true});
    let mut events = shared_server().events(PATH, &body);
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
fn choices_are_ordered_by_prompt_and_then_by_n() {
    let prompts = json!([[5, 6, 7, 8], [9, 4, 7]]);
    let mut body = json!({
        "model": "warm", "prompt": prompts, "max_tokens": 12, "ignore_eos": true, "n": 3,
        "temperature": 1, "seed": 7,
    });
    let answer = complete(&body);
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<&str> = choices
        .iter()
        .map(|c| c["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts.len(), 6);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["finish_reason"], "length");
        assert!(!texts[index + 1..].contains(&texts[index]), "{texts:?}");
    }
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(7), &json!(72))
    );

    // The first choice of each prompt equals the answer to that prompt alone.
    for (at, prompt) in prompts.as_array().unwrap().iter().enumerate() {
        let alone = json!({
            "model": "warm", "prompt": prompt, "max_tokens": 12, "ignore_eos": true,
            "temperature": 1, "seed": 7,
        });
        assert_eq!(text(&complete(&alone)), texts[3 * at]);
    }

    body["stream_options"] = json!({"include_usage": true});
    let mut streamed = vec![String::new(); 6];
    let mut ended = [0; 6];
    let mut events = shared_server().events(PATH, &body);
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let last: Value = serde_json::from_str(&events.pop().unwrap()).unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 72);
    for event in &events {
        let chunk: Value = serde_json::from_str(event).unwrap();
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        streamed[index] += choice["text"].as_str().unwrap();
        ended[index] += usize::from(choice["finish_reason"] == "length");
    }
    assert_eq!(streamed, texts);
    assert_eq!(ended, [1; 6]);
}

#[test]
fn n_choices_share_the_prompts_cached_blocks() {
    let prompt: Vec<u32> = (0..200).map(|i| 3 + (i * 31 + 5) % 200).collect();
    let server = TestServer::start(setup::service(&Settings::default()));
    let body = json!({
        "model": "formal", "prompt": prompt, "max_tokens": 4, "ignore_eos": true, "n": 4,
        "temperature": 1,
    });
    let reply = server.post(PATH, &body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let metrics = server.get("/metrics").text;
    let cached = metrics
        .lines()
        .find_map(|line| line.strip_prefix("lory_prefix_cache_hit_tokens_total "))
        .or_else(|| panic!("{metrics}"));
    // Three of the four choices reuse all blocks except the last.
    let cached: f64 = cached.unwrap().parse().unwrap();
    assert!(cached >= 3.0 * 160.0, "{cached}");
}

#[test]
fn echo_begins_with_the_prompt() {
    let mut body =
        json!({"model": BASE, "prompt": "Hello the", "max_tokens": 8, "ignore_eos": true});
    let plain = complete(&body);
    body["echo"] = json!(true);
    // Stop strings are matched in the answer only, not in the prompt.
    body["stop"] = json!("Hello");
    let echoed = complete(&body);
    assert_eq!(text(&echoed), format!("Hello the{}", text(&plain)));
    assert_eq!(echoed["usage"]["completion_tokens"], 8);
    let streamed = shared_server().events(PATH, &body);
    assert!(streamed[0].contains("Hello the"), "{}", streamed[0]);
    body["logprobs"] = json!(2);
    body["n"] = json!(2);
    let prompt_logprobs = complete(&body);
    assert_eq!(text(&prompt_logprobs), text(&echoed));
    let columns = &prompt_logprobs["choices"][0]["logprobs"];
    let column = |name: &str| columns[name].as_array().unwrap().clone();
    let prompt = prompt_logprobs["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(column("tokens").len(), prompt + 8);
    let spelled: String = column("tokens")
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    assert!(spelled.starts_with("Hello the"), "{spelled}");
    assert_eq!(column("token_logprobs")[0], Value::Null);
    assert_eq!(column("top_logprobs")[0], Value::Null);
    assert!(
        column("token_logprobs")[1..]
            .iter()
            .all(|logprob| logprob.as_f64().unwrap() < 0.0)
    );
    assert_eq!(column("text_offset")[prompt], "Hello the".len());
    assert_eq!(prompt_logprobs["choices"][1]["logprobs"], *columns);
    // The logprobs of a prompt position equal those of a generated token at that position.
    let begun = json!({
        "model": BASE, "prompt": "Hello", "max_tokens": 1, "logprobs": 2, "ignore_eos": true,
    });
    let next = complete(&begun)["choices"][0]["logprobs"]["top_logprobs"][0].clone();
    let hello = complete(&begun)["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(column("top_logprobs")[hello], next);
}

#[test]
fn logprobs_are_returned_as_columns() {
    let body = json!({
        "model": "warm", "prompt": [9, 4, 7], "max_tokens": 20, "ignore_eos": true, "logprobs": 3,
    });
    let whole = complete(&body);
    let columns = &whole["choices"][0]["logprobs"];
    let column = |name: &str| columns[name].as_array().unwrap().clone();
    assert_eq!(column("tokens").len(), 20);
    assert_eq!(column("text_offset")[0], 0);
    for at in 0..20 {
        let top = column("top_logprobs")[at].as_object().unwrap().clone();
        assert_eq!(top.len(), 3);
        let token = column("tokens")[at].as_str().unwrap().to_owned();
        // Greedy sampling takes the most probable token.
        let best = top
            .values()
            .map(|v| v.as_f64().unwrap())
            .fold(f64::MIN, f64::max);
        assert_eq!(top[&token].as_f64().unwrap(), best);
        assert_eq!(column("token_logprobs")[at].as_f64().unwrap(), best);
        assert!(best < 0.0);
    }
    let mut streamed: Vec<Value> = Vec::new();
    let mut offsets: Vec<Value> = Vec::new();
    let mut events = shared_server().events(PATH, &body);
    events.pop();
    for event in &events {
        let chunk: Value = serde_json::from_str(event).unwrap();
        if let Some(tokens) = chunk["choices"][0]["logprobs"]["tokens"].as_array() {
            streamed.extend(tokens.clone());
            offsets.extend(
                chunk["choices"][0]["logprobs"]["text_offset"]
                    .as_array()
                    .unwrap()
                    .clone(),
            );
        }
    }
    assert_eq!(streamed, column("tokens"));
    assert_eq!(offsets, column("text_offset"));
    let mut none = body.clone();
    none["logprobs"] = json!(0);
    let none = complete(&none);
    assert_eq!(none["choices"][0]["logprobs"]["top_logprobs"], Value::Null);
    assert_eq!(
        none["choices"][0]["logprobs"]["token_logprobs"],
        columns["token_logprobs"]
    );
}

#[test]
fn logit_bias_forces_and_forbids_tokens() {
    let mut body = json!({"model": BASE, "prompt": [5, 6], "max_tokens": 6, "ignore_eos": true});
    body["logit_bias"] = json!({"68": 100});
    assert_eq!(text(&complete(&body)), "AAAAAA");
    body["logit_bias"] = json!({});
    body["logprobs"] = json!(0);
    // Printable bytes have the ids 3 + byte in the tiny vocabulary; other tokens are not looked up here.
    let first_byte = |prompt: u32| {
        body["prompt"] = json!([5, prompt]);
        let answer = complete(&body);
        let first = answer["choices"][0]["logprobs"]["tokens"][0].as_str();
        let first = first.unwrap().to_owned();
        assert!(text(&answer).starts_with(&first));
        let byte = first.bytes().next()?;
        (first.len() == 1 && byte.is_ascii_graphic()).then_some((first, byte))
    };
    let (first, byte) = (6..60)
        .find_map(first_byte)
        .expect("a prompt whose answer begins with a printable byte");
    body["logit_bias"] = json!({(3 + u32::from(byte)).to_string(): -100});
    assert!(!text(&complete(&body)).starts_with(&first));
}

#[test]
fn invalid_field_is_refused_by_name() {
    let refused = |key: &str, value: Value| {
        let mut body = json!({"model": BASE, "prompt": "Hello"});
        body[key] = value;
        let (status, _, param, message) = shared_server().post(PATH, &body).error();
        assert_eq!(param, key, "{message}");
        (status, message)
    };
    for (key, value) in [
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", json!([1, 4_000_000_000_u32])),
        ("prompt", json!([-1])),
        ("prompt", json!(["one", ""])),
        ("prompt", json!(["one", [2]])),
        ("prompt", json!(vec!["one"; 17])),
        ("n", json!(0)),
        ("n", json!(9)),
        ("best_of", json!(2)),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("logit_bias", json!({"5": 101})),
        ("logit_bias", json!({"4000000": 1})),
        ("logit_bias", json!({"the": 1})),
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

#[test]
fn fields_of_other_servers_are_accepted_with_the_value_that_changes_nothing() {
    let body = json!({"model": "warm", "prompt": "Hello", "max_tokens": 4});
    let expected = complete(&body);
    for (field, neutral, other) in [
        ("add_special_tokens", json!(true), json!(false)),
        ("min_tokens", json!(0), json!(2)),
        ("length_penalty", json!(1.0), json!(1.5)),
        ("skip_special_tokens", json!(true), json!(false)),
        ("spaces_between_special_tokens", json!(true), json!(3)),
        ("stop_token_ids", json!([]), json!([7])),
        ("use_beam_search", json!(false), json!(true)),
        ("suffix", json!(""), json!("end")),
    ] {
        let mut body = body.clone();
        body["user"] = json!("u");
        body["request_id"] = json!("r");
        body[field] = neutral;
        assert_eq!(text(&complete(&body)), text(&expected), "{field}");
        body[field] = other;
        let (status, code, param, message) = shared_server().post(PATH, &body).error();
        assert_eq!(
            (status, code.as_str(), &param),
            (400, "unsupported_value", &json!(field)),
            "{message}"
        );
    }
}

#[test]
fn text_that_a_client_rendered_with_the_template_has_its_control_tokens() {
    let rendered = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n";
    let chat = json!({"model": BASE, "max_tokens": 6, "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
    ]});
    let chat = shared_server().post("/v1/chat/completions", &chat).json();
    let ask = |more: Value| {
        let mut body = json!({"model": BASE, "prompt": rendered, "max_tokens": 6});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        complete(&body)
    };
    for more in [
        json!({}),
        json!({"parse_special": true}),
        json!({"prompt": [rendered]}),
    ] {
        let answer = ask(more);
        assert_eq!(
            answer["usage"]["prompt_tokens"],
            chat["usage"]["prompt_tokens"]
        );
        assert_eq!(text(&answer), chat["choices"][0]["message"]["content"]);
    }
    // Each of the five control tokens is at least five tokens of text.
    let as_text = ask(json!({"parse_special": false}));
    let count = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(count(&as_text) >= count(&chat) + 20);
    // Echo returns the text, and the tokens have the log-probabilities.
    let echoed = ask(json!({"echo": true, "logprobs": 0}));
    assert!(text(&echoed).starts_with(rendered), "{echoed}");
    let tokens = echoed["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .unwrap();
    assert_eq!(
        tokens.len() as u64,
        count(&chat) + echoed["usage"]["completion_tokens"].as_u64().unwrap()
    );
}

#[test]
fn long_text_of_control_tokens_fits_by_its_tokens() {
    // More bytes than the context has tokens, times eight.
    let prompt = "<|endoftext|>".repeat(100);
    let answer = complete(&json!({"model": BASE, "prompt": prompt, "max_tokens": 1}));
    assert_eq!(answer["usage"]["prompt_tokens"], 100);
}
