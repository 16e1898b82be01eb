//! Which request goes first: fair share, priority, long waits, deadlines, and the time limit of a step.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Client, EngineConfig, Event, FinishReason, Flow, Request, Sink};
use testkit::FakeModel;

use crate::fixtures::{
    CONTEXT_BLOCKS, FakeHandle, assert_idle, collect, greedy, limits, start, tone, wait_for_stats,
};

/// One request at a time, and no wait is too long.
fn one_at_a_time() -> EngineConfig {
    EngineConfig {
        max_batch: 1,
        max_wait: Duration::MAX,
        ..EngineConfig::default()
    }
}

fn request_to(n: u8, prompt: usize, new: usize) -> Request {
    Request {
        adapters: vec![(tone(n), 1.0)],
        ..greedy(vec![u32::from(n); prompt], new)
    }
}

/// The names of requests in the order in which they ended.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Vec<String>>>);

impl Ends {
    fn submit(&self, handle: &FakeHandle, name: &str, request: Request) {
        let (ends, name) = (self.clone(), name.to_owned());
        let sink: Sink = Box::new(move |event| {
            if let Event::Finished(_) = event {
                ends.0.lock().unwrap().push(name.clone());
            }
            Flow::Continue
        });
        handle.submit(request, sink).unwrap().detach();
    }

    fn once_all_ended(&self, handle: &FakeHandle) -> Vec<String> {
        wait_for_stats(handle, |stats| stats.in_flight == 0);
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[test]
fn tone_with_many_requests_leaves_others_their_share() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_at_a_time());
    let ends = Ends::default();
    // A step of another tone is held at the gate until all requests have arrived, so none of them is served before the last
    // arrives.
    ends.submit(&handle, "opener", request_to(3, 10, 4));
    wait_for_stats(&handle, |stats| stats.running == 1);
    for n in 0..20 {
        ends.submit(&handle, &format!("loud {n}"), request_to(1, 10, 4));
    }
    for n in 0..3 {
        ends.submit(&handle, &format!("quiet {n}"), request_to(2, 10, 4));
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    let positions: Vec<usize> = (0..3)
        .map(|n| {
            let name = format!("quiet {n}");
            order.iter().position(|end| *end == name).unwrap()
        })
        .collect();
    // They take every other turn after the opener's, and each tone keeps its order.
    assert_eq!(positions, [2, 4, 6], "{order:?}");
    let loud: Vec<_> = order.iter().filter(|end| end.starts_with("loud")).collect();
    assert!(
        (0..20).all(|n| *loud[n] == format!("loud {n}")),
        "{order:?}"
    );
    assert_idle(&handle);
}

#[test]
fn client_gets_its_share_whatever_tones_the_others_use() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_at_a_time());
    let ends = Ends::default();
    let client = |id, weight| {
        let weight = NonZeroU32::new(weight).unwrap();
        Some(Client { id, weight })
    };
    ends.submit(&handle, "opener", request_to(3, 10, 4));
    wait_for_stats(&handle, |stats| stats.running == 1);
    // One client uses two tones, the other one of them; using more tones does not give a larger share.
    for n in 0..12 {
        for (name, tone, client) in [
            ("loud", 1 + n % 2, client(1, 1)),
            ("heavy", 1, client(2, 3)),
        ] {
            let mut request = request_to(tone, 10, 1);
            // Prompts that are not cached, all of the same cost.
            request.prompt[0] = 20 + u32::from(n) + 12 * u32::from(name == "loud");
            ends.submit(&handle, name, Request { client, ..request });
        }
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    let heavy = order[1..17].iter().filter(|end| *end == "heavy").count();
    assert_eq!(heavy, 12, "{order:?}");
    assert_idle(&handle);
}

#[test]
fn long_prompts_cost_more_of_the_share_than_short_ones() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_at_a_time());
    let ends = Ends::default();
    // Prompts that are not cached: each begins with another token.
    for n in 0..4 {
        let mut long = request_to(1, 100, 1);
        long.prompt[0] = 10 + n;
        ends.submit(&handle, "long", long);
    }
    for n in 0..20 {
        let mut short = request_to(2, 20, 1);
        short.prompt[0] = 20 + n;
        ends.submit(&handle, "short", short);
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    let between: Vec<usize> = order
        .split(|end| end == "long")
        .map(<[String]>::len)
        .collect();
    // One prompt of 100 rows costs as much as five of 20.
    assert_eq!(between, [0, 5, 5, 5, 5], "{order:?}");
}

#[test]
fn lower_priority_number_goes_first() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_at_a_time());
    let ends = Ends::default();
    ends.submit(&handle, "runs", request_to(1, 3, 2));
    gate.wait_for(1);
    for priority in [5, -2, 0, i32::MIN, i32::MAX, 0] {
        let request = Request {
            priority,
            ..request_to(1, 3, 2)
        };
        ends.submit(&handle, &priority.to_string(), request);
    }
    gate.open();
    let expected = ["runs", "-2147483648", "-2", "0", "0", "5", "2147483647"];
    assert_eq!(ends.once_all_ended(&handle), expected);
}

#[test]
fn overdue_requests_go_first_in_order_of_arrival() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        max_wait: Duration::ZERO,
        ..one_at_a_time()
    };
    let handle = start(model, config);
    let ends = Ends::default();
    for (name, priority) in [("first", 9), ("second", 0), ("third", -9)] {
        let request = Request {
            priority,
            ..request_to(1, 3, 2)
        };
        ends.submit(&handle, name, request);
    }
    gate.open();
    assert_eq!(ends.once_all_ended(&handle), ["first", "second", "third"]);
}

/// Requests with a better priority keep arriving; one with the default priority still gets its turn after `max_wait`.
#[test]
fn low_priority_request_does_not_starve() {
    let max_wait = Duration::from_millis(200);
    let config = EngineConfig {
        max_wait,
        max_queue: 1000,
        ..one_at_a_time()
    };
    // 300 urgent requests of 2 ms each.
    let model = FakeModel::new(limits(100)).with_row_time(Duration::from_micros(500));
    let (model, gate) = model.gated();
    let handle = start(model, config);
    let urgent = Ends::default();
    let submit_urgent = || {
        let request = Request {
            priority: -1,
            ..request_to(1, 2, 3)
        };
        urgent.submit(&handle, "urgent", request);
    };
    submit_urgent();
    let patient = handle.stream(request_to(2, 2, 3)).unwrap();
    for _ in 1..300 {
        submit_urgent();
    }
    gate.open();
    let answer = collect(patient);
    let before = urgent.0.lock().unwrap().len();
    assert_eq!(answer.finished.reason, FinishReason::Length);
    assert!(answer.finished.timings.queue >= max_wait);
    assert!(before < 300, "all urgent requests went first");
}

#[test]
fn deadline_ends_running_and_waiting_requests() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_at_a_time());
    let within = |request: Request| Request {
        deadline: Some(Duration::from_millis(30)),
        ..request
    };
    let runs = handle.stream(within(request_to(1, 3, 50))).unwrap();
    gate.allow(2);
    gate.wait_for(3);
    let waits = handle.stream(within(request_to(2, 3, 50))).unwrap();
    let unlimited = handle.stream(request_to(3, 3, 5)).unwrap();
    std::thread::sleep(Duration::from_millis(40));
    gate.open();
    let runs = collect(runs);
    assert_eq!(runs.finished.reason, FinishReason::Deadline);
    assert_eq!(runs.tokens.len(), 3);
    let waits = collect(waits);
    assert_eq!(waits.finished.reason, FinishReason::Deadline);
    assert_eq!(waits.tokens.len(), 0);
    assert!(waits.finished.timings.total >= Duration::from_millis(30));
    assert_eq!(collect(unlimited).finished.reason, FinishReason::Length);
    assert_eq!(handle.stats().finished_deadline, 2);
    assert_idle(&handle);
}

#[test]
fn prefill_chunk_keeps_the_step_within_step_latency() {
    let model = FakeModel::new(limits(100)).with_row_time(Duration::from_millis(1));
    let seen = model.seen();
    let config = EngineConfig {
        step_latency: Duration::from_millis(30),
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    // A prompt and its decodes, from which the engine learns the time of a row.
    let decoding = handle.stream(greedy(vec![1; 50], 100)).unwrap();
    wait_for_stats(&handle, |stats| stats.steps >= 10);
    let long = handle.stream(greedy(vec![2; 150], 1)).unwrap();
    collect(long);
    drop(decoding);
    let seen = seen.lock().unwrap();
    let chunks: Vec<usize> = seen
        .iter()
        .filter(|step| step.sequences.len() == 2)
        .map(|step| step.sequences[1].1)
        .collect();
    assert_eq!(chunks.iter().sum::<usize>(), 150, "{chunks:?}");
    // One row is the decode. A sleep is never shorter than requested, so there are never more rows than this.
    assert!(chunks.iter().all(|rows| *rows <= 29), "{chunks:?}");
    // Chunks keep a minimum size on a slow machine: prefills make progress.
    let whole = &chunks[..chunks.len() - 1];
    assert!(whole.iter().all(|rows| *rows >= 8), "{chunks:?}");
}

#[test]
fn lower_priority_is_preempted_when_blocks_run_out() {
    let (model, gate) = FakeModel::new(limits(CONTEXT_BLOCKS)).gated();
    let config = EngineConfig {
        max_batch: 2,
        max_wait: Duration::MAX,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let ends = Ends::default();
    // Each grows to 32 blocks of 40.
    for (n, name, priority) in [(1, "older", 1), (2, "urgent", 0)] {
        let request = Request {
            priority,
            ..request_to(n, 28, 100)
        };
        ends.submit(&handle, name, request);
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    assert_eq!(order, ["urgent", "older"]);
    assert!(handle.stats().preemptions > 0);
    assert_idle(&handle);
}

/// KV blocks for two requests only, any priorities.
#[test]
fn every_request_ends_with_blocks_for_two() {
    let handle = start(
        FakeModel::new(limits(45)),
        EngineConfig {
            max_wait: Duration::from_millis(1),
            ..EngineConfig::default()
        },
    );
    let streams: Vec<_> = (0..40)
        .map(|n| {
            let request = Request {
                priority: n % 5 - 2,
                ..request_to(n as u8 % 4, 30 + n as usize, 60)
            };
            handle.stream(request).unwrap()
        })
        .collect();
    for stream in streams {
        assert_eq!(collect(stream).finished.reason, FinishReason::Length);
    }
    assert!(handle.stats().preemptions > 0);
    assert_idle(&handle);
}
