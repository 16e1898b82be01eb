//! A request keeps its adapters, whatever becomes of them in the pool.

use std::sync::Arc;

use engine::{EngineConfig, FinishReason, PoolError, Request, SubmitError};
use testkit::{FakeAdapter, FakeModel};

use crate::scene::{assert_at_rest, collect, greedy, limits, start, tone};

fn toned(n: u8) -> Request {
    Request {
        adapters: vec![(tone(n), 1.0)],
        ..greedy(vec![1, 2, 3], 20)
    }
}

#[test]
fn a_removed_adapter_serves_its_requests_to_their_end_and_then_goes() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        max_batch: 1,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let adapter = Arc::new(FakeAdapter(5));
    let weak = Arc::downgrade(&adapter);
    drop(handle.insert_adapter(tone(50), adapter, 1).unwrap());
    // One runs, one waits.
    let running = handle.stream(toned(50)).unwrap();
    gate.wait_for(1);
    let waiting = handle.stream(toned(50)).unwrap();
    handle.remove_adapter(tone(50)).unwrap();
    assert_eq!(
        handle.remove_adapter(tone(50)),
        Err(PoolError::Unknown(tone(50)))
    );
    let refused = handle.stream(toned(50)).map(|_| ()).unwrap_err();
    assert_eq!(refused, SubmitError::UnknownAdapter(tone(50)));
    let info = handle.adapters().into_iter().find(|i| i.id == tone(50));
    let info = info.expect("still in memory");
    assert_eq!((info.leases, info.removed), (2, true));
    gate.open();
    let (running, waiting) = (collect(running), collect(waiting));
    assert_eq!(running.finished.reason, FinishReason::Length);
    assert_eq!(running.ids(), waiting.ids());
    assert_eq!(
        running.ids(),
        FakeModel::greedy(61, &[1, 2, 3], &[(&FakeAdapter(5), 1.0)], 20)
    );
    // Whoever hears of the end may count on what it freed.
    assert!(weak.upgrade().is_none());
    assert_at_rest(&handle);
}

#[test]
fn eviction_makes_room_but_never_passes_a_lease() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        adapter_memory: 60,
        ..EngineConfig::default()
    };
    // Six tones of ten bytes: full.
    let handle = start(model, config);
    let running: Vec<_> = (0..4).map(|n| handle.stream(toned(n)).unwrap()).collect();
    drop(
        handle
            .insert_adapter(tone(60), Arc::new(FakeAdapter(6)), 20)
            .unwrap(),
    );
    let ids: Vec<_> = handle.adapters().iter().map(|info| info.id).collect();
    assert_eq!(ids, [0, 1, 2, 3, 60].map(tone));
    let full = handle.insert_adapter(tone(61), Arc::new(FakeAdapter(6)), 21);
    assert!(matches!(full, Err(PoolError::Full { leased: 40, .. })));
    assert!(handle.lease_adapter(tone(60)).is_some());
    gate.open();
    for stream in running {
        assert_eq!(collect(stream).tokens.len(), 20);
    }
    drop(
        handle
            .insert_adapter(tone(61), Arc::new(FakeAdapter(6)), 60)
            .unwrap(),
    );
    assert_eq!(handle.adapters().len(), 1);
    assert_at_rest(&handle);
}

#[test]
fn a_request_that_is_given_up_gives_its_leases_back() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        max_batch: 1,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let running = handle.stream(toned(0)).unwrap();
    let waiting = handle.stream(toned(1)).unwrap();
    gate.wait_for(1);
    drop(waiting);
    drop(running);
    gate.open();
    assert_at_rest(&handle);
    assert_eq!(handle.stats().finished_cancelled, 2);
}
