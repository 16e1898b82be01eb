//! The folders that a service uses. Messages for clients must not name them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Service;

impl Service {
    /// `text` without the folders of the service and the folders `more`: a path in one of them begins after it. For messages that are
    /// made of errors of many kinds; others have a message for clients.
    pub fn hide_folders(&self, text: &str, more: &[&Path]) -> String {
        if !text.contains(std::path::MAIN_SEPARATOR) {
            return text.to_owned();
        }
        let mut folders: BTreeSet<PathBuf> = more.iter().map(|path| path.to_path_buf()).collect();
        let registry = self.registry().ok();
        folders.extend(registry.map(|registry| PathBuf::from(registry.name())));
        folders.extend(self.adapter_root.clone());
        let personas = self.personas();
        for persona in personas.iter().chain(self.catalog.folder().iter()) {
            let parent = persona.dir.parent().unwrap_or(Path::new(""));
            folders.insert(parent.to_owned());
            let adapter = persona.adapter.as_ref();
            let adapter = adapter.filter(|adapter| !adapter.path.starts_with(parent));
            let adapter = adapter.and_then(|adapter| adapter.path.parent());
            folders.extend(adapter.map(Path::to_owned));
        }
        without_folders(text, &folders)
    }
}

/// Removes the folders with a `/` after them, the deepest first. A relative folder shows nothing of the machine, and the root is in front
/// of every path.
fn without_folders(text: &str, folders: &BTreeSet<PathBuf>) -> String {
    let is_deep = |folder: &&PathBuf| folder.is_absolute() && folder.components().count() > 2;
    let mut folders: Vec<String> = folders
        .iter()
        .filter(is_deep)
        .map(|folder| folder.display().to_string())
        .collect();
    folders.sort_by_key(|folder| std::cmp::Reverse(folder.len()));
    let mut text = text.to_owned();
    for folder in folders {
        text = text.replace(&format!("{folder}{}", std::path::MAIN_SEPARATOR), "");
        let name = Path::new(&folder).file_name().unwrap_or_default();
        text = text.replace(&folder, &name.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_after_their_folder() {
        let folders = ["/srv/lory/jobs", "/srv/lory", "/", "/srv", "jobs"];
        let folders: BTreeSet<PathBuf> = folders.iter().map(PathBuf::from).collect();
        for (text, expected) in [
            (
                "cannot write /srv/lory/jobs/a/b: full",
                "cannot write a/b: full",
            ),
            ("/srv/lory/registry and /srv/lory/jobs", "registry and jobs"),
            ("/srv/other", "/srv/other"),
            ("jobs/a, see /v1/files", "jobs/a, see /v1/files"),
        ] {
            assert_eq!(without_folders(text, &folders), expected);
        }
    }
}
