//! Draft tokens: fewer steps, the same answers.

use std::time::Duration;

use engine::{EngineConfig, Limits, Request, Sampling};
use testkit::FakeModel;

use crate::fixtures::{
    Answer, Dice, FakeHandle, assert_idle, collect, greedy, limits, start, tone,
};

/// A vocabulary so small that n-grams repeat.
const WORDS: usize = 3;

fn small_vocabulary(blocks: usize) -> Limits {
    Limits {
        vocab_size: WORDS,
        ..limits(blocks)
    }
}

/// Steps whose time does not depend on their rows: every draft is worth running.
fn engine(blocks: usize, draft_tokens: usize) -> FakeHandle {
    let model = FakeModel::new(small_vocabulary(blocks)).with_step_time(Duration::from_micros(200));
    let config = EngineConfig {
        draft_tokens,
        step_tokens: 64,
        prefill_chunk: 16,
        ..EngineConfig::default()
    };
    start(model, config)
}

fn requests(seed: u64, count: usize) -> Vec<Request> {
    let mut dice = Dice::new(seed);
    (0..count)
        .map(|_| {
            let prompt = 2 + dice.below(60);
            Request {
                prompt: (0..prompt).map(|_| dice.below(WORDS) as u32).collect(),
                adapters: (0..dice.below(3))
                    .map(|_| (tone(dice.below(3) as u8), 1.0))
                    .collect(),
                sampling: Sampling {
                    temperature: dice.pick(&[0.0, 0.5, 1.0]),
                    repetition_penalty: dice.pick(&[1.0, 1.0, 1.1]),
                    seed: Some(dice.below(1000) as u64),
                    ..Sampling::default()
                },
                stop_tokens: match dice.below(3) {
                    0 => vec![dice.below(WORDS) as u32],
                    _ => Vec::new(),
                },
                top_logprobs: dice.pick(&[None, Some(2)]),
                priority: dice.pick(&[0, 0, 1]),
                ..greedy(Vec::new(), 1 + dice.below(60))
            }
        })
        .collect()
}

fn answers(handle: &FakeHandle, requests: &[Request]) -> Vec<Answer> {
    let streams: Vec<_> = requests
        .iter()
        .map(|request| handle.stream(request.clone()).unwrap())
        .collect();
    streams.into_iter().map(collect).collect()
}

#[test]
fn drafts_give_the_same_answers_in_fewer_steps() {
    let (mut steps, mut accepted, mut preempted) = ([0, 0], 0, 0);
    // KV blocks for all requests, and for so few that requests are preempted.
    for (seed, blocks) in [(1, 2000), (2, 45), (3, 60), (4, 2000)] {
        let requests = requests(seed, 24);
        let both = [0, 8].map(|draft_tokens| {
            let handle = engine(blocks, draft_tokens);
            let answers = answers(&handle, &requests);
            let stats = handle.stats();
            assert_idle(&handle);
            (answers, stats)
        });
        let [(plain, plain_stats), (drafted, drafted_stats)] = both;
        for ((plain, drafted), request) in plain.iter().zip(&drafted).zip(&requests) {
            assert_eq!(plain.content(), drafted.content(), "{request:?}");
        }
        assert_eq!(
            (plain_stats.drafted_tokens, plain_stats.accepted_tokens),
            (0, 0)
        );
        assert_eq!(drafted_stats.sampled_tokens, plain_stats.sampled_tokens);
        assert!(drafted_stats.accepted_tokens <= drafted_stats.drafted_tokens);
        accepted += drafted_stats.accepted_tokens;
        preempted += drafted_stats.preemptions;
        steps[0] += plain_stats.steps;
        steps[1] += drafted_stats.steps;
    }
    assert!(accepted > 100, "{accepted}");
    assert!(preempted > 0);
    assert!(steps[1] < steps[0], "{steps:?}");
}

#[test]
fn single_answer_takes_fewer_steps_than_tokens() {
    let handle = engine(100, 8);
    let prompt: Vec<u32> = (0..40).map(|i| i % WORDS as u32).collect();
    let answer = collect(handle.stream(greedy(prompt.clone(), 100)).unwrap());
    assert_eq!(
        answer.ids(),
        FakeModel::greedy(WORDS, &prompt, &[], 100),
        "what the model generates one token after the other"
    );
    let stats = handle.stats();
    assert!(stats.accepted_tokens > 0, "{stats:?}");
    assert_eq!(
        stats.steps - 3,
        100 - 1 - stats.accepted_tokens,
        "three steps for the prompt, one for each token that was not drafted"
    );
}

/// If a row costs as much as a token, drafts are not worth running.
#[test]
fn drafts_that_do_not_pay_are_not_run() {
    // Long enough that the time of a row stands out where other tests use the processor.
    let model = FakeModel::new(small_vocabulary(100)).with_row_time(Duration::from_millis(5));
    let handle = start(model, EngineConfig::default());
    let prompt: Vec<u32> = (0..40).map(|i| i % WORDS as u32).collect();
    collect(handle.stream(greedy(prompt, 50)).unwrap());
    let stats = handle.stats();
    assert!(stats.drafted_tokens <= 5, "{stats:?}");
}
