//! What one client can take from another: nothing for longer than a few steps. Rows, KV blocks, prompt rows and permits are divided
//! by weight among the clients that have requests.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Client, EngineConfig, Event, FinishReason, Flow, Request, Sink, SubmitError};
use testkit::{FakeModel, StepSeen};

use crate::fixtures::{
    Answer, BLOCK, CONTEXT_BLOCKS, Dice, FakeHandle, assert_idle, collect, greedy, limits, start,
    wait_for_stats,
};

pub const HOSTILE: u64 = 1;
pub const OTHER: u64 = 2;

fn client(id: u64) -> Option<Client> {
    let weight = NonZeroU32::MIN;
    Some(Client { id, weight })
}

/// A request whose prompt is like no other's.
pub fn request_of(id: u64, number: u32, prompt: usize, new: usize) -> Request {
    let mut tokens = vec![id as u32; prompt];
    tokens[0] = number % 60;
    if let Some(second) = tokens.get_mut(1) {
        *second = number / 60;
    }
    Request {
        client: client(id),
        ..greedy(tokens, new)
    }
}

/// Submits a request and lets it run on its own.
fn submit(handle: &FakeHandle, request: Request) {
    let sink: Sink = Box::new(|_| Flow::Continue);
    handle.submit(request, sink).unwrap().detach();
}

type Seen = Arc<Mutex<Vec<StepSeen>>>;

/// Submits a request; the result holds the number of steps that had run at its first token.
fn first_token_step(
    handle: &FakeHandle,
    seen: &Seen,
    request: Request,
) -> Arc<Mutex<Option<usize>>> {
    let at = Arc::new(Mutex::new(None));
    let (found, seen) = (Arc::clone(&at), Arc::clone(seen));
    let sink: Sink = Box::new(move |event| {
        if let Event::Token(_) = event {
            found
                .lock()
                .unwrap()
                .get_or_insert(seen.lock().unwrap().len());
        }
        Flow::Continue
    });
    handle.submit(request, sink).unwrap().detach();
    at
}

/// Fills the batch with requests of one client, and returns how many steps pass until each of `others` gets its first token.
fn steps_until_served(
    blocks: usize,
    config: EngineConfig,
    hostile: impl Iterator<Item = Request>,
    others: Vec<Request>,
) -> Vec<usize> {
    let model = FakeModel::new(limits(blocks));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let handle = start(model, config);
    for request in hostile {
        submit(&handle, request);
    }
    gate.allow(30);
    gate.wait_for(31);
    let begun = seen.lock().unwrap().len();
    let others: Vec<_> = others
        .into_iter()
        .map(|request| first_token_step(&handle, &seen, request))
        .collect();
    gate.open();
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
    assert_idle(&handle);
    let step = |at: &Arc<Mutex<Option<usize>>>| at.lock().unwrap().expect("no token") - begun;
    others.iter().map(step).collect()
}

pub fn batch_of(max_batch: usize) -> EngineConfig {
    EngineConfig {
        max_batch,
        step_latency: Duration::MAX,
        ..EngineConfig::default()
    }
}

#[test]
fn client_gets_rows_of_a_full_batch_within_a_few_steps() {
    let hostile = (0..20).map(|n| request_of(HOSTILE, n, 4, 120));
    let others = (0..4).map(|n| request_of(OTHER, n, 4, 3)).collect();
    let steps = steps_until_served(1000, batch_of(8), hostile, others);
    // One step runs while they arrive.
    assert!(steps.iter().all(|steps| *steps <= 4), "{steps:?}");
}

#[test]
fn long_wait_of_one_clients_queue_does_not_keep_others_out() {
    // Every waiting request is overdue.
    let config = EngineConfig {
        max_wait: Duration::ZERO,
        ..batch_of(8)
    };
    let hostile = (0..60).map(|n| request_of(HOSTILE, n, 4, 120));
    let others = (0..4).map(|n| request_of(OTHER, n, 4, 3)).collect();
    let steps = steps_until_served(1000, config, hostile, others);
    assert!(steps.iter().all(|steps| *steps <= 4), "{steps:?}");
}

#[test]
fn client_gets_blocks_of_a_full_cache_within_a_few_steps() {
    // Three hostile requests grow to 32 blocks each, of 60; there are rows left.
    let hostile = (0..6).map(|n| request_of(HOSTILE, n, 60, 60));
    let others = (0..3).map(|n| request_of(OTHER, n, 30, 3)).collect();
    let steps = steps_until_served(60, batch_of(8), hostile, others);
    assert!(steps.iter().all(|steps| *steps <= 4), "{steps:?}");
}

#[test]
fn long_prompts_delay_a_short_one_of_another_client_by_a_step_at_most() {
    let config = EngineConfig {
        step_tokens: 16,
        ..batch_of(8)
    };
    let hostile = (0..20).map(|n| request_of(HOSTILE, n, 150, 2));
    let others = (0..2).map(|n| request_of(OTHER, n, 4, 1)).collect();
    let steps = steps_until_served(2000, config, hostile, others);
    assert!(steps.iter().all(|steps| *steps <= 3), "{steps:?}");
}

#[test]
fn client_decodes_its_share_of_the_batch_while_another_has_a_prompt() {
    let model = FakeModel::new(limits(2000));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let config = EngineConfig {
        step_tokens: 16,
        draft_tokens: 0,
        ..batch_of(8)
    };
    let handle = start(model, config);
    let tokens: Vec<Arc<AtomicUsize>> = (0..7).map(|_| Arc::default()).collect();
    for (n, tokens) in (0..7).zip(&tokens) {
        let tokens = Arc::clone(tokens);
        let sink: Sink = Box::new(move |_| {
            tokens.fetch_add(1, Ordering::Relaxed);
            Flow::Continue
        });
        let request = request_of(HOSTILE, n, 4, 120);
        handle.submit(request, sink).unwrap().detach();
    }
    gate.allow(30);
    gate.wait_for(31);
    let count = || tokens.iter().map(|count| count.load(Ordering::Relaxed));
    let before: Vec<usize> = count().collect();
    // Twelve rows of the prompt fit next to a share of four decodes, nine next to all seven.
    submit(&handle, request_of(OTHER, 0, 60, 1));
    gate.allow(7);
    gate.wait_for(38);
    let decodes: Vec<usize> = seen.lock().unwrap()[31..]
        .iter()
        .map(|step| step.sequences.iter().filter(|(_, rows)| *rows == 1).count())
        .collect();
    let grown = count().zip(&before).map(|(now, before)| now - before);
    let grown: Vec<usize> = grown.collect();
    gate.open();
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
    assert_idle(&handle);
    assert_eq!(decodes, [4, 4, 4, 4, 4, 7]);
    // Five steps leave out three sequences each: none is left out twice in a row.
    assert!(grown.iter().all(|tokens| *tokens >= 4), "{grown:?}");
}

#[test]
fn rows_stop_moving_once_each_client_has_its_share() {
    let model = FakeModel::new(limits(2000));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let handle = start(model, batch_of(8));
    for n in 0..20 {
        submit(&handle, request_of(HOSTILE, n, 4, 100));
    }
    gate.allow(5);
    gate.wait_for(6);
    for n in 0..20 {
        submit(&handle, request_of(OTHER, n, 4, 100));
        submit(&handle, request_of(3, n, 4, 100));
    }
    gate.allow(20);
    gate.wait_for(26);
    // 8 rows for 3 clients: two each, and the first keeps what the rounding leaves.
    let moved = handle.stats().preemptions;
    assert_eq!(moved, 4);
    gate.allow(40);
    gate.wait_for(66);
    assert_eq!(handle.stats().preemptions, moved);
    gate.open();
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
    assert!(seen.lock().unwrap().len() > 66);
    assert_idle(&handle);
}

#[test]
fn client_without_a_row_gets_one_even_if_there_are_more_clients_than_rows() {
    let model = FakeModel::new(limits(200)).with_step_time(Duration::from_millis(20));
    let config = EngineConfig {
        max_wait: Duration::from_millis(10),
        ..batch_of(2)
    };
    let handle = start(model, config);
    let ends = Arc::new(Mutex::new(Vec::new()));
    let run = |id, new| {
        let ends = Arc::clone(&ends);
        let sink: Sink = Box::new(move |event| {
            if let Event::Finished(end) = event {
                assert_eq!(end.reason, FinishReason::Length);
                ends.lock().unwrap().push(id);
            }
            Flow::Continue
        });
        handle
            .submit(request_of(id, 0, 4, new), sink)
            .unwrap()
            .detach();
    };
    run(HOSTILE, 150);
    run(3, 150);
    wait_for_stats(&handle, |stats| stats.running == 2);
    run(OTHER, 2);
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
    assert_eq!(ends.lock().unwrap()[0], OTHER);
    assert!(handle.stats().preemptions > 0);
}

#[test]
fn client_without_a_row_waits_no_longer_than_the_limit_whatever_the_shares_are() {
    let model = FakeModel::new(limits(2000)).with_step_time(Duration::from_millis(2));
    let config = EngineConfig {
        max_wait: Duration::from_millis(100),
        max_queue: 1000,
        ..batch_of(1)
    };
    let handle = start(model, config);
    let weight = NonZeroU32::new(100).unwrap();
    let (ended, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for feeder in 0..4 {
            let (handle, ended, done) = (&handle, &ended, &done);
            scope.spawn(move || {
                for n in 0..250 {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    // Short answers: no row runs for long enough to be taken.
                    let request = Request {
                        client: Some(Client {
                            id: HOSTILE,
                            weight,
                        }),
                        ..request_of(HOSTILE, feeder * 250 + n, 4, 2)
                    };
                    collect(handle.stream(request).unwrap());
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_for_stats(&handle, |stats| stats.running > 0);
        // Served once, this client has had its hundredth for long.
        for n in 0..2 {
            collect(handle.stream(request_of(OTHER, n, 60, 1)).unwrap());
        }
        done.store(true, Ordering::Relaxed);
    });
    let ended = ended.into_inner();
    assert!(ended < 500, "{ended} were served before it");
    assert_idle(&handle);
}

#[test]
fn client_cannot_hold_all_permits() {
    let (model, gate) = FakeModel::new(limits(1000)).gated();
    let handle = start(
        model,
        EngineConfig {
            max_queue: 32,
            ..batch_of(8)
        },
    );
    let mut held = 0;
    let sink = || -> Sink { Box::new(|_| Flow::Continue) };
    let refused = loop {
        match handle.submit(request_of(HOSTILE, held, 4, 2), sink()) {
            Ok(ticket) => ticket.detach(),
            Err(refused) => break refused,
        }
        held += 1;
    };
    assert!((20..30).contains(&held), "{held}");
    assert!(
        matches!(
            refused,
            SubmitError::AboveShare {
                limit: 40,
                asked: 1,
                ..
            }
        ),
        "{refused}"
    );
    for n in 0..5 {
        submit(&handle, request_of(OTHER, n, 4, 2));
    }
    gate.open();
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
}

#[test]
fn blocks_that_run_out_are_taken_from_the_client_above_its_share() {
    // The hostile rows grow until no block is left; the other client's row is the youngest and grows too.
    let model = FakeModel::new(limits(60));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let handle = start(model, batch_of(8));
    for n in 0..3 {
        submit(&handle, request_of(HOSTILE, n, 40, 80));
    }
    gate.allow(5);
    gate.wait_for(6);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let (found, seen) = (Arc::clone(&steps), Arc::clone(&seen));
    let sink: Sink = Box::new(move |event| {
        if let Event::Token(_) = event {
            found.lock().unwrap().push(seen.lock().unwrap().len());
        }
        Flow::Continue
    });
    let request = request_of(OTHER, 0, 8, 60);
    handle.submit(request, sink).unwrap().detach();
    gate.open();
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
    assert!(handle.stats().preemptions > 0);
    assert_idle(&handle);
    let steps = steps.lock().unwrap();
    assert_eq!(steps.len(), 60);
    // Its row is in every step: it is never preempted.
    assert!(steps[59] - steps[0] <= 59, "{steps:?}");
}

#[test]
fn step_of_one_clients_prompts_is_short_enough_for_a_newcomer() {
    // A row takes 1 ms, and no answer runs that would bound the step.
    let rows = |client: Option<Client>| {
        let model = FakeModel::new(limits(2000)).with_row_time(Duration::from_millis(1));
        let seen = model.seen();
        let config = EngineConfig {
            step_latency: Duration::from_millis(1),
            ..batch_of(8)
        };
        let handle = start(model, config);
        for n in 0..12 {
            let request = request_of(HOSTILE, n, 120, 1);
            submit(&handle, Request { client, ..request });
        }
        wait_for_stats(&handle, |stats| stats.in_flight == 0);
        let seen = seen.lock().unwrap();
        // The first steps run before the cost of a row is known.
        let rows = seen.iter().skip(2).map(|step| step.tokens.len());
        rows.max().unwrap_or(0)
    };
    assert!(rows(client(HOSTILE)) <= 64);
    // Without clients nobody waits for the step.
    assert!(rows(None) > 64);
}

/// Requests of several clients with any priorities, little memory: every request ends, with the tokens that it gets alone.
#[test]
fn tokens_are_the_same_whatever_other_clients_preempt() {
    let mut preemptions = 0;
    for (seed, max_batch, blocks, max_wait) in [
        (1, 4, CONTEXT_BLOCKS + 20, Duration::ZERO),
        (2, 8, CONTEXT_BLOCKS, Duration::MAX),
        (3, 8, 2000, Duration::from_millis(2)),
        (4, 2, 90, Duration::from_millis(1)),
    ] {
        let mut dice = Dice::new(seed);
        let requests: Vec<Request> = (0..120).map(|_| dice.request()).collect();
        let alone = start(FakeModel::new(limits(CONTEXT_BLOCKS)), batch_of(1));
        let expected: Vec<Answer> = requests
            .iter()
            .map(|request| collect(alone.stream(request.clone()).unwrap()))
            .collect();
        let config = EngineConfig {
            max_wait,
            step_tokens: 24,
            ..batch_of(max_batch)
        };
        let handle = start(FakeModel::new(limits(blocks)), config);
        // Later clients arrive while the first ones run.
        let streams: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(n, request)| {
                let weight = NonZeroU32::new([1, 1, 3, 10][n % 4]).unwrap();
                let id = (n / 30 + n % 2) as u64;
                std::thread::sleep(Duration::from_micros(200));
                handle.stream(Request {
                    client: (n % 11 > 0).then_some(Client { id, weight }),
                    ..request.clone()
                })
            })
            .collect();
        for ((request, expected), stream) in requests.iter().zip(expected).zip(streams) {
            let answer = collect(stream.unwrap());
            assert_eq!(expected.content(), answer.content(), "{request:?}");
        }
        assert_idle(&handle);
        preemptions += handle.stats().preemptions;
    }
    assert!(preemptions > 50, "only {preemptions} preemptions");
}

/// A request that needs more blocks than its client's share ends although others keep coming.
#[test]
fn request_above_its_share_of_blocks_does_not_starve() {
    let model = FakeModel::new(limits(CONTEXT_BLOCKS)).with_step_time(Duration::from_micros(300));
    let config = EngineConfig {
        max_wait: Duration::from_millis(20),
        ..batch_of(4)
    };
    let handle = start(model, config);
    // All of the cache at its end.
    let large = request_of(OTHER, 0, 30 * BLOCK, CONTEXT_BLOCKS * BLOCK - 30 * BLOCK);
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        // More than there are rows, so that some of them always wait.
        for feeder in 0..8 {
            let (handle, done) = (&handle, &done);
            scope.spawn(move || {
                let mut n = feeder * 400;
                while !done.load(Ordering::Relaxed) {
                    assert!(n < (feeder + 1) * 400, "the large request waits forever");
                    // Of different lengths, so that they do not end in one step.
                    let new = 5 + n as usize % 11;
                    let request = request_of(HOSTILE, n, 20, new);
                    assert_eq!(collect(handle.stream(request).unwrap()).tokens.len(), new);
                    n += 1;
                }
            });
        }
        wait_for_stats(&handle, |stats| stats.running > 0);
        let answer = collect(handle.stream(large).unwrap());
        done.store(true, Ordering::Relaxed);
        assert_eq!(answer.finished.reason, FinishReason::Length);
    });
    assert_idle(&handle);
}

/// A short request that waits behind a large one of its client takes no blocks from others, as it could not use them.
#[test]
fn large_requests_of_two_clients_do_not_preempt_each_other_for_ever() {
    let model = FakeModel::new(limits(40));
    let (model, gate) = model.gated();
    let config = EngineConfig {
        step_tokens: 24,
        max_wait: Duration::MAX,
        ..batch_of(8)
    };
    let handle = start(model, config);
    for id in [HOSTILE, OTHER] {
        for (n, prompt) in [(0, 148), (1, 8)] {
            submit(&handle, request_of(id, n, prompt, 4));
        }
    }
    gate.allow(100);
    wait_for_stats(&handle, |stats| stats.in_flight == 0 || stats.steps >= 100);
    let stats = handle.stats();
    gate.open();
    assert!(stats.in_flight == 0, "{} preemptions", stats.preemptions);
    assert_idle(&handle);
}

/// A request that needs more blocks than its client's share waits for room for four times `max_wait`; then nobody overtakes it.
#[test]
fn request_above_its_share_of_blocks_keeps_others_out_when_it_has_waited_for_long() {
    let model = FakeModel::new(limits(CONTEXT_BLOCKS)).with_step_time(Duration::from_millis(4));
    let (model, gate) = model.gated();
    let config = EngineConfig {
        // 4 times this is long enough for some requests, also if a step waits 30 ms for a busy machine.
        max_wait: Duration::from_millis(200),
        max_queue: 1000,
        ..batch_of(4)
    };
    let handle = start(model, config);
    let ended = Arc::new(AtomicUsize::new(0));
    let of_hostile = || -> Sink {
        let ended = Arc::clone(&ended);
        Box::new(move |event| {
            if let Event::Finished(_) = event {
                ended.fetch_add(1, Ordering::Relaxed);
            }
            Flow::Continue
        })
    };
    for n in 0..300 {
        // The first ones end in different steps and the others take equally long, so two never end in one step.
        let new = *[3, 5, 8].get(n as usize).unwrap_or(&10);
        let request = request_of(HOSTILE, n, 4 * BLOCK, new);
        handle.submit(request, of_hostile()).unwrap().detach();
    }
    let at = Arc::new(Mutex::new(None));
    let (found, seen) = (Arc::clone(&at), Arc::clone(&ended));
    let sink: Sink = Box::new(move |event| {
        if let Event::Token(_) = event {
            let ended = seen.load(Ordering::Relaxed);
            found.lock().unwrap().get_or_insert(ended);
        }
        Flow::Continue
    });
    let large = request_of(OTHER, 0, (CONTEXT_BLOCKS - 4) * BLOCK, 2);
    handle.submit(large, sink).unwrap().detach();
    gate.open();
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
    assert_idle(&handle);
    let overtook = at.lock().unwrap().unwrap();
    assert!((8..200).contains(&overtook), "{overtook} overtook it");
}
