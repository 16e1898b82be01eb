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

/// Removes the folders with a `/` after them, the longest first. The text may have a folder as it was given, or where it is.
fn without_folders(text: &str, folders: &BTreeSet<PathBuf>) -> String {
    let spellings = folders.iter().flat_map(|folder| {
        let absolute = std::path::absolute(folder).ok();
        [Some(folder.clone()), absolute, folder.canonicalize().ok()]
    });
    // The root and the working folder are in front of every path.
    let is_named = |folder: &PathBuf| folder.file_name().is_some();
    let folders: BTreeSet<PathBuf> = spellings.flatten().filter(is_named).collect();
    let mut folders: Vec<&PathBuf> = folders.iter().collect();
    folders.sort_by_key(|folder| std::cmp::Reverse(folder.as_os_str().len()));
    let hidden = |text: String, folder: &PathBuf| without_folder(&text, folder);
    folders.into_iter().fold(text.to_owned(), hidden)
}

fn without_folder(text: &str, folder: &Path) -> String {
    // A short name may be a part of another path, such as that of a route.
    let may_be_inside = folder.is_absolute() && folder.components().count() > 2;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let folder = folder.display().to_string();
    let is_part_of_path =
        |c: char| c.is_alphanumeric() || ['_', '-', '.', '~', '/', '\\'].contains(&c);
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(&folder) {
        let (before, after) = (&rest[..at], &rest[at + folder.len()..]);
        shown.push_str(before);
        rest = after;
        if !may_be_inside && shown.ends_with(is_part_of_path) {
            shown.push_str(&folder);
        } else if let Some(inside) = after.strip_prefix(std::path::MAIN_SEPARATOR) {
            rest = inside;
        } else {
            shown.push_str(&name);
        }
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_after_their_folder() {
        let folders = [
            "/srv/lory/jobs",
            "/srv/lory",
            "/",
            "/data",
            "",
            ".",
            "home/jobs",
            "../secret/results",
            "personas",
        ];
        let folders: BTreeSet<PathBuf> = folders.iter().map(PathBuf::from).collect();
        let here = std::env::current_dir().unwrap();
        let here = here.display();
        let absolute = format!("cannot read {here}/home/jobs/a/b: gone");
        for (text, expected) in [
            (
                "cannot write /srv/lory/jobs/a/b: full",
                "cannot write a/b: full",
            ),
            ("/srv/lory/registry and /srv/lory/jobs", "registry and jobs"),
            ("file:///srv/lory/jobs/a", "file://a"),
            ("/srv/other", "/srv/other"),
            // Folders that are not deep, and relative ones.
            ("cannot read /data/a: gone", "cannot read a: gone"),
            ("/srv/data/a, see /v1/data/b", "/srv/data/a, see /v1/data/b"),
            ("home/jobs/a/b: gone, home/jobs", "a/b: gone, jobs"),
            ("../secret/results/a", "a"),
            (&absolute, "cannot read a/b: gone"),
            (
                "`personas/warm`, see the personas of /v1/personas/warm",
                "`warm`, see the personas of /v1/personas/warm",
            ),
        ] {
            assert_eq!(without_folders(text, &folders), expected);
        }
    }
}
