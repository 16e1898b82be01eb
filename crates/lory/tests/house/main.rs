//! The house rules that a program can check: which crate and module may use which, sizes, documents and wording.

mod crates;
mod cycles;
mod docs;
mod limits;
mod modules;
mod wording;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use modules::Crate;

/// The repository.
fn root() -> PathBuf {
    // Read when it runs, so that a built test can look at another working tree.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let manifest = manifest.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.join("../..").canonicalize().unwrap()
}

/// The crates' folders by name.
fn crates() -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir(root().join("crates")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    folders
        .filter(|folder| folder.join("Cargo.toml").exists())
        .map(|folder| {
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            (name, folder)
        })
        .collect()
}

/// The crates' sources by name, read once.
fn sources() -> &'static BTreeMap<String, Crate> {
    static SOURCES: LazyLock<BTreeMap<String, Crate>> = LazyLock::new(|| {
        let read = |(name, folder): (String, PathBuf)| (name, Crate::read(&folder));
        crates().into_iter().map(read).collect()
    });
    &SOURCES
}

/// Every file under `folder` whose name ends in one of `endings`.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Where reports are written that no test is about.
fn report(name: &str, text: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("house");
    let folder = std::env::var_os("LORY_HOUSE_REPORTS").map_or(folder, PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
}
