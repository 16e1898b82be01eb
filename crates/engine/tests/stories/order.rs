//! Who goes first, what shares a step, and what memory allows.

use std::time::Duration;

use engine::{EngineConfig, FinishReason, Request};
use testkit::FakeModel;

use crate::scene::{CONTEXT_BLOCKS, assert_at_rest, collect, greedy, limits, start};

/// A prompt of `tokens` tokens that all name their request.
fn named(name: u32, tokens: usize, new: usize) -> Request {
    greedy(vec![name; tokens], new)
}

#[test]
fn a_running_request_decodes_beside_the_chunks_of_a_long_prompt() {
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
    let talker = handle.stream(named(1, 2, 30)).unwrap();
    gate.allow(3);
    gate.wait_for(4);
    let long = handle.stream(named(2, 50, 1)).unwrap();
    gate.open();
    assert_eq!(collect(talker).tokens.len(), 30);
    assert_eq!(collect(long).tokens.len(), 1);
    let seen = seen.lock().unwrap();
    let mixed: Vec<_> = seen
        .iter()
        .filter(|step| step.sequences.len() == 2)
        .map(|step| step.sequences[1])
        .collect();
    assert_eq!(mixed, [(0, 15), (15, 15), (30, 15), (45, 5)]);
    // The talker missed no step: one row in each after its prompt.
    assert!(seen[1..30].iter().all(|step| step.sequences[0].1 == 1));
}

#[test]
fn a_short_prompt_need_not_wait_behind_a_long_one() {
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
    // The second step: the decode, a chunk of the long prompt, the whole short one.
    assert_eq!(seen.lock().unwrap()[1].sequences, [(1, 1), (0, 20), (0, 5)]);
}

#[test]
fn admission_is_first_come_first_served_even_where_a_later_one_would_fit() {
    let model = FakeModel::new(limits(CONTEXT_BLOCKS));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let handle = start(model, EngineConfig::default());
    // 120 of 160 tokens' blocks are taken by the first; the second lacks room, the third would have it.
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
fn the_youngest_gives_way_and_comes_back_before_those_who_wait() {
    let model = FakeModel::new(limits(CONTEXT_BLOCKS));
    let seen = model.seen();
    let config = EngineConfig {
        max_batch: 3,
        ..EngineConfig::default()
    };
    let (model, gate) = model.gated();
    let handle = start(model, config);
    // Two that grow to 32 blocks each, of 40; and one more that waits for a seat.
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
    // The oldest is never computed twice: one chunk, then 99 single rows.
    let seen = seen.lock().unwrap();
    let first_rows: Vec<_> = seen[..100].iter().map(|step| step.sequences[0]).collect();
    assert_eq!(first_rows[0], (0, 28));
    for (n, rows) in first_rows[1..].iter().enumerate() {
        assert_eq!(*rows, (28 + n, 1));
    }
    assert_at_rest(&handle);
}

#[test]
fn a_request_that_fills_the_whole_memory_runs_to_its_end() {
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
    assert_at_rest(&handle);
}

#[test]
fn a_newcomer_that_would_be_thrown_out_at_once_waits() {
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
