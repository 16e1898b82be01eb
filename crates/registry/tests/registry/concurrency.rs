//! Many publishers at once, each with its own registry in the same folder or store, like processes.

use std::collections::BTreeSet;
use std::sync::Arc;

use object_store::memory::InMemory;
use registry::{Registry, RegistryError};

use crate::fixtures::{Faulty, TestDir, publish};

const PUBLISHERS: u64 = 4;
const EACH: u32 = 6;

/// Each publishes a shared name and its own name; no version is lost, published twice, or incomplete.
fn race(open: impl Fn() -> Registry + Sync, dir: &TestDir) {
    let contents: Vec<_> = (0..PUBLISHERS).map(|n| dir.content(n)).collect();
    let versions: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = contents
            .iter()
            .enumerate()
            .map(|(n, content)| {
                let open = &open;
                scope.spawn(move || {
                    let registry = open();
                    let own = format!("own-{n}");
                    let publish_both = |_| {
                        publish(&registry, &own, content).unwrap();
                        publish(&registry, "shared", content).unwrap().version
                    };
                    (0..EACH).map(publish_both).collect::<Vec<u32>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let all = PUBLISHERS as u32 * EACH;
    let distinct: BTreeSet<u32> = versions.iter().copied().collect();
    assert_eq!(distinct, (1..=all).collect());

    let registry = open();
    let state = registry.refresh().unwrap();
    assert_eq!(state.head, u64::from(2 * all));
    for n in 0..PUBLISHERS {
        assert_eq!(state.release(&format!("own-{n}"), None).unwrap().0, EACH);
    }
    // Every reader sees the same order.
    assert_eq!(open().refresh().unwrap().entries, state.entries);
    assert!(
        registry
            .verify()
            .unwrap()
            .iter()
            .all(|one| one.problem.is_none())
    );
}

#[test]
fn publishers_in_a_folder_lose_nothing() {
    let dir = TestDir::new();
    race(|| dir.registry(), &dir);
}

#[test]
fn publishers_in_a_store_lose_nothing() {
    let dir = TestDir::new();
    let objects = Arc::new(InMemory::new());
    race(
        || Faulty::new(&objects, None).registry(&dir.path("cache")),
        &dir,
    );
}

#[test]
fn exactly_one_of_two_publishers_gets_a_new_name() {
    let dir = TestDir::new();
    let content = dir.content(1);
    for round in 0..8 {
        let name = format!("name-{round}");
        let only_new = |_| {
            let registry = dir.registry();
            registry.publish(&registry::Publication {
                name: &name,
                content: Some(&content),
                settings: None,
                current: true,
                only_new: true,
            })
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|n| scope.spawn(move || only_new(n))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let refused = results.into_iter().find_map(Result::err).unwrap();
        assert!(matches!(refused, RegistryError::Exists { .. }), "{refused}");
    }
}
