//! Floors, async and unsafe code, and sizes.

use std::collections::BTreeMap;

use crate::{crates, files, report, root, sources};

/// Floors by crate. A crate may depend on crates of lower floors only.
const FLOORS: [(&str, u8); 16] = [
    ("formats", 0),
    ("sampling", 0),
    ("kernels-common", 0),
    ("gpu", 1),
    ("dataset", 1),
    ("kernels", 2),
    ("model", 3),
    ("engine", 4),
    ("train", 4),
    ("registry", 4),
    ("base", 4),
    ("auth", 4),
    ("service", 5),
    ("jobs", 6),
    ("server", 7),
    ("lory", 8),
];
/// For development only, so it has no floor.
const TESTS_ONLY: &str = "testkit";

/// Where async code may be: a crate and the start of a path under its `src`. Object stores have no other interface, so
/// `registry` waits for them in one file (ARCHITECTURE.md, Decisions).
const ASYNC: [(&str, &str); 3] = [
    ("registry", "store.rs"),
    ("server", ""),
    ("lory", "cli/serve/start.rs"),
];
/// Words and dependencies of async code.
const ASYNC_WORDS: [&str; 4] = ["async", "await", "tokio", "axum"];
const ASYNC_CRATES: [&str; 7] = [
    "async-trait",
    "axum",
    "futures",
    "futures-util",
    "hyper",
    "hyper-util",
    "tokio",
];

/// Crates that may hold unsafe code: those of devices.
const UNSAFE: [&str; 2] = ["gpu", "kernels"];

/// The most lines of Rust under a crate's `src`.
const MOST_LINES: usize = 14_000;
/// The largest share of all crates' lines that one crate may have is one in so many.
const SHARE: usize = 4;
/// Crates that are still larger.
const TOO_LARGE: [&str; 0] = [];

/// Longer functions are listed in the report `long-functions.txt`.
const LONG_FUNCTION: usize = 70;

fn manifests() -> BTreeMap<String, toml::Table> {
    let read = |folder: &std::path::Path| {
        let text = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        text.parse().unwrap()
    };
    crates()
        .into_iter()
        .map(|(name, folder)| (name, read(&folder)))
        .collect()
}

/// Names of what a crate depends on outside its tests, on any platform.
fn dependencies(manifest: &toml::Table) -> Vec<&str> {
    let platforms = manifest.get("target").and_then(toml::Value::as_table);
    let tables = platforms
        .into_iter()
        .flat_map(|all| all.values())
        .filter_map(toml::Value::as_table)
        .chain([manifest]);
    tables
        .filter_map(|table| table.get("dependencies")?.as_table())
        .flat_map(|dependencies| dependencies.keys())
        .map(String::as_str)
        .collect()
}

#[test]
fn crates_depend_on_lower_floors_only() {
    let manifests = manifests();
    let floors = BTreeMap::from(FLOORS);
    let mut wrong = Vec::new();
    for (name, manifest) in manifests.iter().filter(|(name, _)| *name != TESTS_ONLY) {
        let Some(floor) = floors.get(name.as_str()) else {
            wrong.push(format!("{name} has no floor in FLOORS"));
            continue;
        };
        for dependency in dependencies(manifest) {
            match floors.get(dependency) {
                Some(lower) if lower >= floor => wrong.push(format!(
                    "{name} (floor {floor}) depends on {dependency} (floor {lower})"
                )),
                None if dependency == TESTS_ONLY => {
                    wrong.push(format!("{name} depends on {TESTS_ONLY} outside its tests"));
                }
                _ => {}
            }
        }
    }
    for name in floors.keys().filter(|name| !manifests.contains_key(**name)) {
        wrong.push(format!("{name} is in FLOORS, and there is no such crate"));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(
        dependencies(&manifests["engine"]),
        ["base16ct", "rand_xoshiro", "sampling", "thiserror"]
    );
}

#[test]
fn async_code_is_in_its_places_only() {
    let manifests = manifests();
    let mut wrong = Vec::new();
    for (name, found) in sources() {
        let places = ASYNC.iter().filter(|(of, _)| of == name);
        let places: Vec<&str> = places.map(|(_, path)| *path).collect();
        if places.contains(&"") || name == TESTS_ONLY {
            continue;
        }
        for dependency in dependencies(&manifests[name]) {
            if ASYNC_CRATES.contains(&dependency) && places.is_empty() {
                wrong.push(format!("{name} depends on {dependency}"));
            }
        }
        for (word, at) in ASYNC_WORDS
            .iter()
            .flat_map(|word| Some((word, found.words.get(*word)?)))
        {
            for at in at {
                let file = at.split_once("/src/").unwrap().1;
                if !places.iter().any(|place| file.starts_with(place)) {
                    wrong.push(format!("{at}: {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Who calls the registry need not know that it waits.
#[test]
fn the_registry_shows_nothing_async() {
    let store = std::fs::read_to_string(root().join("crates/registry/src/store.rs")).unwrap();
    assert!(store.contains("block_on"));
    assert!(!store.contains("pub async fn"));
}

#[test]
fn unsafe_code_is_in_the_kernels_of_devices_only() {
    for (name, manifest) in manifests() {
        let lints = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"));
        let inherits = lints.and_then(toml::Value::as_bool) == Some(true);
        let unsafe_ = UNSAFE.contains(&name.as_str());
        assert_eq!(inherits, !unsafe_, "{name}: lints.workspace");
    }
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    for (name, found) in sources()
        .iter()
        .filter(|(name, _)| !UNSAFE.contains(&name.as_str()))
    {
        assert_eq!(found.words.get("unsafe"), None, "{name}");
    }
}

#[test]
fn no_crate_is_too_large() {
    let lines = |folder: &std::path::Path| -> usize {
        let sources = files(&folder.join("src"), &[".rs"]);
        sources
            .iter()
            .map(|file| std::fs::read_to_string(file).unwrap().lines().count())
            .sum()
    };
    let sizes: BTreeMap<String, usize> = crates()
        .into_iter()
        .map(|(name, folder)| (name, lines(&folder)))
        .collect();
    let limit = MOST_LINES.min(sizes.values().sum::<usize>() / SHARE);
    report("sizes.txt", &format!("limit {limit}\n{sizes:#?}\n"));
    let large: Vec<&str> = sizes
        .iter()
        .filter(|(_, lines)| **lines > limit)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(large, TOO_LARGE, "limit {limit}: {sizes:?}");
}

#[test]
fn long_functions_are_reported() {
    let mut long: Vec<_> = sources()
        .values()
        .flat_map(|found| &found.functions)
        .filter(|function| function.lines > LONG_FUNCTION)
        .collect();
    long.sort();
    let lines: Vec<String> = long
        .iter()
        .rev()
        .map(|function| format!("{:4} {} ({})\n", function.lines, function.name, function.at))
        .collect();
    report("long-functions.txt", &lines.concat());
}

/// What changes files without [`formats::disk`]; `AtomicFile::create` is not among them.
const FILE_CHANGES: &str = r"\bfs::(write|rename|copy|create_dir|create_dir_all|remove_file|remove_dir_all)\(|\bFile::create\(|\.append\(true\)";
/// Where it may be: the layer itself, locks, and a file whose time of use is set.
const FILE_CHANGES_ALLOWED: [&str; 4] = [
    "formats/src/disk/mod.rs",
    "base/src/hub/cache_folder.rs",
    "base/src/quant_cache/mod.rs",
    "jobs/src/jobs_folder.rs",
];

/// So that the tests with faults of the disk cover every file that is written.
#[test]
fn files_are_changed_through_the_disk_layer_only() {
    let changes = regex::Regex::new(FILE_CHANGES).unwrap();
    let mut wrong = Vec::new();
    for (_, folder) in crates().into_iter().filter(|(name, _)| name != TESTS_ONLY) {
        for file in files(&folder.join("src"), &[".rs"]) {
            let name = file.strip_prefix(root().join("crates")).unwrap();
            let name = name.to_str().unwrap().to_owned();
            let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
            if is_test || FILE_CHANGES_ALLOWED.contains(&name.as_str()) {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            // Tests are at the end of a file.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for (line, text) in (1..).zip(code.lines()) {
                if changes.is_match(text) && !text.contains("AtomicFile::create") {
                    wrong.push(format!("{name}:{line}: {}", text.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "use formats::disk:\n{}", wrong.join("\n"));
}
