//! The real base and both shipped tones on a graphics card: the CPU's greedy answers, except at near ties.

use std::path::Path;

use kernels::DeviceChoice;
use registry::Personas;
use serde_json::{Value, json};
use service::{Service, Settings};
use testkit::server::TestServer;

use crate::FILE;

/// Two tokens whose log-probabilities differ by less may change places: both devices round activations to 8 bits, each in its own way.
const NEAR_TIE: f64 = 0.5;

fn serve(device: DeviceChoice) -> TestServer {
    let personas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../personas");
    let settings = Settings {
        device,
        base_name: Some("base".to_owned()),
        ..Settings::default()
    };
    let service = Service::open(&FILE, Personas::open(&personas).unwrap(), &settings);
    TestServer::start(service.unwrap())
}

/// The greedy answer's tokens, each with its two best log-probabilities.
fn answer(server: &TestServer, model: &str) -> Vec<(String, [f64; 2])> {
    let request = json!({
        "model": model, "temperature": 0, "max_tokens": 20, "logprobs": true, "top_logprobs": 2,
        "messages": [{"role": "user", "content": "Where is my order #12345?"}],
    });
    let reply = server.post("/v1/chat/completions", &request);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let reply = reply.json();
    let tokens = reply["choices"][0]["logprobs"]["content"].as_array();
    let best = |token: &Value, i: usize| token["top_logprobs"][i]["logprob"].as_f64().unwrap();
    tokens
        .unwrap()
        .iter()
        .map(|token| {
            let text = token["token"].as_str().unwrap().to_owned();
            (text, [best(token, 0), best(token, 1)])
        })
        .collect()
}

#[test]
fn both_tones_answer_on_a_card_as_on_the_cpu_except_at_near_ties() {
    let Some(device) = testkit::gpu::vulkan() else {
        return;
    };
    let (cpu, card) = (serve(DeviceChoice::default()), serve(device));
    let mut compared = 0;
    for model in ["base", "customer", "partner"] {
        let (want, got) = (answer(&cpu, model), answer(&card, model));
        for (i, (want, got)) in want.iter().zip(&got).enumerate() {
            let ([first, second], difference) = (want.1, (want.1[0] - got.1[0]).abs());
            if first - second < NEAR_TIE {
                // From here on the answers may differ.
                break;
            }
            assert_eq!(want.0, got.0, "{model}, token {i}");
            assert!(difference < NEAR_TIE, "{model}, token {i}: {difference}");
            compared += 1;
        }
    }
    println!("{compared} tokens compared");
    assert!(compared >= 12, "{compared} tokens compared");
}
