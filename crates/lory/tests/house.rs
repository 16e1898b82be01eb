//! The house rules that a program can check: floors, unsafe code, async.

use std::collections::BTreeMap;
use std::path::Path;

/// Floors by crate; testkit is for development only.
const FLOORS: [(&str, u8); 7] = [
    ("formats", 0),
    ("kernels", 0),
    ("model", 1),
    ("engine", 2),
    ("train", 2),
    ("registry", 2),
    ("lory", 3),
];

fn manifests() -> BTreeMap<String, toml::Table> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folders = std::fs::read_dir(crates)
        .unwrap()
        .map(|entry| entry.unwrap());
    folders
        .map(|folder| {
            let text = std::fs::read_to_string(folder.path().join("Cargo.toml")).unwrap();
            (
                folder.file_name().into_string().unwrap(),
                text.parse().unwrap(),
            )
        })
        .collect()
}

fn dependencies(manifest: &toml::Table) -> Vec<&str> {
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    table
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect()
}

#[test]
fn a_crate_imports_only_from_floors_below_its_own() {
    let manifests = manifests();
    assert_eq!(
        manifests.len(),
        FLOORS.len() + 1,
        "a new crate needs a floor here"
    );
    let floors = BTreeMap::from(FLOORS);
    for (name, floor) in FLOORS {
        for dependency in dependencies(&manifests[name]) {
            assert_ne!(
                dependency, "testkit",
                "{name} uses testkit outside its tests"
            );
            if let Some(below) = floors.get(dependency) {
                assert!(
                    *below < floor,
                    "{name} on floor {floor} imports {dependency} on floor {below}"
                );
            }
        }
    }
    assert_eq!(dependencies(&manifests["engine"]), ["thiserror"]);
}

/// The one file below the binary that may wait for something asynchronous (see ARCHITECTURE.md, Decisions): object stores
/// have no other interface. It needs the crate that runs it, and nothing of it shows outside.
const WAITS: (&str, &str, &str) = ("registry", "tokio", "store.rs");

#[test]
fn async_lives_in_the_binary_alone() {
    let (waiting, runs_it, file) = WAITS;
    for (name, manifest) in manifests().iter().filter(|(name, _)| *name != "lory") {
        for dependency in dependencies(manifest) {
            let is_async = ["tokio", "futures", "async", "axum", "hyper"]
                .iter()
                .any(|a| dependency.starts_with(a));
            let allowed = (name.as_str(), dependency) == (waiting, runs_it);
            assert!(!is_async || allowed, "{name} depends on {dependency}");
        }
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../registry/src");
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if path.file_name().unwrap() == file {
            assert!(text.contains("block_on"));
            assert!(!text.contains("pub async fn"));
        } else {
            for word in ["async ", ".await", "tokio::", "futures"] {
                assert!(!text.contains(word), "{} has {word:?}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_the_kernels() {
    for (name, manifest) in manifests() {
        let inherits = manifest["lints"]
            .get("workspace")
            .and_then(toml::Value::as_bool)
            == Some(true);
        assert_eq!(inherits, name != "kernels", "{name}: lints.workspace");
    }
    let root = include_str!("../../../Cargo.toml");
    assert!(root.contains("unsafe_code = \"forbid\""));
}
