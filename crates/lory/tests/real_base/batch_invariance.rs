//! Invariant 8 on the real weights: neither the other requests in a batch nor the chunks of a prompt change a token.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::{AdapterId, Engine, EngineConfig, Event, Handle, Request, Sampling};
use formats::peft::{LoraPair, Module};
use kernels::LoraType;
use model::Adapter;
use service::runner::{ModelRunner, StepPriority};

use crate::BASE;

const TONES: u8 = 3;

/// A random adapter strong enough to change the answer.
fn adapter(seed: u64) -> Arc<Adapter> {
    let config = BASE.model.config();
    let mut state = seed;
    let mut random = |n: usize, size: f32| -> Vec<f32> {
        (0..n)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
            })
            .collect()
    };
    let mut pairs = Vec::new();
    for layer in 0..config.layers {
        for module in Module::ALL {
            let (inputs, outputs) = module.shape(config);
            pairs.push(LoraPair {
                layer,
                module,
                rank: 8,
                inputs,
                outputs,
                scale: 1.0,
                a: random(8 * inputs, 0.04),
                b: random(8 * outputs, 0.04),
            });
        }
    }
    Arc::new(BASE.model.pack_adapter(&pairs, LoraType::Bf16).unwrap())
}

fn start(config: EngineConfig) -> Handle<Adapter> {
    let handle = Engine::start(
        ModelRunner::new(BASE.model.clone(), 64 << 20, StepPriority::default()).unwrap(),
        config,
    )
    .unwrap();
    for tone in 0..TONES {
        let adapter = adapter(u64::from(tone));
        let bytes = adapter.bytes();
        handle
            .insert_adapter(AdapterId([tone; 32]), adapter, bytes)
            .unwrap();
    }
    handle
}

fn request(i: usize) -> Request {
    let adapters = match i % 5 {
        0 => vec![],
        4 => vec![(AdapterId([0; 32]), 0.7), (AdapterId([2; 32]), 0.3)],
        tone => vec![(AdapterId([tone as u8 - 1; 32]), 1.0)],
    };
    let sampling = Sampling {
        temperature: if i.is_multiple_of(2) { 0.0 } else { 0.8 },
        seed: Some(i as u64),
        ..Sampling::default()
    };
    Request {
        prompt: (0..5 + 7 * i as u32)
            .map(|t| (t * 7919 + i as u32 * 104_729) % 49_000)
            .collect(),
        adapters,
        sampling,
        max_new_tokens: 12,
        stop_tokens: vec![],
        top_logprobs: Some(0),
        prompt_logprobs: false,
        grammar: None,
        priority: 0,
        client: None,
        cache_salt: engine::CacheSalt::default(),
        deadline: None,
    }
}

/// The tokens with the bits of their log-probabilities.
fn answer(events: impl Iterator<Item = Event>) -> Vec<(u32, u32)> {
    let mut tokens = Vec::new();
    for event in events {
        match event {
            Event::Prompt(_) => unreachable!("prompt_logprobs is off"),
            Event::Token(token) => tokens.push((token.id, token.logprob.unwrap().to_bits())),
            Event::Finished(finished) => assert_eq!(finished.completion_tokens, tokens.len()),
        }
    }
    assert_eq!(tokens.len(), 12);
    tokens
}

#[test]
fn request_gives_the_same_bits_alone_and_in_a_batch_of_32() {
    let few = EngineConfig {
        max_batch: 1,
        ..EngineConfig::default()
    };
    let handle = start(few);
    let alone: Vec<_> = (0..32)
        .map(|i| answer(handle.stream(request(i)).unwrap()))
        .collect();
    drop(handle);
    let different: BTreeSet<_> = alone.iter().collect();
    assert_eq!(different.len(), 32, "two requests have the same answer");

    let mixed = EngineConfig {
        max_batch: 32,
        step_tokens: 96,
        prefill_chunk: 24,
        ..EngineConfig::default()
    };
    let handle = start(mixed);
    let streams: Vec<_> = (0..32)
        .map(|i| handle.stream(request(i)).unwrap())
        .collect();
    for (i, stream) in streams.into_iter().enumerate() {
        assert_eq!(answer(stream), alone[i], "request {i}");
    }
}
