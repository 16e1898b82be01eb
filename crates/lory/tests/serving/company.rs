//! Who shares a batch changes no answer.

use std::thread;

use serde_json::{Value, json};

use crate::scene::{BASE, Server};

#[test]
fn mixed_tones_at_once_answer_as_alone() {
    let server = Server::shared();
    let voices = [BASE, "warm", "formal", "warm*0.5+formal", "formal*-1"];
    let requests: Vec<Value> = (0..30)
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
