//! Constrained answers: JSON, JSON with a schema, tool calls. The tiny base generates noise, so only the grammar can make these tests
//! pass.

use std::sync::{Arc, OnceLock};
use std::thread;

use serde_json::{Value, json};
use service::Settings;
use testkit::home::BASE;
use testkit::server::TestServer;

use crate::setup;

const PATH: &str = "/v1/chat/completions";

/// A server with a context for prompts with tools: in the tiny vocabulary nearly every byte is a token.
fn server() -> &'static TestServer {
    static SHARED: OnceLock<TestServer> = OnceLock::new();
    SHARED.get_or_init(|| {
        let home = setup::home_with_context(2048);
        TestServer::start(Arc::new(setup::open(&home, &Settings::default()).unwrap()))
    })
}

fn ask(content: &str) -> Value {
    json!({
        "model": "warm",
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": 200,
    })
}

fn chat(body: &Value) -> Value {
    let reply = server().post(PATH, body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

/// A schema whose answers are all short.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "blue", "grün"]},
            "number": {"type": "integer", "minimum": -9, "maximum": 99},
            "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["colour", "number", "list"],
        "additionalProperties": false,
    })
}

fn fits(value: &Value) {
    let object = value.as_object().unwrap();
    assert_eq!(object.len(), 3, "{value}");
    assert!(["red", "blue", "grün"].contains(&value["colour"].as_str().unwrap()));
    assert!((-9..=99).contains(&value["number"].as_i64().unwrap()));
    let list = value["list"].as_array().unwrap();
    assert!(list.len() <= 3 && list.iter().all(Value::is_boolean));
}

fn of_schema(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": true}})
}

fn weather() -> Value {
    json!({"type": "function", "function": {
        "name": "weather",
        "description": "What the weather is like.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": false,
        },
        "strict": true,
    }})
}

fn clock() -> Value {
    json!({"type": "function", "function": {"name": "the-clock_2"}})
}

#[test]
fn answer_matches_its_schema_at_any_temperature() {
    for (seed, temperature) in [(1, 0.0), (2, 1.0), (3, 1.5), (4, 2.0)] {
        let mut body = ask("Give me a thing.");
        body["response_format"] = of_schema(&schema());
        body["temperature"] = json!(temperature);
        body["seed"] = json!(seed);
        body["n"] = json!(2);
        let answer = chat(&body);
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!(choice["finish_reason"], "stop", "{answer}");
            let content = choice["message"]["content"].as_str().unwrap();
            fits(&serde_json::from_str(content).unwrap_or_else(|e| panic!("{e}: {content}")));
        }
    }
}

#[test]
fn json_object_format_yields_an_object() {
    let mut body = ask("Give me a thing.");
    body["response_format"] = json!({"type": "json_object"});
    body["max_completion_tokens"] = json!(40);
    let answer = chat(&body);
    let choice = &answer["choices"][0];
    let content = choice["message"]["content"].as_str().unwrap();
    assert!(content.starts_with('{'), "{content}");
    if choice["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(content).unwrap().is_object());
    } else {
        assert_eq!(choice["finish_reason"], "length");
    }
}

#[test]
fn streamed_answer_equals_the_whole_one() {
    let mut body = ask("Give me a thing.");
    body["response_format"] = of_schema(&schema());
    let whole = chat(&body);
    let text: String = server()
        .events(PATH, &body)
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|chunk| {
            let content = chunk["choices"][0]["delta"]["content"].as_str();
            content.map(str::to_owned)
        })
        .collect();
    assert_eq!(
        text,
        whole["choices"][0]["message"]["content"].as_str().unwrap()
    );
}

#[test]
fn required_tool_call_has_a_known_name_and_valid_arguments() {
    let mut body = ask("How is the weather?");
    body["tools"] = json!([weather(), clock()]);
    body["tool_choice"] = json!("required");
    body["parallel_tool_calls"] = json!(false);
    let mut names = Vec::new();
    for seed in 0..6 {
        body["seed"] = json!(seed);
        body["temperature"] = json!(if seed == 0 { 0.0 } else { 2.0 });
        let answer = chat(&body);
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let [call] = choice["message"]["tool_calls"]
            .as_array()
            .unwrap()
            .as_slice()
        else {
            panic!("{answer}")
        };
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("call-"));
        let name = call["function"]["name"].as_str().unwrap().to_owned();
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        match name.as_str() {
            "weather" => {
                assert!(["Paris", "Oslo"].contains(&arguments["city"].as_str().unwrap()));
                assert!((1..=7).contains(&arguments["days"].as_i64().unwrap()));
            }
            "the-clock_2" => assert_eq!(arguments, json!({})),
            other => panic!("{other}"),
        }
        names.push(name);
    }
    body["tool_choice"] = json!({"type": "function", "function": {"name": "the-clock_2"}});
    body["parallel_tool_calls"] = Value::Null;
    let answer = chat(&body);
    let calls = answer["choices"][0]["message"]["tool_calls"]
        .as_array()
        .unwrap();
    assert_eq!(calls.len(), 1);
    assert_eq!(
        calls[0]["function"],
        json!({"name": "the-clock_2", "arguments": "{}"})
    );
}

#[test]
fn streamed_tool_call_equals_the_whole_one() {
    let mut body = ask("How is the weather?");
    body["tools"] = json!([weather()]);
    body["tool_choice"] = json!("required");
    body["max_completion_tokens"] = json!(400);
    body["temperature"] = json!(1.0);
    // Several calls, so that their ids can be compared.
    let several_calls = |seed: u64| {
        body["seed"] = json!(seed);
        let whole = chat(&body);
        let calls = whole["choices"][0]["message"]["tool_calls"].as_array();
        (calls.unwrap().len() > 1).then_some(whole)
    };
    let whole = (0..20)
        .find_map(several_calls)
        .expect("a seed with several calls");
    let expected = &whole["choices"][0]["message"]["tool_calls"];
    let mut calls: Vec<(String, String, String)> = Vec::new();
    let mut reason = Value::Null;
    for event in server().events(PATH, &body) {
        let Ok(chunk) = serde_json::from_str::<Value>(&event) else {
            continue;
        };
        let choice = &chunk["choices"][0];
        assert_eq!(choice["delta"]["content"].as_str().unwrap_or(""), "");
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
        let Some(delta) = choice["delta"]["tool_calls"].as_array() else {
            continue;
        };
        let call = &delta[0];
        let function = &call["function"];
        if let Some(id) = call["id"].as_str() {
            assert_eq!(call["index"], calls.len());
            let name = function["name"].as_str().unwrap();
            calls.push((id.to_owned(), name.to_owned(), String::new()));
        }
        let index = call["index"].as_u64().unwrap() as usize;
        calls[index].2 += function["arguments"].as_str().unwrap();
    }
    assert_eq!(reason, whole["choices"][0]["finish_reason"]);
    let expected = expected.as_array().unwrap();
    assert_eq!(calls.len(), expected.len());
    for ((_, name, arguments), expected) in calls.iter().zip(expected) {
        assert_eq!(*name, expected["function"]["name"]);
        assert_eq!(*arguments, expected["function"]["arguments"]);
    }
    assert_ne!(calls[0].0, calls[1].0);
}

#[test]
fn tool_choice_auto_allows_a_text_answer() {
    let mut body = ask("How is the weather?");
    body["max_completion_tokens"] = json!(30);
    let without_tools = chat(&body);
    body["tools"] = json!([weather()]);
    let with = chat(&body);
    let choice = &with["choices"][0];
    assert!(choice["message"].get("tool_calls").is_none(), "{with}");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    // The prompt describes the tools unless `tool_choice` is `none`.
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt(&with) > prompt(&without_tools) + 100);
    body["tool_choice"] = json!("none");
    let none = chat(&body);
    assert_eq!(
        none["choices"][0]["message"],
        without_tools["choices"][0]["message"]
    );
    assert_eq!(prompt(&none), prompt(&without_tools));
}

#[test]
fn earlier_tool_calls_and_results_are_rendered_into_the_prompt() {
    let mut body = ask("How is the weather?");
    body["max_completion_tokens"] = json!(5);
    let call = json!({"id": "call-1", "type": "function", "function": {
        "name": "weather", "arguments": "{\"city\":\"Oslo\",\"days\":1}",
    }});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    let turns = |assistant: Value, response: Value| {
        let mut body = body.clone();
        body["messages"]
            .as_array_mut()
            .unwrap()
            .extend([assistant, response]);
        let answer = chat(&body);
        (
            answer["usage"]["prompt_tokens"].clone(),
            answer["choices"].clone(),
        )
    };
    let structured = turns(
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "call-1", "content": "Rain."}),
    );
    let spelled = turns(
        assistant(
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\", \"days\": 1}}\n</tool_call>",
        ),
        json!({"role": "user", "content": "<tool_response>\nRain.\n</tool_response>"}),
    );
    assert_eq!(structured, spelled);
}

#[test]
fn batched_requests_with_grammars_answer_as_alone() {
    let requests: Vec<Value> = (0..12)
        .map(|i| {
            let mut body = ask(&format!("Question {i}"));
            body["model"] = json!((["warm", "formal", BASE][i % 3]));
            body["seed"] = json!(i);
            body["temperature"] = json!(1.2);
            body["presence_penalty"] = json!(0.5);
            match i % 4 {
                0 => body["response_format"] = of_schema(&schema()),
                1 => {
                    body["tools"] = json!([weather(), clock()]);
                    body["tool_choice"] = json!("required");
                    body["max_completion_tokens"] = json!(90);
                }
                2 => {
                    body["response_format"] = json!({"type": "json_object"});
                    body["max_completion_tokens"] = json!(30);
                }
                _ => body["max_completion_tokens"] = json!(60),
            }
            body
        })
        .collect();
    // Ids of calls are random.
    let ask = |request: &Value| {
        let mut choices = chat(request)["choices"].clone();
        if let Some(calls) = choices[0]["message"]["tool_calls"].as_array_mut() {
            calls.iter_mut().for_each(|call| call["id"] = Value::Null);
        }
        choices
    };
    let alone: Vec<Value> = requests.iter().map(ask).collect();
    let together: Vec<Value> = thread::scope(|scope| {
        let asked: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(|| ask(request)))
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn invalid_schema_or_tool_is_rejected_by_name() {
    let refused = |change: Value| {
        let mut body = ask("Hello!");
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, _, param, message) = server().post(PATH, &body).error();
        assert_eq!(status, 400, "{message}");
        let param = param
            .as_str()
            .unwrap_or_else(|| panic!("{message}"))
            .to_owned();
        (param, message)
    };
    let schema_field = "response_format.json_schema.schema";
    for (schema, expected) in [
        (json!({"type": "objekt"}), "Invalid type: objekt"),
        (json!({"type": "string", "pattern": "(a"}), "unclosed group"),
        (json!({"not": {"type": "string"}}), "not"),
        (
            json!({"type": "integer", "minimum": 5, "maximum": 3}),
            "minimum (5) is greater",
        ),
        (json!({"$ref": "https://example.com/schema"}), "$ref"),
        (json!([]), "object"),
        (
            json!({"type": "string", "description": "x".repeat(70_000)}),
            "65536",
        ),
        (json!({"$ref": "#"}), "nested more than 64 deep"),
        (
            json!({"allOf": vec![json!({"type": "string", "pattern": "a"}); 30]}),
            "30 patterns",
        ),
        (json!({"allOf": [{"const": 1}, {"const": 2}]}), ""),
        (
            json!({"type": "integer", "multipleOf": 999_983}),
            "too large an automaton",
        ),
        (
            json!({"type": "integer", "multipleOf": 4_294_967_291u32}),
            "multipleOf 4294967291",
        ),
    ] {
        let (param, message) = refused(json!({"response_format": of_schema(&schema)}));
        assert_eq!(param, schema_field, "{message}");
        assert!(
            message.contains(expected) && message.starts_with(schema_field),
            "{message}"
        );
        assert!(message.len() < 500, "{message}");
    }
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    for (change, named) in [
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            schema_field,
        ),
        (
            json!({"response_format": {"type": "json_object"}, "tools": [weather()]}),
            "response_format",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "ignore_eos": true}),
            "ignore_eos",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (
            json!({"tools": [weather(), weather()]}),
            "tools[1].function.name",
        ),
        (
            json!({"tools": [tool("a b", json!({}))]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [weather(), tool("x", json!({"type": "objekt"}))]}),
            "tools[1].function.parameters",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tools": [weather()], "tool_choice": "sometimes"}),
            "tool_choice",
        ),
        (
            json!({
                "tools": [weather()],
                "tool_choice": {"type": "function", "function": {"name": "nothing"}},
            }),
            "tool_choice",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}},
            ]}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}),
            "messages[0].tool_calls",
        ),
    ] {
        let (param, message) = refused(change.clone());
        assert_eq!(param, named, "{message}");
        assert!(message.contains(named), "{message}");
    }
    // A schema that is not strict may contain unsupported keywords.
    let mut body = ask("Hello!");
    let loose = json!({"type": "integer", "minimum": 1, "maximum": 5, "not": {"const": 3}});
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "thing", "schema": loose}});
    let answer = chat(&body);
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!((1..=5).contains(&content.parse::<u8>().unwrap()));
}

#[test]
fn grammar_that_reaches_a_limit_while_it_runs_is_an_error_of_the_request() {
    // Each text has a state of its own, so the automaton grows with the answer, and no text of less than 1,500 characters matches.
    let pattern = "^.*([a-m].{1500}|[n-z].{1600}|[A-M].{1700}|[N-Z].{1650})$";
    let schema = json!({"type": "string", "pattern": pattern});
    let mut body = ask("Hello!");
    body["response_format"] = of_schema(&schema);
    body["max_completion_tokens"] = json!(1900);
    body["temperature"] = json!(1.5);
    let (status, code, _, message) = server().post(PATH, &body).error();
    assert_eq!(
        (status, code.as_str()),
        (400, "invalid_schema"),
        "{message}"
    );
    assert!(message.contains("make the schema simpler"), "{message}");
    // Others are answered as before.
    let mut body = ask("Hello!");
    body["response_format"] = of_schema(&json!({"enum": ["yes", "no"]}));
    chat(&body);
}
