//! Requests whose adapters are not in memory: which one loads, which ones wait, and in which order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use engine::{AdapterId, Client, EngineConfig, Lease, PoolError, ReservationError, WaitOptions};
use testkit::{FakeAdapter, FakeModel};

use crate::fixtures::{
    Dice, FakeHandle, fake_adapter, greedy, limits, start, tone, wait_for_stats,
};

/// Room for six adapters of ten bytes; those of the fixtures fill it.
fn pool(config: EngineConfig) -> FakeHandle {
    let config = EngineConfig {
        adapter_memory: 60,
        ..config
    };
    start(FakeModel::new(limits(100)), config)
}

fn wait() -> WaitOptions<'static> {
    WaitOptions {
        deadline: Some(Instant::now() + Duration::from_secs(20)),
        cancelled: None,
        client: None,
    }
}

fn adapter(id: AdapterId) -> Arc<FakeAdapter> {
    Arc::new(fake_adapter(id.0[0]))
}

/// Reserves the tones, loads them at once, and leases them.
fn lease(handle: &FakeHandle, tones: &[u8]) -> Vec<Lease<FakeAdapter>> {
    let wanted: Vec<_> = tones.iter().map(|n| (tone(*n), 10)).collect();
    let mut reservation = handle.reserve_adapters(&wanted, &wait()).unwrap();
    while let Some(id) = reservation.next_to_load(&wait()).unwrap() {
        reservation
            .fill(adapter(id), 10, 10, Duration::ZERO)
            .unwrap();
    }
    reservation.into_leases()
}

/// The leases of another thread, once it has them.
fn lease_in_thread(handle: &FakeHandle, tones: &'static [u8]) -> Receiver<Vec<Lease<FakeAdapter>>> {
    let (sender, leases) = channel();
    let handle = handle.clone();
    std::thread::spawn(move || sender.send(lease(&handle, tones)));
    leases
}

fn still_waits<T>(receiver: &Receiver<T>) -> bool {
    receiver.recv_timeout(Duration::from_millis(60)).is_err()
}

#[test]
fn different_adapters_load_in_parallel_up_to_the_limit() {
    let handle = pool(EngineConfig {
        adapter_loads: 2,
        ..EngineConfig::default()
    });
    let mut reservations: Vec<_> = (50..53)
        .map(|n| handle.reserve_adapters(&[(tone(n), 10)], &wait()).unwrap())
        .collect();
    assert_eq!(reservations[0].next_to_load(&wait()), Ok(Some(tone(50))));
    assert_eq!(reservations[1].next_to_load(&wait()), Ok(Some(tone(51))));
    let short = WaitOptions {
        deadline: Some(Instant::now() + Duration::from_millis(20)),
        cancelled: None,
        client: None,
    };
    assert_eq!(
        reservations[2].next_to_load(&short),
        Err(ReservationError::TimedOut)
    );
    let stats = handle.stats().adapters;
    assert_eq!((stats.loading, stats.bytes, stats.evictions), (3, 60, 3));
    assert_eq!(
        handle.waiting_adapters(),
        [tone(50), tone(51), tone(52)],
        "reported while they load"
    );
    reservations[0]
        .fill(adapter(tone(50)), 10, 7, Duration::from_millis(3))
        .unwrap();
    assert_eq!(reservations[0].next_to_load(&wait()), Ok(None));
    assert_eq!(reservations[2].next_to_load(&wait()), Ok(Some(tone(52))));
    drop(reservations);
    let stats = handle.stats().adapters;
    assert_eq!((stats.loading, stats.bytes, stats.resident), (0, 40, 4));
    assert_eq!(stats.load_failures, 2);
    assert_eq!((stats.hits, stats.misses), (0, 3));
    assert_eq!((stats.loads.count_all(), stats.bytes_read), (1, 7));
    assert_eq!(stats.loads.counts[2], 1, "up to 5 ms");
    assert_eq!(stats.loads.longest, Duration::from_millis(3));
}

#[test]
fn adapter_is_loaded_once_for_all_requests() {
    let handle = pool(EngineConfig::default());
    let mut first = handle.reserve_adapters(&[(tone(50), 10)], &wait()).unwrap();
    assert_eq!(first.next_to_load(&wait()), Ok(Some(tone(50))));
    let others: Vec<_> = (0..8).map(|_| lease_in_thread(&handle, &[50])).collect();
    assert!(still_waits(&others[0]));
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
fn another_request_loads_the_adapter_when_the_first_gives_up() {
    let handle = pool(EngineConfig::default());
    let mut first = handle.reserve_adapters(&[(tone(50), 10)], &wait()).unwrap();
    assert_eq!(first.next_to_load(&wait()), Ok(Some(tone(50))));
    let second = lease_in_thread(&handle, &[50]);
    assert!(still_waits(&second));
    drop(first);
    let leases = second.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(**leases[0].adapter(), fake_adapter(50));
    assert_eq!(handle.stats().adapters.load_failures, 1);
}

#[test]
fn requests_wait_for_a_full_pool_in_order_and_hits_overtake_them() {
    let handle = pool(EngineConfig {
        max_wait: Duration::MAX,
        ..EngineConfig::default()
    });
    let mut held: Vec<_> = (0..6).map(|n| lease(&handle, &[n])).collect();
    let blend = lease_in_thread(&handle, &[50, 51]);
    wait_for_stats(&handle, |stats| stats.adapters.waiting == 1);
    let single = lease_in_thread(&handle, &[52]);
    wait_for_stats(&handle, |stats| stats.adapters.waiting == 2);
    // There is room for one. The blend needs two and is first; the single one waits behind it.
    drop(held.remove(0));
    assert!(still_waits(&blend) && still_waits(&single));
    // A request that needs no room does not wait.
    drop(lease(&handle, &[3]));
    drop(held.remove(0));
    let leases = blend.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(leases.len(), 2);
    assert!(still_waits(&single));
    drop(leases);
    single.recv_timeout(Duration::from_secs(20)).unwrap();
    let stats = handle.stats().adapters;
    assert_eq!((stats.waiting, stats.waits), (0, 2));
    assert!(stats.bytes <= stats.limit);
}

#[test]
fn overdue_request_is_not_overtaken_by_hits() {
    let handle = pool(EngineConfig {
        max_wait: Duration::ZERO,
        ..EngineConfig::default()
    });
    let held: Vec<_> = (0..6).map(|n| lease(&handle, &[n])).collect();
    let first = lease_in_thread(&handle, &[50]);
    wait_for_stats(&handle, |stats| stats.adapters.waiting == 1);
    // Otherwise requests for the tones in memory could keep them there for ever.
    let hit = lease_in_thread(&handle, &[0]);
    assert!(still_waits(&hit));
    drop(held);
    first.recv_timeout(Duration::from_secs(20)).unwrap();
    hit.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn wait_ends_at_the_deadline_on_cancellation_or_at_shutdown() {
    let handle = pool(EngineConfig::default());
    let held = lease(&handle, &[0, 1, 2, 3, 4, 5]);
    let wanted = [(tone(50), 10)];
    let refused =
        |options: &WaitOptions<'_>| handle.reserve_adapters(&wanted, options).err().unwrap();
    let late = WaitOptions {
        deadline: Some(Instant::now() + Duration::from_millis(5)),
        cancelled: None,
        client: None,
    };
    assert_eq!(refused(&late), ReservationError::TimedOut);
    let cancelled = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_stats(&handle, |stats| stats.adapters.waiting == 1);
            cancelled.store(true, Ordering::Relaxed);
        });
        let options = WaitOptions {
            cancelled: Some(&cancelled),
            ..wait()
        };
        assert_eq!(refused(&options), ReservationError::Cancelled);
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_stats(&handle, |stats| stats.adapters.waiting == 1);
            handle.shutdown();
        });
        assert_eq!(refused(&wait()), ReservationError::Stopped);
    });
    drop(held);
}

#[test]
fn adapters_that_can_never_fit_are_refused_by_their_actual_size() {
    let handle = pool(EngineConfig::default());
    // The estimate is far too large; only the actual size counts.
    let mut reservation = handle
        .reserve_adapters(&[(tone(50), 1000)], &wait())
        .unwrap();
    assert_eq!(reservation.next_to_load(&wait()), Ok(Some(tone(50))));
    reservation
        .fill(adapter(tone(50)), 10, 10, Duration::ZERO)
        .unwrap();
    drop(reservation);
    // The estimate is too small: the caller must reserve again, and then it never fits.
    let mut reservation = handle.reserve_adapters(&[(tone(51), 1)], &wait()).unwrap();
    assert_eq!(reservation.next_to_load(&wait()), Ok(Some(tone(51))));
    let large = reservation.fill(adapter(tone(51)), 61, 61, Duration::ZERO);
    assert!(large.is_err());
    drop(reservation);
    let refused = |tones: &[u8]| {
        let wanted: Vec<_> = tones.iter().map(|n| (tone(*n), 1)).collect();
        handle.reserve_adapters(&wanted, &wait()).err().unwrap()
    };
    assert!(matches!(
        refused(&[51]),
        ReservationError::Pool(PoolError::TooLarge { bytes: 61, .. })
    ));
    let both = refused(&[50, 51]);
    assert_eq!(
        both.to_string(),
        "the 2 adapters of this blend take 71 bytes and the adapter memory is 60; blend fewer or give it more memory"
    );
    assert_eq!(handle.stats().adapters.loading, 0);
}

/// Two requests wait for an adapter whose estimate was too small. Loading it into the same room again would fail each time.
#[test]
fn adapter_that_outgrows_its_room_is_reserved_again_by_all_its_requests() {
    let handle = pool(EngineConfig::default());
    let large = [(tone(50), 55)];
    let mut held = handle.reserve_adapters(&large, &wait()).unwrap();
    assert_eq!(held.next_to_load(&wait()), Ok(Some(tone(50))));
    held.fill(adapter(tone(50)), 55, 55, Duration::ZERO)
        .unwrap();
    let reserve = || handle.reserve_adapters(&[(tone(51), 1)], &wait()).unwrap();
    let [mut first, mut second] = [reserve(), reserve()];
    assert_eq!(first.next_to_load(&wait()), Ok(Some(tone(51))));
    let filled = first.fill(adapter(tone(51)), 10, 10, Duration::ZERO);
    assert!(matches!(filled, Err(PoolError::Full { .. })), "{filled:?}");
    for reservation in [&mut second, &mut first] {
        let next = reservation.next_to_load(&wait());
        assert_eq!(next, Err(ReservationError::MoreThanReserved));
    }
    // A new reservation does not join them.
    let third = lease_in_thread(&handle, &[51]);
    drop(first);
    assert!(still_waits(&third));
    drop(second);
    assert!(still_waits(&third), "there is no room for its actual size");
    drop(held);
    let leases = third.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(handle.stats().adapters.bytes, 10);
}

/// Blends of every kind in a pool for six, from many threads: each gets its adapters, the limit holds, nothing leaks.
#[test]
fn blends_never_deadlock() {
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
                    let leases = lease(handle, &tones);
                    assert!(
                        leases
                            .iter()
                            .all(|l| **l.adapter() == fake_adapter(l.id().0[0]))
                    );
                    // Hold them for a moment, so that others must wait.
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
fn permit_counts_in_the_queue_until_it_is_dropped() {
    let handle = pool(EngineConfig {
        max_batch: 1,
        max_queue: 1,
        ..EngineConfig::default()
    });
    let permits = [
        handle.acquire_permits(None, 1).unwrap(),
        handle.acquire_permits(None, 1).unwrap(),
    ];
    assert_eq!(handle.stats().in_flight, 2);
    assert!(handle.acquire_permits(None, 1).is_err());
    assert!(handle.stream(greedy(vec![1], 1)).is_err());
    drop(permits);
    assert_eq!(handle.stats().in_flight, 0);
    handle.stream(greedy(vec![1], 1)).unwrap();
}

fn wait_as(id: u64) -> WaitOptions<'static> {
    let weight = std::num::NonZeroU32::MIN;
    WaitOptions {
        client: Some(Client { id, weight }),
        ..wait()
    }
}

/// The leases of a client on one adapter, in a thread, once it has them.
fn lease_as(handle: &FakeHandle, client: u64, n: u8) -> Receiver<Vec<Lease<FakeAdapter>>> {
    let (sender, leases) = channel();
    let handle = handle.clone();
    std::thread::spawn(move || {
        let options = wait_as(client);
        let mut reservation = handle.reserve_adapters(&[(tone(n), 10)], &options).unwrap();
        while let Some(id) = reservation.next_to_load(&options).unwrap() {
            let loaded = reservation.fill(adapter(id), 10, 10, Duration::ZERO);
            loaded.unwrap();
        }
        sender.send(reservation.into_leases())
    });
    leases
}

#[test]
fn client_cannot_hold_all_adapter_memory() {
    let handle = pool(EngineConfig::default());
    let soon = Duration::from_secs(20);
    let held: Vec<_> = (50..54)
        .map(|n| lease_as(&handle, 1, n).recv_timeout(soon).unwrap())
        .collect();
    // There is room for two more, but not for this client.
    let above = lease_as(&handle, 1, 54);
    assert!(still_waits(&above));
    // An adapter that it holds already takes no memory.
    drop(lease_as(&handle, 1, 50).recv_timeout(soon).unwrap());
    let other = lease_as(&handle, 2, 60).recv_timeout(soon).unwrap();
    assert!(still_waits(&above));
    drop(other);
    drop(held);
    assert_eq!(above.recv_timeout(soon).unwrap()[0].id(), tone(54));
}

#[test]
fn free_load_slot_goes_to_the_client_with_fewer_loads() {
    // Several times, so that chance cannot pass the test.
    for _ in 0..4 {
        let order = clients_in_the_order_of_loading();
        assert_eq!(order, [2, 1]);
    }
}

/// Client 1 loads two adapters, which is all that load at once, and waits with more; then client 2 waits with one. Returns the clients that
/// get the two slots.
fn clients_in_the_order_of_loading() -> [u64; 2] {
    let handle = pool(EngineConfig {
        adapter_loads: 2,
        ..EngineConfig::default()
    });
    let reserve = |client, n| {
        let options = wait_as(client);
        handle.reserve_adapters(&[(tone(n), 1)], &options).unwrap()
    };
    let mut loading: Vec<_> = (50..52).map(|n| reserve(1, n)).collect();
    for reservation in &mut loading {
        assert!(reservation.next_to_load(&wait_as(1)).unwrap().is_some());
    }
    let (sender, order) = channel();
    let begin = |client: u64, n| {
        let (mut reservation, sender) = (reserve(client, n), sender.clone());
        std::thread::spawn(move || {
            let id = reservation.next_to_load(&wait_as(client)).unwrap().unwrap();
            sender.send(client).unwrap();
            // It loads until the test ends.
            std::thread::sleep(Duration::from_millis(300));
            reservation.fill(adapter(id), 1, 1, Duration::ZERO)
        });
    };
    for n in 52..60 {
        begin(1, n);
    }
    std::thread::sleep(Duration::from_millis(50));
    begin(2, 60);
    std::thread::sleep(Duration::from_millis(50));
    loading[0]
        .fill(adapter(tone(50)), 1, 1, Duration::ZERO)
        .unwrap();
    let first = order.recv_timeout(Duration::from_secs(20)).unwrap();
    loading[1]
        .fill(adapter(tone(51)), 1, 1, Duration::ZERO)
        .unwrap();
    [first, order.recv_timeout(Duration::from_secs(20)).unwrap()]
}
