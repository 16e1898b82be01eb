//! Removes what killed writers left in the folder of a registry.
//!
//! The `object_store` crate writes `<name>#<number>` and renames it. Only temporary files of the registry's own names are removed,
//! and only when no writer can still be at work.

use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};
use std::time::Duration;

use formats::{disk, peft};

use crate::{blob, log_entry};

/// A temporary file is a leftover when it is older than this.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// Removes the leftovers in the registry's folder `root`. What cannot be removed stays until the next start.
pub(crate) fn remove(root: &Path) {
    let mut folders: Vec<PathBuf> = entries(&root.join(blob::FOLDER))
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str().and_then(blob::digest).is_some()
        })
        .map(|entry| entry.path())
        .collect();
    folders.push(root.join(log_entry::FOLDER));
    for entry in folders.iter().flat_map(|dir| entries(dir)) {
        let name = entry.file_name();
        let age = entry.metadata().and_then(|meta| meta.modified());
        let age = age.ok().and_then(|time| time.elapsed().ok());
        if name.to_str().is_some_and(is_temporary) && age.is_some_and(|age| age > LEFTOVER_AGE) {
            let _ = disk::remove_file(&entry.path());
        }
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = DirEntry> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten()
}

/// Whether a file with this name is being written to one of the registry's names.
fn is_temporary(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(name, number)| {
        let of_blob = [peft::CONFIG_FILE, peft::WEIGHTS_FILE, blob::MANIFEST].contains(&name);
        let of_log = log_entry::sequence_of(name).is_some();
        (of_blob || of_log) && number.parse::<u32>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_old_temporary_files_of_the_registry_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let blob = format!("adapters/{}", "0".repeat(64));
        let entry = format!("log/{}.json", "0".repeat(20));
        let old = SystemTime::now() - 2 * LEFTOVER_AGE;
        let file = |name: &str, modified: SystemTime| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(modified).unwrap();
            path
        };
        let removed = [
            file(&format!("{blob}/adapter_model.safetensors#1"), old),
            file(&format!("{blob}/manifest.json#12"), old),
            file(&format!("{entry}#1"), old),
        ];
        let kept = [
            file(&format!("{blob}/adapter_model.safetensors"), old),
            file(&format!("{blob}/adapter_config.json#1"), SystemTime::now()),
            file(&format!("{blob}/notes#1"), old),
            file("adapters/mine/adapter_model.safetensors#1", old),
            file("log/notes.json#1", old),
            file(&entry, old),
        ];
        remove(root.path());
        assert!(removed.iter().all(|path| !path.exists()));
        assert!(kept.iter().all(|path| path.exists()));
    }
}
