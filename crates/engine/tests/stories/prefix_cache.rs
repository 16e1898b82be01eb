//! The prefix cache saves rows and changes nothing else. The fake model panics if a block does not hold exactly what its
//! sequence would have computed, so an answer that reaches its end has been checked row by row.

use std::sync::Arc;
use std::time::Duration;

use engine::{CacheSalt, EngineConfig, FinishReason, Request, WaitOptions};
use testkit::{FakeModel, Fault};

use crate::fixtures::{
    BLOCK, CONTEXT_BLOCKS, Dice, TONES, VOCAB, assert_idle, collect, fake_adapter, greedy, limits,
    start, tone,
};

/// `tokens` tokens: the same prefix for the same name, then `last`.
fn prompt(name: u32, tokens: u32, last: u32) -> Vec<u32> {
    let prefix = (0..tokens - 1).map(|i| (name + i * i) % (VOCAB as u32 - 1));
    prefix.chain([last]).collect()
}

#[test]
fn prompt_with_a_cached_prefix_runs_only_the_rest() {
    let model = FakeModel::new(limits(100));
    let seen = model.seen();
    let handle = start(model, EngineConfig::default());
    let mut cached = Vec::new();
    for request in [
        greedy(prompt(1, 20, 5), 1),
        greedy(prompt(1, 20, 6), 1),
        greedy(prompt(1, 20, 6), 1),
        greedy(prompt(2, 20, 6), 1),
    ] {
        let answer = collect(handle.stream(request).unwrap());
        assert_eq!(answer.finished.reason, FinishReason::Length);
        cached.push(answer.finished.cached_tokens);
    }
    assert_eq!(cached, [0, 16, 16, 0]);
    let steps = seen.lock().unwrap();
    let rows: Vec<_> = steps.iter().map(|step| step.sequences[0]).collect();
    assert_eq!(rows, [(0, 20), (16, 4), (16, 4), (0, 20)]);
    drop(steps);
    assert_eq!(handle.stats().cached_tokens, 32);
    assert_idle(&handle);
}

#[test]
fn next_turn_of_a_conversation_reuses_the_previous_ones() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let first = prompt(3, 10, 4);
    let answer = collect(handle.stream(greedy(first.clone(), 12)).unwrap());
    // 10 tokens and 12 more, of which the last never ran: five full blocks.
    let second = [first, answer.ids(), vec![1, 2, 3]].concat();
    let answer = collect(handle.stream(greedy(second, 4)).unwrap());
    assert_eq!(answer.finished.cached_tokens, 21 / BLOCK * BLOCK);
}

#[test]
fn other_adapters_or_scales_do_not_share_blocks() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let (one, two) = (tone(0), tone(1));
    for (adapters, cached) in [
        (vec![], 0),
        (vec![(one, 1.0)], 0),
        (vec![(two, 1.0)], 0),
        (vec![(one, 0.5)], 0),
        (vec![(one, 1.0), (two, 1.0)], 0),
        (vec![(two, 1.0), (one, 1.0)], 0),
        (vec![(one, 1.0)], 20),
        (vec![], 20),
    ] {
        let request = Request {
            adapters,
            ..greedy(prompt(1, 24, 5), 2)
        };
        let answer = collect(handle.stream(request).unwrap());
        assert_eq!(answer.finished.reason, FinishReason::Length);
        assert_eq!(answer.finished.cached_tokens, cached);
    }
}

#[test]
fn prompts_with_different_salts_share_only_what_no_client_wrote() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let cached = |cache_salt| {
        let request = Request {
            cache_salt,
            ..greedy(prompt(1, 24, 5), 2)
        };
        let answer = collect(handle.stream(request).unwrap());
        assert_eq!(answer.finished.reason, FinishReason::Length);
        answer.finished.cached_tokens
    };
    let of = |own, shared_tokens, shared| CacheSalt {
        shared_tokens,
        shared,
        own,
    };
    for (salt, expected) in [
        (CacheSalt::default(), 0),
        (CacheSalt::default(), 20),
        // Another client finds nothing of it, then what it wrote itself.
        (of(Some(1), 0, None), 0),
        (of(Some(1), 0, None), 20),
        (of(Some(2), 0, None), 0),
        // Ten tokens are the operator's: two blocks of four.
        (of(Some(3), 10, Some(9)), 0),
        (of(Some(4), 10, Some(9)), 8),
        (of(Some(4), 10, Some(9)), 20),
        (of(Some(5), 10, Some(8)), 0),
        // All of the prompt is the operator's.
        (of(Some(6), 25, Some(7)), 0),
        (of(None, 25, Some(7)), 20),
    ] {
        assert_eq!(cached(salt), expected, "{salt:?}");
    }
}

#[test]
fn failed_step_caches_nothing() {
    let model = FakeModel::new(limits(100)).with_fault(60, Fault::Error);
    let handle = start(model, EngineConfig::default());
    let fails = collect(handle.stream(greedy(prompt(1, 20, 60), 1)).unwrap());
    assert!(matches!(fails.finished.reason, FinishReason::Error(_)));
    let works = collect(handle.stream(greedy(prompt(1, 20, 5), 1)).unwrap());
    assert_eq!(works.finished.reason, FinishReason::Length);
    assert_eq!(works.finished.cached_tokens, 0);
}

#[test]
fn every_prompt_runs_completely_when_the_cache_is_off() {
    let config = EngineConfig {
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let handle = start(FakeModel::new(limits(100)), config);
    for _ in 0..2 {
        let answer = collect(handle.stream(greedy(prompt(1, 20, 5), 1)).unwrap());
        assert_eq!(answer.finished.cached_tokens, 0);
    }
    let stats = handle.stats();
    assert_eq!((stats.cached_blocks, stats.cached_tokens), (0, 0));
}

/// Few blocks, shared prefixes of every length, tones and blends, cancelled requests: evictions, preemptions and hits all
/// happen, and no token changes.
#[test]
fn no_token_changes_under_churn() {
    let mut dice = Dice::new(21);
    let requests: Vec<Request> = (0..600)
        .map(|_| {
            let drawn = dice.request();
            let tokens = 2 + dice.below(90) as u32;
            Request {
                prompt: prompt(dice.below(3) as u32, tokens, dice.below(VOCAB) as u32),
                adapters: match dice.below(3) {
                    0 => vec![],
                    1 => vec![(tone(dice.below(2) as u8), 1.0)],
                    _ => vec![(
                        tone(dice.below(usize::from(TONES)) as u8),
                        dice.pick(&[1.0, 0.5]),
                    )],
                },
                ..drawn
            }
        })
        .collect();
    let answers = |prefix_cache: bool, blocks: usize, max_batch: usize| {
        let config = EngineConfig {
            max_batch,
            max_queue: 1000,
            step_tokens: 40,
            prefill_chunk: 9,
            prefix_cache,
            ..EngineConfig::default()
        };
        let handle = start(FakeModel::new(limits(blocks)), config);
        let streams: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(i, request)| {
                // Every seventh is cancelled, at once or while it runs.
                let cancelled = i % 7 == 3;
                let mut stream = handle.stream(request.clone()).unwrap();
                if cancelled && i % 2 == 0 {
                    stream.next();
                }
                (!cancelled).then_some(stream)
            })
            .collect();
        let answers: Vec<_> = streams.into_iter().flatten().map(collect).collect();
        assert_idle(&handle);
        (answers, handle.stats())
    };
    let (expected, off) = answers(false, 3000, 4);
    assert_eq!(off.cached_tokens, 0);
    for (blocks, max_batch) in [(CONTEXT_BLOCKS, 8), (CONTEXT_BLOCKS + 30, 12), (2000, 32)] {
        let (answers, stats) = answers(true, blocks, max_batch);
        for (expected, answer) in expected.iter().zip(&answers) {
            assert_eq!(expected.content(), answer.content());
        }
        assert_eq!(stats.finished_error, 0);
        assert!(stats.cached_tokens > 1000, "{stats:?}");
        if blocks < 2000 {
            assert!(
                stats.cache_evictions > 100 && stats.preemptions > 10,
                "{stats:?}"
            );
        }
    }
}

/// All requests use the same few prompts, with adapters that are replaced now and then, at several scales and in blends, in a
/// pool for six and with few blocks. Adapters and blocks are evicted, and no token changes.
#[test]
fn replaced_and_evicted_adapters_never_share_blocks() {
    const NAMES: usize = 9;
    let mut dice = Dice::new(5);
    let mut versions = [0u8; NAMES];
    let mut requests = Vec::new();
    for _ in 0..500 {
        let name = dice.below(NAMES);
        // Another content under the same name has another id.
        versions[name] += u8::from(dice.below(12) == 0);
        let id = |name: usize| tone(20 + 20 * name as u8 + versions[name]);
        let mut adapters = vec![(id(name), dice.pick(&[1.0, 1.0, 0.5]))];
        if dice.below(4) == 0 {
            adapters.push((id((name + 1) % NAMES), 0.3));
        }
        let tokens = 10 + dice.pick(&[0, 10, 30]);
        let question = prompt(dice.below(2) as u32, tokens, dice.below(3) as u32);
        requests.push(Request {
            adapters,
            ..greedy(question, 1 + dice.below(12))
        });
    }
    assert!(versions.iter().all(|version| (1..20).contains(version)));
    let answers = |prefix_cache: bool| {
        let config = EngineConfig {
            max_batch: 6,
            max_queue: 1000,
            step_tokens: 40,
            prefill_chunk: 9,
            adapter_memory: 60,
            prefix_cache,
            ..EngineConfig::default()
        };
        let handle = start(FakeModel::new(limits(60)), config);
        let mut streams = Vec::new();
        for request in &requests {
            let wanted: Vec<_> = request.adapters.iter().map(|(id, _)| (*id, 10)).collect();
            let options = WaitOptions::default();
            let mut reservation = handle.reserve_adapters(&wanted, &options).unwrap();
            while let Some(id) = reservation.next_to_load(&options).unwrap() {
                let adapter = Arc::new(fake_adapter(id.0[0]));
                reservation.fill(adapter, 10, 10, Duration::ZERO).unwrap();
            }
            let leases = reservation.into_leases();
            streams.push(handle.stream(request.clone()).unwrap());
            drop(leases);
        }
        let answers: Vec<_> = streams.into_iter().map(collect).collect();
        assert_idle(&handle);
        (answers, handle.stats())
    };
    let (expected, off) = answers(false);
    assert_eq!(off.cached_tokens, 0);
    let (answers, stats) = answers(true);
    for (expected, answer) in expected.iter().zip(&answers) {
        assert_eq!(expected.content(), answer.content());
    }
    assert_eq!(stats.finished_error, 0);
    assert!(
        stats.cached_tokens > 500 && stats.cache_evictions > 100,
        "{stats:?}"
    );
    assert!(stats.adapters.evictions > 50, "{stats:?}");
}
