//! The other requests in a batch change no answer.

use std::thread;

use serde_json::{Value, json};
use testkit::home::BASE;
use testkit::server::TestServer;

use crate::setup::shared_server;

#[test]
fn batched_requests_with_penalties_and_biases_answer_as_alone() {
    penalties_and_biases_answer_as_alone(shared_server(), 12);
}

/// Requests with log-probabilities, whose decimals are exact: equal answers have equal bits.
pub fn penalties_and_biases_answer_as_alone(server: &TestServer, requests: usize) {
    let requests: Vec<Value> = (0..requests)
        .map(|i| {
            json!({
                "model": (["warm", "formal", BASE][i % 3]),
                "messages": [{"role": "user", "content": format!("Question {i}: {}", "why? ".repeat(i))}],
                "temperature": ([0.0, 0.9][i % 2]),
                "seed": i,
                "n": 1 + i % 3,
                "max_tokens": 40,
                "frequency_penalty": 0.3 * (i % 4) as f64,
                "presence_penalty": -0.5,
                "repetition_penalty": 1.0 + 0.1 * (i % 2) as f64,
                "logit_bias": {"68": (i % 5) as f64, "70": -3},
                "logprobs": true,
                "top_logprobs": 2,
            })
        })
        .collect();
    let ask = |request: &Value| {
        let reply = server.post("/v1/chat/completions", request);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["choices"].clone()
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
fn batched_requests_with_mixed_personas_answer_as_alone() {
    mixed_personas_answer_as_alone(shared_server(), 30);
}

pub fn mixed_personas_answer_as_alone(server: &TestServer, requests: usize) {
    let voices = [BASE, "warm", "formal", "warm*0.5+formal", "formal*-1"];
    let requests: Vec<Value> = (0..requests)
        .map(|i| {
            json!({
                "prompt": format!("Question {}: {}", i, "why? ".repeat(i)),
                "user_type": voices[i % voices.len()],
                "temperature": if i % 2 == 0 { 0.0 } else { 0.9 },
                "seed": i,
                "max_new_tokens": 10 + 3 * i,
            })
        })
        .collect();
    let alone: Vec<Value> = requests
        .iter()
        .map(|request| server.generate(request.clone()))
        .collect();
    let together: Vec<Value> = thread::scope(|scope| {
        let asked: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(|| server.generate(request.clone())))
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone["response"], together["response"]);
        assert_eq!(alone["usage"], together["usage"]);
        assert_eq!(alone["persona"], together["persona"]);
    }
}
