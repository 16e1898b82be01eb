//! Failures: a process killed at any step, lost connections, overwritten blobs, damaged logs.

use std::sync::Arc;

use formats::atomic_file::MARK;
use formats::disk::faults::for_each_fault;
use object_store::memory::InMemory;
use registry::{Personas, ReadError, RegistryError};

use crate::fixtures::{Fault, Faulty, TestDir, publish};

/// The current version that a new process sees in the store; checks that every adapter is intact.
fn current_version(dir: &TestDir, objects: &Arc<InMemory>, name: &str) -> Option<u32> {
    let cache = tempfile::tempdir_in(dir.0.path()).unwrap();
    let registry = Faulty::new(objects, None).registry(cache.path());
    let state = registry.refresh().unwrap();
    let (personas, _) = registry.personas(&state, &Personas::default());
    let broken = registry.verify().unwrap();
    assert!(
        broken.iter().all(|adapter| adapter.problem.is_none()),
        "{broken:?}"
    );
    let persona = personas.get(name)?;
    persona.adapter.as_ref().unwrap().read().unwrap();
    Some(persona.version)
}

/// A store with one version of `tone`, the adapter of seed 1.
fn store_with_one_version(dir: &TestDir) -> Arc<InMemory> {
    let objects = Arc::new(InMemory::new());
    let registry = Faulty::new(&objects, None).registry(&dir.path("cache"));
    publish(&registry, "tone", &dir.content(1)).unwrap();
    objects
}

/// The number of operations of a second publication.
fn operations(dir: &TestDir) -> usize {
    let store = Faulty::new(&store_with_one_version(dir), None);
    publish(&store.registry(&dir.path("cache")), "tone", &dir.content(2)).unwrap();
    store.count()
}

#[test]
fn publication_killed_at_any_step_leaves_the_old_version_or_the_complete_new_one() {
    let dir = TestDir::new();
    let steps = operations(&dir);
    assert!(steps > 6, "{steps}");
    let mut old = 0;
    for n in 1..=steps {
        for fault in [Fault::Before(n), Fault::After(n)] {
            let objects = store_with_one_version(&dir);
            let store = Faulty::new(&objects, Some(fault));
            let registry = store.registry(&dir.path("cache"));
            let result = publish(&registry, "tone", &dir.content(2));
            let version = current_version(&dir, &objects, "tone").unwrap();
            // An acknowledged publication is there.
            assert!(result.is_err() || version == 2, "{fault:?}");
            old += usize::from(version == 1);
            // What is left behind does not hinder the next publisher.
            let next = Faulty::new(&objects, None).registry(&dir.path("cache"));
            let published = publish(&next, "tone", &dir.content(2)).unwrap();
            assert_eq!(published.version, version + 1, "{fault:?}");
            assert_eq!(
                current_version(&dir, &objects, "tone"),
                Some(version + 1),
                "{fault:?}"
            );
        }
    }
    // Most steps come before the entry that makes the version visible.
    assert!(old > steps, "{old} of {}", 2 * steps);
}

#[test]
fn lost_reply_publishes_once_or_is_an_error() {
    let dir = TestDir::new();
    for n in 1..=operations(&dir) {
        let objects = store_with_one_version(&dir);
        let store = Faulty::new(&objects, Some(Fault::Lost(n)));
        let registry = store.registry(&dir.path("cache"));
        let result = publish(&registry, "tone", &dir.content(2));
        let version = current_version(&dir, &objects, "tone").unwrap();
        let state = Faulty::new(&objects, None)
            .registry(&dir.path("cache"))
            .refresh()
            .unwrap();
        assert!(state.head <= 2, "{n}: published twice");
        if let Ok(published) = result {
            assert_eq!((published.version, version), (2, 2), "{n}");
        }
    }
}

#[test]
fn writer_recognizes_its_own_entry_after_a_lost_reply() {
    let dir = TestDir::new();
    let content = dir.content(2);
    let mut own = 0;
    for n in 1..=operations(&dir) {
        let objects = store_with_one_version(&dir);
        let store = Faulty::new(&objects, Some(Fault::Lost(n)));
        let result = publish(&store.registry(&dir.path("cache")), "tone", &content);
        own += usize::from(result.is_ok());
    }
    // A publication can succeed although the write of its entry failed, or a check of a blob.
    assert!(own >= 1);
}

#[test]
fn corrupt_blob_is_refused_by_hash_and_restored_by_publishing_it_again() {
    let dir = TestDir::new();
    let registry = dir.registry();
    let content = dir.content(1);
    publish(&registry, "tone", &content).unwrap();
    let blob = dir.path("registry/adapters").join(&content.sha256);
    let other = dir.adapter(2);
    let state = registry.refresh().unwrap();
    let (personas, _) = registry.personas(&state, &Personas::default());
    let adapter = personas.get("tone").unwrap().adapter.clone().unwrap();
    adapter.read().unwrap();

    type Damage = fn(&std::path::Path, &std::path::Path);
    let overwritten: Damage = |blob, other| {
        let file = "adapter_model.safetensors";
        std::fs::copy(other.join(file), blob.join(file)).unwrap();
    };
    let flipped: Damage = |blob, _| {
        let path = blob.join("adapter_model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    let cut: Damage = |blob, _| std::fs::write(blob.join("adapter_config.json"), "{").unwrap();
    for damage in [overwritten, flipped, cut] {
        damage(&blob, &other);
        let error = adapter.read().unwrap_err();
        let ReadError::Registry(RegistryError::Corrupt { path, found }) = &error else {
            panic!("{error}")
        };
        assert!(
            path.ends_with(&content.sha256) && *found != content.sha256,
            "{error}"
        );
        let verified = registry.verify().unwrap();
        let problem = verified[0].problem.as_ref().unwrap();
        assert!(problem.contains("corrupt"), "{problem}");
        assert_eq!(verified[0].used_by[0].to_string(), "tone@1");
        publish(&registry, "tone", &content).unwrap();
        assert_eq!(registry.verify().unwrap()[0].problem, None);
        adapter.read().unwrap();
    }

    std::fs::remove_file(blob.join("manifest.json")).unwrap();
    let error = adapter.read().unwrap_err().to_string();
    assert!(
        error.contains("missing; publish the same adapter again"),
        "{error}"
    );
    assert_eq!(
        registry.verify().unwrap()[0].problem.as_deref(),
        Some("is missing")
    );
}

#[test]
fn damaged_copy_is_fetched_again() {
    let dir = TestDir::new();
    let objects = store_with_one_version(&dir);
    let registry = Faulty::new(&objects, None).registry(&dir.path("copies"));
    let state = registry.refresh().unwrap();
    let (personas, _) = registry.personas(&state, &Personas::default());
    let adapter = personas.get("tone").unwrap().adapter.clone().unwrap();
    assert!(!adapter.path.exists());
    adapter.read().unwrap();
    std::fs::write(adapter.path.join("adapter_model.safetensors"), "bad").unwrap();
    adapter.read().unwrap();
    assert!(
        std::fs::metadata(adapter.path.join("adapter_model.safetensors"))
            .unwrap()
            .len()
            > 3
    );
}

#[test]
fn damaged_log_is_refused_and_the_entry_is_named() {
    let dir = TestDir::new();
    let registry = dir.registry();
    for _ in 0..3 {
        publish(&registry, "tone", &dir.content(1)).unwrap();
    }
    let entry = |n: u64| dir.path(&format!("registry/log/{n:020}.json"));
    let second = std::fs::read_to_string(entry(2)).unwrap();
    let refused = |text: Option<&str>| {
        match text {
            Some(text) => std::fs::write(entry(2), text).unwrap(),
            None => std::fs::remove_file(entry(2)).unwrap(),
        }
        let error = dir.registry().refresh().unwrap_err().to_string();
        std::fs::write(entry(2), &second).unwrap();
        assert!(error.contains("log/00000000000000000002.json"), "{error}");
        error
    };
    assert!(refused(None).contains("is missing, though there are later ones up to 3"));
    refused(Some(""));
    refused(Some("{\"format\": 1}"));
    assert!(
        refused(Some(&second.replace("\"format\": 1", "\"format\": 2"))).contains("newer lory")
    );
    assert!(
        refused(Some(&second.replace("\"sequence\": 2", "\"sequence\": 3")))
            .contains("sequence number 3")
    );
    let skipped = second.replace("\"version\": 2", "\"version\": 5");
    assert!(refused(Some(&skipped)).contains("the next version is 2, not 5"));
    dir.registry().refresh().unwrap();
}

#[test]
fn publication_into_a_removed_registry_is_refused_and_the_next_start_works() {
    type Remove = fn(&std::path::Path);
    let removed: [(&str, Remove); 3] = [
        ("all", |folder| std::fs::remove_dir_all(folder).unwrap()),
        ("log", |folder| {
            std::fs::remove_dir_all(folder.join("log")).unwrap()
        }),
        ("replaced", |folder| {
            std::fs::remove_dir_all(folder).unwrap();
            let elsewhere = TestDir::new();
            let other = elsewhere.registry();
            for n in 5..7 {
                publish(&other, "other", &elsewhere.content(n)).unwrap();
            }
            std::fs::rename(elsewhere.path("registry"), folder).unwrap();
        }),
    ];
    for (what, remove) in removed {
        let dir = TestDir::new();
        let registry = dir.registry();
        publish(&registry, "tone", &dir.content(1)).unwrap();
        publish(&registry, "tone", &dir.content(2)).unwrap();
        remove(&dir.path("registry"));
        let published = publish(&registry, "tone", &dir.content(3));
        let message = published.unwrap_err().to_string();
        assert!(message.contains("restart"), "{what}: {message}");
        // A new process can serve everything that was acknowledged to it.
        let next = dir.registry();
        next.refresh().unwrap();
        publish(&next, "tone", &dir.content(3)).unwrap();
        let state = dir.registry().refresh().unwrap();
        let (personas, _) = next.personas(&state, &Personas::default());
        personas
            .get("tone")
            .unwrap()
            .adapter
            .clone()
            .unwrap()
            .read()
            .unwrap();
    }
}

#[test]
fn fetched_copy_is_complete_or_fetched_again_after_every_fault_of_the_disk() {
    let dir = TestDir::new();
    let objects = store_with_one_version(&dir);
    for_each_fault(|injection| {
        let copies = TestDir::new();
        let registry = Faulty::new(&objects, None).registry(&copies.path("copies"));
        let state = registry.refresh().unwrap();
        let (personas, _) = registry.personas(&state, &Personas::default());
        let adapter = personas.get("tone").unwrap().adapter.clone().unwrap();
        let read = injection.run(|| adapter.read().map(drop));
        assert!(read.is_err() || adapter.path.exists(), "{injection:?}");
        adapter.read().unwrap();
        for entry in std::fs::read_dir(copies.path("copies")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let leftover = injection.fault.ends_the_process() && name.starts_with(MARK);
            assert!(path == adapter.path || leftover, "{injection:?}: {name}");
        }
    });
}

#[test]
fn failed_publication_removes_what_it_wrote_and_nothing_else() {
    let names = |folder: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let files = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ];
    for blocked in files {
        for earlier in files.into_iter().filter(|file| *file != blocked) {
            let dir = TestDir::new();
            let registry = dir.registry();
            publish(&registry, "tone", &dir.content(1)).unwrap();
            let content = dir.content(2);
            let adapters = dir.path("registry/adapters");
            let blob = adapters.join(&content.sha256);
            // A folder in the place of a file makes its write fail.
            std::fs::create_dir_all(blob.join(blocked).join("full")).unwrap();
            assert!(publish(&registry, "tone", &content).is_err(), "{blocked}");
            assert_eq!(names(&blob), [blocked]);
            // What another process wrote before it was killed stays.
            std::fs::write(blob.join(earlier), "{").unwrap();
            assert!(publish(&registry, "tone", &content).is_err(), "{blocked}");
            let mut expected = [blocked, earlier];
            expected.sort_unstable();
            assert_eq!(names(&blob), expected);
            // The next publication works, and the other adapter was never touched.
            std::fs::remove_dir_all(&blob).unwrap();
            assert_eq!(publish(&registry, "tone", &content).unwrap().version, 2);
            let verified = registry.verify().unwrap();
            assert!(verified.iter().all(|adapter| adapter.problem.is_none()));
        }
    }
}

#[test]
fn size_in_the_log_is_not_trusted() {
    let dir = TestDir::new();
    publish(&dir.registry(), "tone", &dir.content(1)).unwrap();
    let entry = dir.path(&format!("registry/log/{:020}.json", 1));
    let text = std::fs::read_to_string(&entry).unwrap();
    let bytes = text.find("\"bytes\": ").unwrap() + 9;
    let end = bytes + text[bytes..].find(',').unwrap();
    let text = format!("{}{}{}", &text[..bytes], u64::MAX, &text[end..]);
    std::fs::write(&entry, text).unwrap();
    let registry = dir.registry();
    let state = registry.refresh().unwrap();
    let (personas, _) = registry.personas(&state, &Personas::default());
    // Sizes of several adapters are added.
    let adapter = personas.get("tone").unwrap().adapter.clone().unwrap();
    assert_eq!(adapter.bytes, registry::blob::MAX_WEIGHTS);
}

#[cfg(unix)]
#[test]
fn pipe_or_endless_device_in_the_log_is_reported_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("registry");
    let log = root.join("log");
    std::fs::create_dir_all(&log).unwrap();
    let entry = log.join(format!("{:020}.json", 1));
    let open = || {
        let location = registry::RegistryLocation::Folder(root.clone());
        registry::Registry::open(&location, &folder.path().join("cache")).unwrap()
    };
    std::os::unix::fs::symlink("/dev/zero", &entry).unwrap();
    let error = open().refresh().unwrap_err().to_string();
    assert!(
        error.contains("0001.json") && error.contains("not a regular file"),
        "{error}"
    );
    std::fs::remove_file(&entry).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&entry).status();
    assert!(made.unwrap().success());
    let error = open().refresh().unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    std::fs::remove_file(&entry).unwrap();
    std::fs::File::create(&entry)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let error = open().refresh().unwrap_err().to_string();
    assert!(error.contains("0001.json"), "{error}");
}

#[test]
fn first_publication_after_the_home_was_removed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let location = registry::RegistryLocation::Folder(home.join("registry"));
    let registry = registry::Registry::open(&location, &folder.path().join("cache")).unwrap();
    registry.refresh().unwrap();
    std::fs::remove_dir(&home).unwrap();
    let published = registry.publish(&registry::Publication {
        name: "acme",
        content: None,
        settings: None,
        current: true,
        only_new: false,
    });
    assert!(matches!(published, Err(RegistryError::Removed { .. })));
    assert!(!home.exists());
}
