//! Garbage collection: which adapters are removed, and which are kept.

use std::time::Duration;

use registry::RegistryError;

use crate::fixtures::{TestDir, publish};

const NONE: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn only_old_adapters_without_a_version_are_collected() {
    let dir = TestDir::new();
    let registry = dir.registry();
    let (first, second) = (dir.content(1), dir.content(2));
    publish(&registry, "a", &first).unwrap();
    publish(&registry, "b", &first).unwrap();
    publish(&registry, "b", &second).unwrap();
    let blob = |sha256: &str| {
        dir.path("registry/adapters")
            .join(sha256)
            .join("manifest.json")
    };

    // A rollback can reach every version, so the adapters of all versions are in use.
    let collected = registry.collect_garbage(NONE, false).unwrap();
    assert_eq!((collected.used, collected.removed.len()), (2, 0));
    registry.remove("b", None).unwrap();
    let young = registry.collect_garbage(HOUR, false).unwrap();
    assert_eq!(
        (young.removed.len(), young.too_young),
        (0, vec![second.sha256.clone()])
    );
    assert!(blob(&second.sha256).exists());
    let dry_run = registry.collect_garbage(NONE, true).unwrap();
    assert_eq!(dry_run.removed, std::slice::from_ref(&second.sha256));
    assert!(blob(&second.sha256).exists());
    let collected = registry.collect_garbage(NONE, false).unwrap();
    assert_eq!(
        (collected.used, collected.removed),
        (1, vec![second.sha256.clone()])
    );
    assert!(!blob(&second.sha256).exists());
    assert!(blob(&first.sha256).exists());
    assert!(
        registry
            .collect_garbage(NONE, false)
            .unwrap()
            .removed
            .is_empty()
    );
    // It can be published again.
    publish(&registry, "b", &second).unwrap();
    assert!(
        registry
            .verify()
            .unwrap()
            .iter()
            .all(|one| one.problem.is_none())
    );
}

#[test]
fn upload_without_an_entry_is_garbage_once_it_is_old() {
    let dir = TestDir::new();
    let registry = dir.registry();
    let content = dir.content(1);
    publish(&registry, "a", &content).unwrap();
    // A publisher was interrupted before the manifest.
    let half = dir.path("registry/adapters").join("0".repeat(64));
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("adapter_config.json"), "{}").unwrap();
    assert_eq!(
        registry
            .collect_garbage(HOUR, false)
            .unwrap()
            .too_young
            .len(),
        1
    );
    assert_eq!(
        registry.collect_garbage(NONE, false).unwrap().removed,
        ["0".repeat(64)]
    );
    assert!(!half.join("adapter_config.json").exists());
}

#[test]
fn files_that_the_registry_did_not_write_stay() {
    let dir = TestDir::new();
    let registry = dir.registry();
    let content = dir.content(1);
    publish(&registry, "a", &content).unwrap();
    let half = dir.path("registry/adapters").join("0".repeat(64));
    let mine = dir.path("registry/adapters/mine");
    for folder in [&half, &mine] {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), "{}").unwrap();
        std::fs::write(folder.join("notes.txt"), "precious").unwrap();
    }
    registry.collect_garbage(NONE, false).unwrap();
    assert!(!half.join("adapter_config.json").exists());
    assert!(half.join("notes.txt").exists());
    assert!(mine.join("adapter_config.json").exists() && mine.join("notes.txt").exists());
}

#[test]
fn adapters_are_not_garbage_because_the_log_is_missing() {
    let dir = TestDir::new();
    let content = dir.content(1);
    publish(&dir.registry(), "a", &content).unwrap();
    std::fs::remove_dir_all(dir.path("registry/log")).unwrap();
    let error = dir.registry().collect_garbage(NONE, false).unwrap_err();
    assert!(matches!(error, RegistryError::NoLog { .. }), "{error}");
    let blob = dir.path("registry/adapters").join(&content.sha256);
    assert!(blob.join("adapter_model.safetensors").exists());
}
