//! Whose turn it is: shares, priorities, long waits, deadlines, and how long a step may take.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Client, EngineConfig, Event, FinishReason, Flow, Request, Sink};
use testkit::FakeModel;

use crate::scene::{
    CONTEXT_BLOCKS, FakeHandle, assert_at_rest, collect, greedy, limits, settled, start, tone,
};

/// One seat, and no wait is too long.
fn one_seat() -> EngineConfig {
    EngineConfig {
        max_batch: 1,
        max_wait: Duration::MAX,
        ..EngineConfig::default()
    }
}

fn of(n: u8, prompt: usize, new: usize) -> Request {
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
        settled(handle, |stats| stats.in_flight == 0);
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[test]
fn a_tone_with_many_requests_leaves_the_others_their_part() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_seat());
    let ends = Ends::default();
    // The step of another tone waits at the gate until all others have come: none of them is served before the last is here.
    ends.submit(&handle, "opener", of(3, 10, 4));
    settled(&handle, |stats| stats.running == 1);
    for n in 0..20 {
        ends.submit(&handle, &format!("loud {n}"), of(1, 10, 4));
    }
    for n in 0..3 {
        ends.submit(&handle, &format!("quiet {n}"), of(2, 10, 4));
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    let places: Vec<usize> = (0..3)
        .map(|n| {
            let name = format!("quiet {n}");
            order.iter().position(|end| *end == name).unwrap()
        })
        .collect();
    // Every other turn after the opener's, and each tone in its own order.
    assert_eq!(places, [2, 4, 6], "{order:?}");
    let loud: Vec<_> = order.iter().filter(|end| end.starts_with("loud")).collect();
    assert!(
        (0..20).all(|n| *loud[n] == format!("loud {n}")),
        "{order:?}"
    );
    assert_at_rest(&handle);
}

#[test]
fn a_client_gets_its_share_whatever_the_others_ask_for() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_seat());
    let ends = Ends::default();
    let client = |id, weight| {
        let weight = NonZeroU32::new(weight).unwrap();
        Some(Client { id, weight })
    };
    ends.submit(&handle, "opener", of(3, 10, 4));
    settled(&handle, |stats| stats.running == 1);
    // One client asks for two tones, the other for one of them; a share is not had twice by asking for more tones.
    for n in 0..12 {
        for (name, tone, client) in [
            ("loud", 1 + n % 2, client(1, 1)),
            ("heavy", 1, client(2, 3)),
        ] {
            let mut request = of(tone, 10, 1);
            // Prompts that the cache does not know, all of the same cost.
            request.prompt[0] = 20 + u32::from(n) + 12 * u32::from(name == "loud");
            ends.submit(&handle, name, Request { client, ..request });
        }
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    let heavy = order[1..17].iter().filter(|end| *end == "heavy").count();
    assert_eq!(heavy, 12, "{order:?}");
    assert_at_rest(&handle);
}

#[test]
fn long_prompts_count_for_more_than_short_ones() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_seat());
    let ends = Ends::default();
    // Prompts that the cache does not know: each begins with another token.
    for n in 0..4 {
        let mut long = of(1, 100, 1);
        long.prompt[0] = 10 + n;
        ends.submit(&handle, "long", long);
    }
    for n in 0..20 {
        let mut short = of(2, 20, 1);
        short.prompt[0] = 20 + n;
        ends.submit(&handle, "short", short);
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    let between: Vec<usize> = order
        .split(|end| end == "long")
        .map(<[String]>::len)
        .collect();
    // A first step of 100 rows is made up for by five of 20, and so on.
    assert_eq!(between, [0, 5, 5, 5, 5], "{order:?}");
}

#[test]
fn the_lower_priority_goes_first() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_seat());
    let ends = Ends::default();
    ends.submit(&handle, "runs", of(1, 3, 2));
    gate.wait_for(1);
    for priority in [5, -2, 0, i32::MIN, i32::MAX, 0] {
        let request = Request {
            priority,
            ..of(1, 3, 2)
        };
        ends.submit(&handle, &priority.to_string(), request);
    }
    gate.open();
    let expected = ["runs", "-2147483648", "-2", "0", "0", "5", "2147483647"];
    assert_eq!(ends.once_all_ended(&handle), expected);
}

#[test]
fn a_long_wait_goes_before_everything() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        max_wait: Duration::ZERO,
        ..one_seat()
    };
    let handle = start(model, config);
    let ends = Ends::default();
    for (name, priority) in [("first", 9), ("second", 0), ("third", -9)] {
        let request = Request {
            priority,
            ..of(1, 3, 2)
        };
        ends.submit(&handle, name, request);
    }
    gate.open();
    assert_eq!(ends.once_all_ended(&handle), ["first", "second", "third"]);
}

/// Somebody important is always there; what came before and is not important gets its turn all the same.
#[test]
fn nobody_starves() {
    let config = EngineConfig {
        max_wait: Duration::from_millis(20),
        ..one_seat()
    };
    let model = FakeModel::new(limits(100)).with_row_time(Duration::from_micros(200));
    let handle = Arc::new(start(model, config));
    let stop = Arc::new(AtomicUsize::new(0));
    let important = |handle: &FakeHandle| {
        handle.stream(Request {
            priority: -1,
            ..of(1, 2, 3)
        })
    };
    let feeders: Vec<_> = (0..3)
        .map(|_| {
            let (handle, stop) = (Arc::clone(&handle), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut count = 0;
                while stop.load(Ordering::Relaxed) == 0 {
                    collect(important(&handle).unwrap());
                    count += 1;
                }
                count
            })
        })
        .collect();
    settled(&handle, |stats| stats.waiting >= 2);
    let answer = collect(handle.stream(of(2, 2, 3)).unwrap());
    stop.store(1, Ordering::Relaxed);
    assert_eq!(answer.finished.reason, FinishReason::Length);
    assert!(answer.finished.timings.queue >= Duration::from_millis(20));
    for feeder in feeders {
        assert!(feeder.join().unwrap() > 0);
    }
}

#[test]
fn a_deadline_ends_a_request_that_waits_and_one_that_runs() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let handle = start(model, one_seat());
    let within = |request: Request| Request {
        deadline: Some(Duration::from_millis(30)),
        ..request
    };
    let runs = handle.stream(within(of(1, 3, 50))).unwrap();
    gate.allow(2);
    gate.wait_for(3);
    let waits = handle.stream(within(of(2, 3, 50))).unwrap();
    let patient = handle.stream(of(3, 3, 5)).unwrap();
    std::thread::sleep(Duration::from_millis(40));
    gate.open();
    let runs = collect(runs);
    assert_eq!(runs.finished.reason, FinishReason::Deadline);
    assert_eq!(runs.tokens.len(), 3);
    let waits = collect(waits);
    assert_eq!(waits.finished.reason, FinishReason::Deadline);
    assert_eq!(waits.tokens.len(), 0);
    assert!(waits.finished.timings.total >= Duration::from_millis(30));
    assert_eq!(collect(patient).finished.reason, FinishReason::Length);
    assert_eq!(handle.stats().finished_deadline, 2);
    assert_at_rest(&handle);
}

#[test]
fn a_prompt_holds_up_an_answer_no_longer_than_was_promised() {
    let model = FakeModel::new(limits(100)).with_row_time(Duration::from_millis(1));
    let seen = model.seen();
    let config = EngineConfig {
        step_latency: Duration::from_millis(30),
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    // A prompt from which a row's time can be told.
    let talker = handle.stream(greedy(vec![1; 50], 100)).unwrap();
    settled(&handle, |stats| stats.steps >= 10);
    let long = handle.stream(greedy(vec![2; 150], 1)).unwrap();
    collect(long);
    drop(talker);
    let seen = seen.lock().unwrap();
    let chunks: Vec<usize> = seen
        .iter()
        .filter(|step| step.sequences.len() == 2)
        .map(|step| step.sequences[1].1)
        .collect();
    assert_eq!(chunks.iter().sum::<usize>(), 150, "{chunks:?}");
    // One row is the talker's. Sleep is never shorter than asked, so never more rows than those.
    assert!(chunks.iter().all(|rows| *rows <= 29), "{chunks:?}");
    // Nor are they needlessly short, however slow the machine: prompts go on.
    let whole = &chunks[..chunks.len() - 1];
    assert!(whole.iter().all(|rows| *rows >= 8), "{chunks:?}");
}

#[test]
fn where_blocks_run_out_the_less_important_gives_way_though_it_is_older() {
    let (model, gate) = FakeModel::new(limits(CONTEXT_BLOCKS)).gated();
    let config = EngineConfig {
        max_batch: 2,
        max_wait: Duration::MAX,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let ends = Ends::default();
    // Each grows to 32 blocks of 40.
    for (n, name, priority) in [(1, "older", 1), (2, "more important", 0)] {
        let request = Request {
            priority,
            ..of(n, 28, 100)
        };
        ends.submit(&handle, name, request);
    }
    gate.open();
    let order = ends.once_all_ended(&handle);
    assert_eq!(order, ["more important", "older"]);
    assert!(handle.stats().preemptions > 0);
    assert_at_rest(&handle);
}

/// Whoever runs, whatever their priorities: blocks for two, and all end.
#[test]
fn with_blocks_for_two_all_end() {
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
                ..of(n as u8 % 4, 30 + n as usize, 60)
            };
            handle.stream(request).unwrap()
        })
        .collect();
    for stream in streams {
        assert_eq!(collect(stream).finished.reason, FinishReason::Length);
    }
    assert!(handle.stats().preemptions > 0);
    assert_at_rest(&handle);
}
