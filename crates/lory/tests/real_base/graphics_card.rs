//! The real base and both shipped tones on a graphics card: the CPU's most probable tokens, except at near ties.

use std::path::Path;
use std::sync::Arc;

use kernels::DeviceChoice;
use registry::Personas;
use serde_json::{Value, json};
use service::{Service, Settings};
use testkit::server::TestServer;

use crate::FILE;

/// Two tokens whose log-probabilities differ by less may change places: both devices round activations to 8 bits, each in its own way.
const NEAR_TIE: f64 = 0.3;
/// Greedy decoding after this text gives a few more tokens.
const PROMPT: &str = "Where is my order #12345? I have asked our team to look up the address";

fn serve(device: DeviceChoice) -> TestServer {
    let personas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../personas");
    let settings = Settings {
        device,
        ..Settings::default()
    };
    let service = Service::open(&FILE, Personas::open(&personas).unwrap(), &settings);
    TestServer::start(Arc::new(service.unwrap()))
}

/// For each position after the first, of the prompt and of the greedy answer: its token, and the two most probable tokens there.
fn positions(server: &TestServer, model: &str) -> Vec<(String, Vec<(String, f64)>)> {
    let request = json!({
        "model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 4, "logprobs": 2, "echo": true,
    });
    let reply = server.post("/v1/completions", &request);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let logprobs = &reply.json()["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let position = |(token, top): (Value, Value)| {
        let top = top.as_object().unwrap().iter();
        let mut top: Vec<(String, f64)> = top
            .map(|(token, logprob)| (token.clone(), logprob.as_f64().unwrap()))
            .collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        (token.as_str().unwrap().to_owned(), top)
    };
    let (tokens, tops) = (list("tokens"), list("top_logprobs"));
    tokens.into_iter().zip(tops).skip(1).map(position).collect()
}

#[test]
fn both_tones_on_a_card_have_the_cpus_most_probable_tokens_except_at_near_ties() {
    let Some(device) = testkit::gpu::vulkan() else {
        return;
    };
    let (cpu, card) = (serve(DeviceChoice::default()), serve(device));
    let mut compared = 0;
    for model in ["customer", "partner"] {
        let (want, got) = (positions(&cpu, model), positions(&card, model));
        for (i, (want, got)) in want.iter().zip(&got).enumerate() {
            let ((token, first), second) = (&want.1[0], want.1[1].1);
            let difference = (first - got.1[0].1).abs();
            assert!(difference < NEAR_TIE, "{model}, position {i}: {difference}");
            if first - second > NEAR_TIE {
                assert_eq!(*token, got.1[0].0, "{model}, position {i}");
                compared += 1;
            }
            if want.0 != got.0 {
                // The answers parted at a near tie.
                break;
            }
        }
    }
    assert!(compared >= 20, "{compared} positions compared");
}
