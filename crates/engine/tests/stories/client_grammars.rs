//! Grammars of one client next to the requests of others: their time is bounded, and counts as service.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Constraint, EngineConfig, Event, Flow, Grammar, Progress, Request, Sink};
use testkit::FakeModel;

use crate::client_shares::{HOSTILE, OTHER, batch_of, request_of};
use crate::fixtures::{SumGrammar, VOCAB, assert_idle, collect, limits, start, wait_for_stats};

/// A grammar whose masks are slow.
#[derive(Debug)]
struct SlowGrammar(Arc<AtomicUsize>);

impl Grammar for SlowGrammar {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(SlowConstraint {
            masks: Arc::clone(&self.0),
            tokens: Vec::new(),
        })
    }
}

struct SlowConstraint {
    masks: Arc<AtomicUsize>,
    tokens: Vec<u32>,
}

impl Constraint for SlowConstraint {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        std::thread::sleep(Duration::from_millis(5));
        self.masks.fetch_add(1, Ordering::Relaxed);
        let grammar = SumGrammar {
            classes: 3,
            length: 1000,
        };
        for token in 0..VOCAB as u32 {
            if grammar.allows(&self.tokens, token) {
                allowed[token as usize / 32] |= 1 << (token % 32);
            }
        }
        Ok(())
    }

    fn commit(&mut self, token: u32) -> Result<Progress, String> {
        self.tokens.push(token);
        Ok(Progress::Open)
    }
}

#[test]
fn slow_grammars_of_one_client_take_a_part_of_the_steps_time() {
    let masks = Arc::new(AtomicUsize::new(0));
    let grammar: Arc<dyn Grammar> = Arc::new(SlowGrammar(Arc::clone(&masks)));
    let constrained = |n: u32| Request {
        grammar: Some(Arc::clone(&grammar)),
        ..request_of(HOSTILE, n, 4, 30)
    };
    let alone = start(FakeModel::new(limits(500)), batch_of(16));
    let expected: Vec<_> = (0..8)
        .map(|n| collect(alone.stream(constrained(n)).unwrap()).ids())
        .collect();
    let model = FakeModel::new(limits(500)).with_step_time(Duration::from_millis(4));
    let handle = start(model, batch_of(16));
    let hostile: Vec<_> = (0..8)
        .map(|n| handle.stream(constrained(n)).unwrap())
        .collect();
    masks.store(0, Ordering::Relaxed);
    let other = collect(handle.stream(request_of(OTHER, 0, 4, 100)).unwrap());
    assert_eq!(other.tokens.len(), 100);
    let masks = masks.load(Ordering::Relaxed);
    // Each of the 100 steps had a mask for each of the eight rows without the limit. The first rows take it before the other arrives.
    assert!((5..180).contains(&masks), "{masks} masks");
    // Nothing is lost: the tokens are those of a server of its own.
    for (stream, expected) in hostile.into_iter().zip(expected) {
        assert_eq!(collect(stream).ids(), expected);
    }
    assert_idle(&handle);
}

#[test]
fn time_of_grammars_counts_as_service_of_their_client() {
    let grammar: Arc<dyn Grammar> = Arc::new(SlowGrammar(Arc::default()));
    let model = FakeModel::new(limits(500)).with_step_time(Duration::from_millis(1));
    let (model, gate) = model.gated();
    let config = EngineConfig {
        max_wait: Duration::MAX,
        ..batch_of(1)
    };
    let handle = start(model, config);
    let ends = Arc::new(Mutex::new(Vec::new()));
    for n in 0..30 {
        for id in [HOSTILE, OTHER] {
            let ends = Arc::clone(&ends);
            let sink: Sink = Box::new(move |event| {
                if let Event::Finished(_) = event {
                    ends.lock().unwrap().push(id);
                }
                Flow::Continue
            });
            let request = Request {
                grammar: (id == HOSTILE).then(|| Arc::clone(&grammar)),
                ..request_of(id, n, 4, 1)
            };
            handle.submit(request, sink).unwrap().detach();
        }
    }
    gate.open();
    wait_for_stats(&handle, |stats| stats.in_flight == 0);
    assert_idle(&handle);
    // The rows of both are alike; a mask takes as long as five steps.
    let ends = ends.lock().unwrap();
    let hostile = ends[..20].iter().filter(|id| **id == HOSTILE).count();
    assert!((1..=7).contains(&hostile), "{hostile} of 20");
}
