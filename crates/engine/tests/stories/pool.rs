//! Requests that need adapters which are not there: who reads, who waits, and in which order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use engine::{AdapterId, ClaimError, EngineConfig, Lease, Patience, PoolError};
use testkit::{FakeAdapter, FakeModel};

use crate::scene::{Dice, FakeHandle, fake_adapter, greedy, limits, settled, start, tone};

/// Room for six adapters of ten bytes: the scene's own fill it.
fn pool(config: EngineConfig) -> FakeHandle {
    let config = EngineConfig {
        adapter_memory: 60,
        ..config
    };
    start(FakeModel::new(limits(100)), config)
}

fn patient() -> Patience<'static> {
    Patience {
        until: Some(Instant::now() + Duration::from_secs(20)),
        gone: None,
    }
}

fn adapter(id: AdapterId) -> Arc<FakeAdapter> {
    Arc::new(fake_adapter(id.0[0]))
}

/// Claims, reads in no time, and leases.
fn leased(handle: &FakeHandle, tones: &[u8]) -> Vec<Lease<FakeAdapter>> {
    let wanted: Vec<_> = tones.iter().map(|n| (tone(*n), 10)).collect();
    let mut claim = handle.claim(&wanted, &patient()).unwrap();
    while let Some(id) = claim.next(&patient()).unwrap() {
        claim.fill(adapter(id), 10, 10, Duration::ZERO).unwrap();
    }
    claim.into_leases()
}

/// What a thread says when it has its adapters.
fn soon(handle: &FakeHandle, tones: &'static [u8]) -> Receiver<Vec<Lease<FakeAdapter>>> {
    let (sender, leases) = channel();
    let handle = handle.clone();
    std::thread::spawn(move || sender.send(leased(&handle, tones)));
    leases
}

fn nothing_yet<T>(receiver: &Receiver<T>) -> bool {
    receiver.recv_timeout(Duration::from_millis(60)).is_err()
}

#[test]
fn different_adapters_are_read_side_by_side_up_to_the_limit() {
    let handle = pool(EngineConfig {
        adapter_loads: 2,
        ..EngineConfig::default()
    });
    let mut claims: Vec<_> = (50..53)
        .map(|n| handle.claim(&[(tone(n), 10)], &patient()).unwrap())
        .collect();
    assert_eq!(claims[0].next(&patient()), Ok(Some(tone(50))));
    assert_eq!(claims[1].next(&patient()), Ok(Some(tone(51))));
    let short = Patience {
        until: Some(Instant::now() + Duration::from_millis(20)),
        gone: None,
    };
    assert_eq!(claims[2].next(&short), Err(ClaimError::Late));
    let stats = handle.stats().adapters;
    assert_eq!((stats.loading, stats.bytes, stats.evictions), (3, 60, 3));
    assert_eq!(
        handle.awaited_adapters(),
        [tone(50), tone(51), tone(52)],
        "known to be on their way"
    );
    claims[0]
        .fill(adapter(tone(50)), 10, 7, Duration::from_millis(3))
        .unwrap();
    assert_eq!(claims[0].next(&patient()), Ok(None));
    assert_eq!(claims[2].next(&patient()), Ok(Some(tone(52))));
    drop(claims);
    let stats = handle.stats().adapters;
    assert_eq!((stats.loading, stats.bytes, stats.resident), (0, 40, 4));
    assert_eq!(stats.load_failures, 2);
    assert_eq!((stats.hits, stats.misses), (0, 3));
    assert_eq!((stats.loads.count_all(), stats.bytes_read), (1, 7));
    assert_eq!(stats.loads.counts[2], 1, "up to 5 ms");
    assert_eq!(stats.loads.longest, Duration::from_millis(3));
}

#[test]
fn an_adapter_is_read_once_for_all_who_want_it() {
    let handle = pool(EngineConfig::default());
    let mut first = handle.claim(&[(tone(50), 10)], &patient()).unwrap();
    assert_eq!(first.next(&patient()), Ok(Some(tone(50))));
    let others: Vec<_> = (0..8).map(|_| soon(&handle, &[50])).collect();
    assert!(nothing_yet(&others[0]));
    first
        .fill(adapter(tone(50)), 10, 10, Duration::ZERO)
        .unwrap();
    for other in others {
        let leases = other.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(leases[0].id(), tone(50));
    }
    assert_eq!(handle.stats().adapters.loads.count_all(), 1);
}

#[test]
fn who_gives_up_reading_leaves_it_to_the_next() {
    let handle = pool(EngineConfig::default());
    let mut first = handle.claim(&[(tone(50), 10)], &patient()).unwrap();
    assert_eq!(first.next(&patient()), Ok(Some(tone(50))));
    let second = soon(&handle, &[50]);
    assert!(nothing_yet(&second));
    drop(first);
    let leases = second.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(**leases[0].adapter(), fake_adapter(50));
    assert_eq!(handle.stats().adapters.load_failures, 1);
}

#[test]
fn a_full_pool_is_waited_for_in_order_and_hits_pass_by() {
    let handle = pool(EngineConfig {
        max_wait: Duration::MAX,
        ..EngineConfig::default()
    });
    let mut held: Vec<_> = (0..6).map(|n| leased(&handle, &[n])).collect();
    let blend = soon(&handle, &[50, 51]);
    settled(&handle, |stats| stats.adapters.waiting == 1);
    let single = soon(&handle, &[52]);
    settled(&handle, |stats| stats.adapters.waiting == 2);
    // One place is free. The blend needs two and is first; the other one waits behind it.
    drop(held.remove(0));
    assert!(nothing_yet(&blend) && nothing_yet(&single));
    // Who needs no room waits for nobody.
    drop(leased(&handle, &[3]));
    drop(held.remove(0));
    let leases = blend.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(leases.len(), 2);
    assert!(nothing_yet(&single));
    drop(leases);
    single.recv_timeout(Duration::from_secs(20)).unwrap();
    let stats = handle.stats().adapters;
    assert_eq!((stats.waiting, stats.waits), (0, 2));
    assert!(stats.bytes <= stats.limit);
}

#[test]
fn who_has_waited_too_long_is_passed_by_nobody() {
    let handle = pool(EngineConfig {
        max_wait: Duration::ZERO,
        ..EngineConfig::default()
    });
    let held: Vec<_> = (0..6).map(|n| leased(&handle, &[n])).collect();
    let first = soon(&handle, &[50]);
    settled(&handle, |stats| stats.adapters.waiting == 1);
    // Without this, requests for tones in memory could keep them there for ever.
    let hit = soon(&handle, &[0]);
    assert!(nothing_yet(&hit));
    drop(held);
    first.recv_timeout(Duration::from_secs(20)).unwrap();
    hit.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_wait_ends_with_the_time_the_caller_or_the_engine() {
    let handle = pool(EngineConfig::default());
    let held = leased(&handle, &[0, 1, 2, 3, 4, 5]);
    let wanted = [(tone(50), 10)];
    let refused = |patience: &Patience<'_>| handle.claim(&wanted, patience).err().unwrap();
    let late = Patience {
        until: Some(Instant::now() + Duration::from_millis(5)),
        gone: None,
    };
    assert_eq!(refused(&late), ClaimError::Late);
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            settled(&handle, |stats| stats.adapters.waiting == 1);
            gone.store(true, Ordering::Relaxed);
        });
        let patience = Patience {
            gone: Some(&gone),
            ..patient()
        };
        assert_eq!(refused(&patience), ClaimError::Gone);
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            settled(&handle, |stats| stats.adapters.waiting == 1);
            handle.shutdown();
        });
        assert_eq!(refused(&patient()), ClaimError::Stopped);
    });
    drop(held);
}

#[test]
fn what_can_never_fit_is_refused_and_what_is_said_of_sizes_is_not_believed() {
    let handle = pool(EngineConfig::default());
    // Said to be far too large, it takes what it takes.
    let mut claim = handle.claim(&[(tone(50), 1000)], &patient()).unwrap();
    assert_eq!(claim.next(&patient()), Ok(Some(tone(50))));
    claim
        .fill(adapter(tone(50)), 10, 10, Duration::ZERO)
        .unwrap();
    drop(claim);
    // Said to be small, it has to ask again, and then never fits.
    let mut claim = handle.claim(&[(tone(51), 1)], &patient()).unwrap();
    assert_eq!(claim.next(&patient()), Ok(Some(tone(51))));
    let large = claim.fill(adapter(tone(51)), 61, 61, Duration::ZERO);
    assert!(large.is_err());
    drop(claim);
    let refused = |tones: &[u8]| {
        let wanted: Vec<_> = tones.iter().map(|n| (tone(*n), 1)).collect();
        handle.claim(&wanted, &patient()).err().unwrap()
    };
    assert!(matches!(
        refused(&[51]),
        ClaimError::Pool(PoolError::TooLarge { bytes: 61, .. })
    ));
    let both = refused(&[50, 51]);
    assert_eq!(
        both.to_string(),
        "the 2 adapters of this blend take 71 bytes and the adapter memory is 60; blend fewer or give it more memory"
    );
    assert_eq!(handle.stats().adapters.loading, 0);
}

/// Blends of every kind in a pool for six, from many threads: all get theirs, the limit holds, nothing leaks.
#[test]
fn no_two_wait_for_each_other() {
    let handle = pool(EngineConfig {
        max_wait: Duration::from_millis(2),
        ..EngineConfig::default()
    });
    std::thread::scope(|scope| {
        for seed in 0..12 {
            let handle = &handle;
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                for _ in 0..60 {
                    let tones: Vec<u8> = (0..1 + dice.below(5))
                        .map(|_| 100 + dice.below(20) as u8)
                        .collect();
                    let leases = leased(handle, &tones);
                    assert!(
                        leases
                            .iter()
                            .all(|l| **l.adapter() == fake_adapter(l.id().0[0]))
                    );
                    // So that others come meanwhile.
                    std::thread::sleep(Duration::from_micros(300));
                    let stats = handle.stats().adapters;
                    assert!(stats.bytes <= stats.limit, "{stats:?}");
                }
            });
        }
    });
    let stats = handle.stats().adapters;
    assert!(stats.evictions > 100 && stats.waits > 10, "{stats:?}");
    assert_eq!((stats.waiting, stats.loading), (0, 0));
    assert!(handle.adapters().iter().all(|info| info.leases == 0));
}

#[test]
fn a_seat_counts_in_the_queue_and_is_free_again_when_it_is_dropped() {
    let handle = pool(EngineConfig {
        max_batch: 1,
        max_queue: 1,
        ..EngineConfig::default()
    });
    let seats = [handle.take_seat().unwrap(), handle.take_seat().unwrap()];
    assert_eq!(handle.stats().in_flight, 2);
    assert!(handle.take_seat().is_err());
    assert!(handle.stream(greedy(vec![1], 1)).is_err());
    drop(seats);
    assert_eq!(handle.stats().in_flight, 0);
    handle.stream(greedy(vec![1], 1)).unwrap();
}
