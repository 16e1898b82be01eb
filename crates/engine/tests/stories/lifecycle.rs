//! How requests end: stop tokens, cancellation, a failing model, a failing sink, the shutdown of the engine.

use std::sync::Arc;
use std::sync::mpsc::channel;

use engine::{EngineConfig, Event, FinishReason, Flow, Request, Sampling, Sink, SubmitError};
use testkit::{FakeModel, Fault};

use crate::fixtures::{assert_idle, collect, greedy, limits, start, tone, wait_for_stats};

#[test]
fn stop_token_ends_the_request_and_is_counted_but_not_emitted() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let all = collect(handle.stream(greedy(vec![3, 4], 30)).unwrap());
    assert_eq!(all.finished.reason, FinishReason::Length);
    assert_eq!(all.finished.completion_tokens, 30);
    let stop = all.ids()[9];
    let first = all.ids().iter().position(|id| *id == stop).unwrap();
    let request = Request {
        stop_tokens: vec![60, stop],
        ..greedy(vec![3, 4], 30)
    };
    let stopped = collect(handle.stream(request).unwrap());
    assert_eq!(stopped.ids(), all.ids()[..first]);
    assert_eq!(stopped.finished.reason, FinishReason::Stop);
    assert_eq!(stopped.finished.completion_tokens, first + 1);
    assert_eq!(stopped.finished.prompt_tokens, 2);
    let timings = stopped.finished.timings;
    assert!(timings.queue <= timings.first_token.unwrap());
    assert!(timings.first_token.unwrap() <= timings.total);
}

#[test]
fn log_probabilities_are_emitted_on_request() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let ask = |top_logprobs| {
        let request = Request {
            top_logprobs,
            ..greedy(vec![5], 4)
        };
        collect(handle.stream(request).unwrap()).tokens
    };
    for token in ask(None) {
        assert!(token.logprob.is_none() && token.top.is_empty());
    }
    for token in ask(Some(0)) {
        assert!(token.logprob.is_some_and(|p| p < 0.0) && token.top.is_empty());
    }
    for token in ask(Some(20)) {
        assert_eq!(token.top.len(), 20);
        // Greedy: the token is the most probable one.
        assert_eq!(token.top[0], (token.id, token.logprob.unwrap()));
        assert!(token.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

#[test]
fn dropped_ticket_cancels_running_and_waiting_requests() {
    let model = FakeModel::new(limits(100));
    let seen = model.seen();
    let (model, gate) = model.gated();
    let config = EngineConfig {
        max_batch: 1,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let (sender, events) = channel();
    let submit = |name: u32| {
        let sender = sender.clone();
        let sink: Sink = Box::new(move |event| {
            sender.send((name, event)).unwrap();
            Flow::Continue
        });
        handle.submit(greedy(vec![name], 100), sink).unwrap()
    };
    let running = submit(1);
    gate.wait_for(1);
    let waiting = submit(2);
    let cancelled = submit(3);
    drop(waiting);
    cancelled.cancel();
    drop(running);
    gate.open();
    assert_idle(&handle);
    drop(sender);
    // Ends when the last sink is dropped.
    let mut ends = Vec::new();
    for (name, event) in events {
        if let Event::Finished(finished) = event {
            assert_eq!(finished.reason, FinishReason::Cancelled);
            ends.push(name);
        }
    }
    ends.sort_unstable();
    assert_eq!(ends, [1, 2, 3], "each ends exactly once");
    assert_eq!(
        seen.lock().unwrap().len(),
        1,
        "a cancelled waiting request costs no step"
    );
}

#[test]
fn detached_ticket_lets_the_request_run_to_its_end() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let (sender, events) = channel();
    let sink: Sink = Box::new(move |event| {
        sender.send(event).unwrap();
        Flow::Continue
    });
    handle.submit(greedy(vec![1], 50), sink).unwrap().detach();
    assert_eq!(events.iter().count(), 51);
}

#[test]
fn sink_that_stops_or_panics_ends_only_its_own_request() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, EngineConfig::default());
    let (sender, events) = channel();
    let mut received = 0;
    let enough: Sink = Box::new(move |event| {
        sender.send(event).unwrap();
        received += 1;
        if received < 5 {
            Flow::Continue
        } else {
            Flow::Stop
        }
    });
    let panics: Sink = Box::new(|_| panic!("a sink that panics"));
    let other = handle.stream(greedy(vec![9], 60)).unwrap();
    let tickets = [
        handle.submit(greedy(vec![1], 100), enough).unwrap(),
        handle.submit(greedy(vec![2], 100), panics).unwrap(),
    ];
    gate.open();
    assert_eq!(collect(other).tokens.len(), 60);
    assert_idle(&handle);
    drop(tickets);
    let events: Vec<_> = events.iter().collect();
    assert_eq!(events.len(), 6, "five tokens and the end: {events:?}");
    let Event::Finished(end) = &events[5] else {
        panic!("{events:?}");
    };
    assert_eq!(
        (&end.reason, end.completion_tokens),
        (&FinishReason::Cancelled, 5)
    );
    assert_eq!(handle.stats().finished_cancelled, 2);
}

#[test]
fn failed_step_ends_its_requests_and_the_engine_continues() {
    let faults = [
        (
            40,
            Fault::Panic,
            "the model panicked: a fault that the test set",
        ),
        (41, Fault::Error, "a fault that the test set"),
        (42, Fault::TooFewLogits, "the model gave"),
        (
            43,
            Fault::NotNumbers,
            "the model's logits for position 2 are not numbers",
        ),
    ];
    for (token, fault, message) in faults {
        let (model, gate) = FakeModel::new(limits(100)).with_fault(token, fault).gated();
        let handle = start(model, EngineConfig::default());
        let first = handle.stream(greedy(vec![1], 1)).unwrap();
        gate.wait_for(1);
        let bad = Request {
            adapters: vec![(tone(1), 1.0)],
            ..greedy(vec![2, token], 10)
        };
        let neighbour = handle.stream(greedy(vec![3], 10)).unwrap();
        let bad = handle.stream(bad).unwrap();
        gate.open();
        assert_eq!(collect(first).finished.reason, FinishReason::Length);
        let bad = collect(bad);
        let FinishReason::Error(text) = &bad.finished.reason else {
            panic!("{fault:?}: {bad:?}");
        };
        assert!(text.starts_with(message), "{text}");
        assert_eq!(bad.tokens, []);
        // A step fails as a whole; logits that are not numbers end only their own request.
        let neighbour = collect(neighbour).finished.reason;
        if fault == Fault::NotNumbers {
            assert_eq!(neighbour, FinishReason::Length);
        } else {
            assert_eq!(neighbour, bad.finished.reason);
        }
        assert_idle(&handle);
        let after = collect(handle.stream(greedy(vec![1], 30)).unwrap());
        assert_eq!(after.finished.reason, FinishReason::Length);
    }
}

#[test]
fn shutdown_ends_running_and_waiting_requests_as_cancelled() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        max_batch: 2,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let streams: Vec<_> = (0..6)
        .map(|n| handle.stream(greedy(vec![n], 100)).unwrap())
        .collect();
    gate.allow(5);
    gate.wait_for(6);
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| handle.shutdown());
        // The sixth step is held at the gate until the shutdown has begun.
        while handle.stream(greedy(vec![1], 1)).is_ok() {
            std::thread::yield_now();
        }
        gate.open();
        ending.join().unwrap();
    });
    handle.shutdown();
    for stream in streams {
        assert_eq!(collect(stream).finished.reason, FinishReason::Cancelled);
    }
    let refused = handle.stream(greedy(vec![1], 1)).map(|_| ()).unwrap_err();
    assert_eq!(refused, SubmitError::Stopped);
    assert_idle(&handle);
}

#[test]
fn dropping_the_last_handle_stops_the_engine() {
    let model = FakeModel::new(limits(100));
    let seen = model.seen();
    let handle = start(model, EngineConfig::default());
    let clone = handle.clone();
    drop(handle);
    assert_eq!(
        collect(clone.stream(greedy(vec![1], 5)).unwrap())
            .tokens
            .len(),
        5
    );
    let stream = clone.stream(greedy(vec![1], 150)).unwrap();
    drop(clone);
    // The thread was joined: the model is dropped, and its clone of `seen` with it.
    assert_eq!(Arc::strong_count(&seen), 1);
    let reason = collect(stream).finished.reason;
    assert!(matches!(
        reason,
        FinishReason::Cancelled | FinishReason::Length
    ));
}

#[test]
fn sink_may_use_and_drop_the_last_handle_on_the_engines_thread() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let (sender, events) = channel();
    let mut inner = Some(handle.clone());
    let sink: Sink = Box::new(move |event| {
        if matches!(event, Event::Finished(_))
            && let Some(handle) = inner.take()
        {
            let next = handle.stream(greedy(vec![1], 2));
            sender.send(next.is_ok()).unwrap();
            handle.shutdown();
        }
        Flow::Continue
    });
    handle.submit(greedy(vec![1], 3), sink).unwrap().detach();
    drop(handle);
    assert!(events.recv().unwrap());
    assert!(
        events.recv().is_err(),
        "the sink is dropped with its request"
    );
}

#[test]
fn requests_with_equal_seeds_are_equal_and_unseeded_ones_differ() {
    let handle = start(FakeModel::new(limits(100)), EngineConfig::default());
    let ask = |seed| {
        let request = Request {
            sampling: Sampling {
                seed,
                ..Sampling::default()
            },
            ..greedy(vec![1], 30)
        };
        collect(handle.stream(request).unwrap()).ids()
    };
    assert_ne!(ask(None), ask(None));
    assert_eq!(ask(Some(4)), ask(Some(4)));
    wait_for_stats(&handle, |stats| stats.finished_length == 4);
}
