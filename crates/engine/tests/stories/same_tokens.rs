//! The result of a request does not depend on the rest of its batch, on preemption, or on the chunks of its prompt.

use engine::{EngineConfig, FinishReason, Request, Sampling};
use testkit::FakeModel;

use crate::fixtures::{
    Answer, CONTEXT_BLOCKS, Dice, TONES, VOCAB, assert_idle, collect, fake_adapter, greedy, limits,
    start, tone,
};

/// Each request in an engine that runs nothing else.
fn alone(requests: &[Request]) -> Vec<Answer> {
    let config = EngineConfig {
        max_batch: 1,
        prefill_chunk: 256,
        ..EngineConfig::default()
    };
    let handle = start(FakeModel::new(limits(CONTEXT_BLOCKS)), config);
    let answer = |request: &Request| collect(handle.stream(request.clone()).unwrap());
    requests.iter().map(answer).collect()
}

fn assert_same(requests: &[Request], expected: &[Answer], answers: &[Answer], how: &str) {
    assert_eq!(expected.len(), answers.len());
    for ((request, expected), answer) in requests.iter().zip(expected).zip(answers) {
        assert_eq!(expected.content(), answer.content(), "{how}: {request:?}");
    }
}

#[test]
fn tokens_are_the_same_alone_batched_preempted_and_in_any_chunks() {
    // (max_batch, step_tokens, prefill_chunk, blocks)
    let settings = [
        (32, 256, 128, 2000),
        (32, 64, 7, CONTEXT_BLOCKS + 20),
        (8, 8, 3, CONTEXT_BLOCKS),
        (32, 33, 1, 200),
        (5, 200, 64, CONTEXT_BLOCKS + 5),
    ];
    let mut preemptions = 0;
    let mut steps = 0;
    let mut full_batches = 0;
    for seed in 0..4 {
        let mut dice = Dice::new(seed);
        let requests: Vec<Request> = (0..64).map(|_| dice.request()).collect();
        let expected = alone(&requests);
        for (max_batch, step_tokens, prefill_chunk, blocks) in settings {
            let config = EngineConfig {
                max_batch,
                step_tokens,
                prefill_chunk,
                ..EngineConfig::default()
            };
            // The latest token and its draft tokens.
            let drafted = 1 + config.draft_tokens;
            let model = FakeModel::new(limits(blocks));
            let seen = model.seen();
            let (model, gate) = model.gated();
            let handle = start(model, config.clone());
            let streams: Vec<_> = requests
                .iter()
                .map(|request| handle.stream(request.clone()).unwrap())
                .collect();
            gate.open();
            let answers: Vec<_> = streams.into_iter().map(collect).collect();
            assert_same(&requests, &expected, &answers, &format!("{config:?}"));
            assert_idle(&handle);
            let stats = handle.stats();
            preemptions += stats.preemptions;
            steps += stats.steps;
            for step in seen.lock().unwrap().iter() {
                assert!(step.tokens.len() <= step_tokens && step.sequences.len() <= max_batch);
                assert!(
                    step.sequences
                        .iter()
                        .all(|(_, rows)| *rows <= prefill_chunk.max(drafted))
                );
                full_batches += usize::from(step.sequences.len() == 32 && step.slots > 3);
            }
        }
    }
    assert!(preemptions > 50, "only {preemptions} preemptions");
    assert!(steps > 5000, "only {steps} steps");
    assert!(
        full_batches > 50,
        "only {full_batches} steps of 32 mixed tones"
    );
}

#[test]
fn tokens_are_the_same_from_whole_rows_and_from_candidates() {
    let mut dice = Dice::new(71);
    let mut requests: Vec<Request> = (0..60).map(|_| dice.request()).collect();
    for request in requests.iter_mut().skip(20) {
        // Sampling without penalties and biases needs no whole row.
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..
        } = request.sampling;
        request.sampling = Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..Sampling::default()
        };
    }
    let answers = |model: FakeModel| -> Vec<Answer> {
        let (model, gate) = model.gated();
        let handle = start(model, EngineConfig::default());
        let stream = |request: &Request| handle.stream(request.clone()).unwrap();
        let streams: Vec<_> = requests.iter().map(stream).collect();
        gate.open();
        streams.into_iter().map(collect).collect()
    };
    let model = FakeModel::new(limits(2000)).with_candidates();
    let seen = model.seen();
    let (few, whole) = (answers(model), answers(FakeModel::new(limits(2000))));
    for ((request, few), whole) in requests.iter().zip(&few).zip(&whole) {
        assert_eq!(few.ids(), whole.ids(), "{request:?}");
        assert_eq!(few.finished.reason, whole.finished.reason);
        let tokens = |answer: &Answer| -> Vec<(u32, f32)> {
            let all = answer.prompt.iter().chain(&answer.tokens);
            let all = all.flat_map(|token| {
                let own = token.logprob.map(|logprob| (token.id, logprob));
                own.into_iter().chain(token.top.iter().copied())
            });
            all.collect()
        };
        let (few, whole) = (tokens(few), tokens(whole));
        assert_eq!(few.len(), whole.len(), "{request:?}");
        for (few, whole) in few.iter().zip(&whole) {
            assert!(
                few.0 == whole.0 && (few.1 - whole.1).abs() < 1e-5,
                "{request:?}"
            );
        }
    }
    let rows: usize = seen
        .lock()
        .unwrap()
        .iter()
        .map(|step| step.candidate_rows)
        .sum();
    assert!(rows > 500, "only {rows} rows as candidates");
}

#[test]
fn greedy_answers_match_the_reference_model() {
    let handle = start(FakeModel::new(limits(60)), EngineConfig::default());
    let mut dice = Dice::new(99);
    let mut requests = Vec::new();
    for _ in 0..40 {
        let drawn = dice.request();
        requests.push(Request {
            adapters: drawn.adapters,
            ..greedy(drawn.prompt, drawn.max_new_tokens)
        });
    }
    let streams: Vec<_> = requests
        .iter()
        .map(|request| handle.stream(request.clone()).unwrap())
        .collect();
    for (request, stream) in requests.iter().zip(streams) {
        let fakes: Vec<_> = (0..TONES).map(fake_adapter).collect();
        let adapters: Vec<_> = request
            .adapters
            .iter()
            .map(|(id, scale)| {
                let n = (0..TONES).find(|n| tone(*n) == *id).unwrap();
                (&fakes[usize::from(n)], *scale)
            })
            .collect();
        let expected = FakeModel::greedy(VOCAB, &request.prompt, &adapters, request.max_new_tokens);
        assert_eq!(collect(stream).ids(), expected);
    }
}

#[test]
fn prompt_log_probabilities_match_those_of_sampled_tokens() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let prompt = vec![3, 9, 27, 20, 60, 3, 9, 27, 1, 0, 5];
    let ask = |prompt: &[u32], prompt_logprobs| {
        let request = Request {
            adapters: vec![(tone(1), 0.7)],
            top_logprobs: Some(2),
            prompt_logprobs,
            ..greedy(prompt.to_vec(), 3)
        };
        handle.stream(request)
    };
    let with = collect(ask(&prompt, true).unwrap());
    assert_eq!(with.prompt.len(), prompt.len() - 1);
    // The slow way: for each prefix of the prompt, a bias forces the next token.
    for (at, token) in with.prompt.iter().enumerate() {
        let request = Request {
            adapters: vec![(tone(1), 0.7)],
            top_logprobs: Some(2),
            sampling: engine::Sampling {
                logit_bias: vec![(prompt[at + 1], 100.0)],
                ..engine::Sampling::greedy()
            },
            ..greedy(prompt[..=at].to_vec(), 1)
        };
        assert_eq!(*token, collect(handle.stream(request).unwrap()).tokens[0]);
    }
    // The prompt is cached by now; the result is the same.
    assert_eq!(
        collect(ask(&prompt, true).unwrap()).content(),
        with.content()
    );
    let plain = collect(ask(&prompt, false).unwrap());
    assert_eq!((plain.prompt.len(), &plain.tokens), (0, &with.tokens));
    // A prompt of one token has no log-probabilities.
    assert_eq!(collect(ask(&prompt[..1], true).unwrap()).prompt, []);
    assert!(matches!(
        handle.stream(Request {
            prompt_logprobs: true,
            ..greedy(vec![1], 1)
        }),
        Err(engine::SubmitError::InvalidSampling {
            field: "prompt_logprobs",
            ..
        })
    ));
}

#[test]
fn adapters_scales_and_seeds_change_the_result() {
    let handle = start(FakeModel::new(limits(200)), EngineConfig::default());
    let base = Request {
        sampling: engine::Sampling {
            seed: Some(1),
            ..engine::Sampling::default()
        },
        ..greedy(vec![1, 2, 3], 20)
    };
    let mut variants = vec![base.clone(); 5];
    variants[1].adapters = vec![(tone(0), 1.0)];
    variants[2].adapters = vec![(tone(1), 1.0)];
    variants[3].adapters = vec![(tone(0), 0.5)];
    variants[4].sampling.seed = Some(2);
    let answers: Vec<_> = variants
        .into_iter()
        .map(|request| collect(handle.stream(request).unwrap()).ids())
        .collect();
    for (i, a) in answers.iter().enumerate() {
        for b in &answers[i + 1..] {
            assert_ne!(a, b);
        }
    }
}

/// Many threads, requests cancelled at any moment, little memory: a request that reaches its end has the right tokens, a
/// cancelled one has a prefix of them, and nothing is held afterwards.
#[test]
fn many_cancellations_change_no_token_and_leak_nothing() {
    let mut dice = Dice::new(7);
    let requests: Vec<Request> = (0..400).map(|_| dice.request()).collect();
    let expected = alone(&requests);
    let config = EngineConfig {
        max_batch: 12,
        max_queue: 1000,
        step_tokens: 40,
        prefill_chunk: 9,
        ..EngineConfig::default()
    };
    let handle = start(FakeModel::new(limits(CONTEXT_BLOCKS + 10)), config);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (handle, requests, expected) = (&handle, &requests, &expected);
            scope.spawn(move || {
                let mut dice = Dice::new(1000 + thread as u64);
                for at in (thread..requests.len()).step_by(8) {
                    let mut stream = handle.stream(requests[at].clone()).unwrap();
                    if dice.below(3) == 0 {
                        let read = stream.by_ref().take(dice.below(10));
                        let prefix: Vec<_> = read
                            .filter_map(|event| match event {
                                engine::Event::Token(token) => Some(token),
                                engine::Event::Prompt(_) | engine::Event::Finished(_) => None,
                            })
                            .collect();
                        assert!(expected[at].tokens.starts_with(&prefix));
                    } else {
                        let answer = collect(stream);
                        assert_eq!(answer.content(), expected[at].content());
                    }
                }
            });
        }
    });
    assert_idle(&handle);
    let stats = handle.stats();
    assert!(
        stats.preemptions > 0 && stats.finished_cancelled > 0,
        "{stats:?}"
    );
    assert_eq!(stats.finished_error, 0);
    assert!(matches!(
        collect(handle.stream(greedy(vec![1], 3)).unwrap())
            .finished
            .reason,
        FinishReason::Length
    ));
}
