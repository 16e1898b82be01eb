//! Which requests share a step, and which are admitted with the KV blocks that there are.

use std::time::Duration;

use engine::{EngineConfig, FinishReason, Request};
use testkit::FakeModel;

use crate::fixtures::{CONTEXT_BLOCKS, assert_idle, collect, greedy, limits, start};

/// A prompt of `tokens` tokens that all name their request.
fn named(name: u32, tokens: usize, new: usize) -> Request {
    greedy(vec![name; tokens], new)
}

#[test]
fn running_request_decodes_in_the_steps_of_a_long_prefill() {
    let model = FakeModel::new(limits(100));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let config = EngineConfig {
        step_tokens: 16,
        max_batch: 4,
        prefill_chunk: 64,
        step_latency: Duration::MAX,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let decoding = handle.stream(named(1, 2, 30)).unwrap();
    gate.allow(3);
    gate.wait_for(4);
    let long = handle.stream(named(2, 50, 1)).unwrap();
    gate.open();
    assert_eq!(collect(decoding).tokens.len(), 30);
    assert_eq!(collect(long).tokens.len(), 1);
    let seen = seen.lock().unwrap();
    let mixed: Vec<_> = seen
        .iter()
        .filter(|step| step.sequences.len() == 2)
        .map(|step| step.sequences[1])
        .collect();
    assert_eq!(mixed, [(0, 15), (15, 15), (30, 15), (45, 5)]);
    // The decoding request has one row in every step after its prompt.
    assert!(seen[1..30].iter().all(|step| step.sequences[0].1 == 1));
}

#[test]
fn short_prompt_runs_in_the_same_step_as_a_chunk_of_a_long_one() {
    let model = FakeModel::new(limits(100));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let config = EngineConfig {
        step_tokens: 32,
        max_batch: 4,
        prefill_chunk: 20,
        step_latency: Duration::MAX,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let first = handle.stream(named(1, 1, 2)).unwrap();
    gate.wait_for(1);
    let long = handle.stream(named(2, 100, 1)).unwrap();
    let short = handle.stream(named(3, 5, 1)).unwrap();
    gate.open();
    for stream in [first, long, short] {
        collect(stream);
    }
    // The second step: the decode, a chunk of the long prompt, and all of the short one.
    assert_eq!(seen.lock().unwrap()[1].sequences, [(1, 1), (0, 20), (0, 5)]);
}

#[test]
fn request_that_does_not_fit_is_not_overtaken() {
    let model = FakeModel::new(limits(CONTEXT_BLOCKS));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let handle = start(model, EngineConfig::default());
    // The first takes the blocks of 120 of 160 tokens; the second does not fit, the third would.
    let first = handle.stream(named(1, 118, 4)).unwrap();
    gate.wait_for(1);
    let big = handle.stream(named(2, 100, 2)).unwrap();
    let small = handle.stream(named(3, 2, 2)).unwrap();
    gate.open();
    for stream in [first, big, small] {
        assert_eq!(collect(stream).finished.reason, FinishReason::Length);
    }
    let seen = seen.lock().unwrap();
    let begun = |name: u32| {
        seen.iter()
            .position(|step| step.tokens.contains(&name))
            .unwrap()
    };
    assert!(begun(2) <= begun(3), "{seen:?}");
    assert_eq!(
        begun(2),
        4,
        "the big one starts as soon as the first is done"
    );
}

#[test]
fn youngest_is_preempted_and_readmitted_before_waiting_requests() {
    let model = FakeModel::new(limits(CONTEXT_BLOCKS));
    let seen = model.seen();
    let config = EngineConfig {
        max_batch: 3,
        ..EngineConfig::default()
    };
    let (model, gate) = model.gated();
    let handle = start(model, config);
    // Two grow to 32 blocks each, of 40; a third one waits.
    let streams: Vec<_> = (1..=2)
        .map(|name| handle.stream(named(name, 28, 100)).unwrap())
        .collect();
    gate.wait_for(1);
    let third = handle.stream(named(3, 28, 100)).unwrap();
    gate.open();
    let mut totals = Vec::new();
    for stream in streams.into_iter().chain([third]) {
        let answer = collect(stream);
        assert_eq!(answer.finished.reason, FinishReason::Length);
        assert_eq!(answer.tokens.len(), 100);
        totals.push(answer.finished.timings.total);
    }
    assert!(handle.stats().preemptions >= 2, "{:?}", handle.stats());
    // The oldest is never computed again: one chunk, then 99 single rows.
    let seen = seen.lock().unwrap();
    let first_rows: Vec<_> = seen[..100].iter().map(|step| step.sequences[0]).collect();
    assert_eq!(first_rows[0], (0, 28));
    for (n, rows) in first_rows[1..].iter().enumerate() {
        assert_eq!(*rows, (28 + n, 1));
    }
    assert_idle(&handle);
}

#[test]
fn request_that_fills_all_blocks_runs_to_its_end() {
    let handle = start(
        FakeModel::new(limits(CONTEXT_BLOCKS)),
        EngineConfig::default(),
    );
    let streams: Vec<_> = (1..=3)
        .map(|name| handle.stream(named(name, 100, 60)).unwrap())
        .collect();
    for stream in streams {
        assert_eq!(collect(stream).tokens.len(), 60);
    }
    assert_idle(&handle);
}

#[test]
fn request_that_would_be_preempted_at_once_waits() {
    let (model, gate) = FakeModel::new(limits(CONTEXT_BLOCKS)).gated();
    let handle = start(model, EngineConfig::default());
    // The first holds 30 of 40 blocks and needs a 31st; the second would fill the rest to the last block.
    let first = handle.stream(named(1, 118, 4)).unwrap();
    let second = handle.stream(named(2, 40, 4)).unwrap();
    gate.open();
    assert_eq!(collect(first).tokens.len(), 4);
    assert_eq!(collect(second).tokens.len(), 4);
    assert_eq!(handle.stats().preemptions, 0);
}
