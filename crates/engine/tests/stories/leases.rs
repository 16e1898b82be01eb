//! A request keeps its adapters until its end, whatever happens to them in the pool.

use std::sync::Arc;

use engine::{EngineConfig, FinishReason, PoolError, Request, SubmitError};
use testkit::{FakeAdapter, FakeModel};

use crate::fixtures::{assert_idle, collect, greedy, limits, start, tone};

fn request_to(n: u8) -> Request {
    Request {
        adapters: vec![(tone(n), 1.0)],
        ..greedy(vec![1, 2, 3], 20)
    }
}

#[test]
fn removed_adapter_serves_its_requests_to_their_end() {
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
    let running = handle.stream(request_to(50)).unwrap();
    gate.wait_for(1);
    let waiting = handle.stream(request_to(50)).unwrap();
    handle.remove_adapter(tone(50)).unwrap();
    assert_eq!(
        handle.remove_adapter(tone(50)),
        Err(PoolError::Unknown(tone(50)))
    );
    let refused = handle.stream(request_to(50)).map(|_| ()).unwrap_err();
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
    // The end is reported only after the lease is released.
    assert!(weak.upgrade().is_none());
    assert_idle(&handle);
}

#[test]
fn eviction_never_takes_a_leased_adapter() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        adapter_memory: 60,
        ..EngineConfig::default()
    };
    // Six tones of ten bytes: full.
    let handle = start(model, config);
    let running: Vec<_> = (0..4)
        .map(|n| handle.stream(request_to(n)).unwrap())
        .collect();
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
    assert_idle(&handle);
}

#[test]
fn cancelled_request_releases_its_leases() {
    let (model, gate) = FakeModel::new(limits(100)).gated();
    let config = EngineConfig {
        max_batch: 1,
        ..EngineConfig::default()
    };
    let handle = start(model, config);
    let running = handle.stream(request_to(0)).unwrap();
    let waiting = handle.stream(request_to(1)).unwrap();
    gate.wait_for(1);
    drop(waiting);
    drop(running);
    gate.open();
    assert_idle(&handle);
    assert_eq!(handle.stats().finished_cancelled, 2);
}
