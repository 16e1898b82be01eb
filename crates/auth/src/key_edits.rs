//! Adds keys to the file of keys and removes them, and changes nothing else in it.

use std::fs::{File, Metadata};
use std::io::Write as _;
use std::path::Path;

use formats::atomic_file;
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::error::KeysError;
use crate::key_entry::KeyEntry;
use crate::key_file::{parse, read_text};
use crate::quota::Resource;

/// The array of tables in which a file lists its keys.
const KEY: &str = "key";

/// The text of a key, as [`parse`] reads it.
#[must_use]
pub fn write(entry: &KeyEntry) -> String {
    let mut table = Table::new();
    table.decor_mut().set_prefix("\n");
    table["name"] = value(&entry.name);
    table["sha256"] = value(entry.sha256.to_string());
    if let Some(personas) = &entry.personas {
        table["personas"] = value(personas.iter().collect::<Array>());
    }
    if entry.base != entry.personas.is_none() {
        table["base"] = value(entry.base);
    }
    if entry.admin {
        table["admin"] = value(true);
    }
    if entry.train {
        table["train"] = value(true);
    }
    if let Some(group) = &entry.cache_group {
        table["cache_group"] = value(group);
    }
    for (field, number) in [
        ("requests_per_minute", entry.requests_per_minute),
        ("tokens_per_minute", entry.tokens_per_minute),
        ("share", Some(entry.share).filter(|share| *share != 1)),
    ] {
        if let Some(number) = number {
            table[field] = value(i64::from(number));
        }
    }
    for resource in Resource::ALL {
        if let Some(quota) = entry.quotas.get(resource) {
            table[resource.key()] = value(i64::try_from(quota).unwrap_or(i64::MAX));
        }
    }
    let mut document = DocumentMut::new();
    document[KEY] = Item::ArrayOfTables([table].into_iter().collect());
    document.to_string()
}

/// Adds a key to a file, which need not exist yet. Other users cannot read a file that this creates.
///
/// # Errors
/// [`KeysError`] of the file, its folder does not exist, or the name is taken. Nothing is written then.
pub fn add(path: &Path, entry: &KeyEntry) -> Result<(), KeysError> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(KeysError::NoFolder(folder.to_owned()));
    }
    let _editing = lock_folder(path);
    let place = path.display().to_string();
    let before = read_text(path)?.unwrap_or_default();
    let keys = parse(&place, &before)?;
    if keys.iter().any(|key| key.name == entry.name) {
        let message = format!(
            "key {} exists; revoke it first, or edit its limits in the file",
            entry.name
        );
        return Err(KeysError::Invalid { place, message });
    }
    let after = format!("{before}{}", write(entry));
    parse(&place, &after)?;
    // In one step: half of a table would make the whole file invalid, and with it every key.
    replace(path, &after).map_err(|source| KeysError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Holds a lock of the file's folder, so that two processes can edit keys at the same time. None where folders have no locks.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = File::open(folder_of(path)).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

fn folder_of(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Removes a key from a file and changes nothing else in it. Returns false if no key has this name.
///
/// # Errors
/// [`KeysError`] of the file, or the key is not written as a `[[key]]` table and must be removed by hand.
pub fn remove(path: &Path, name: &str) -> Result<bool, KeysError> {
    let _editing = lock_folder(path);
    let place = path.display().to_string();
    let before = read_text(path)?.unwrap_or_default();
    let entries = parse(&place, &before)?;
    let Some(index) = entries.iter().position(|entry| entry.name == name) else {
        return Ok(false);
    };
    let invalid = |message: String| KeysError::Invalid {
        place: place.clone(),
        message,
    };
    let mut document: DocumentMut = before
        .parse()
        .map_err(|error: toml_edit::TomlError| invalid(error.message().to_owned()))?;
    let Some(tables) = document[KEY].as_array_of_tables_mut() else {
        return Err(invalid(format!(
            "key {name} is not written as a table [[{KEY}]]; remove it by hand"
        )));
    };
    // Comments above the table belong to the user, so they stay.
    let above = tables.get(index).and_then(|table| table.decor().prefix());
    let above = above.and_then(|prefix| prefix.as_str()).unwrap_or("");
    let above = above.trim_end_matches('\n').to_owned();
    tables.remove(index);
    if above.trim().is_empty() {
    } else if let Some(next) = tables.get_mut(index) {
        let prefix = next.decor().prefix().and_then(|prefix| prefix.as_str());
        let prefix = format!("{above}\n{}", prefix.unwrap_or(""));
        next.decor_mut().set_prefix(prefix);
    } else {
        let trailing = document.trailing().as_str().unwrap_or("");
        let trailing = format!("{above}\n{trailing}");
        document.set_trailing(trailing);
    }
    let after = document.to_string();
    replace(path, &after).map_err(|source| KeysError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(true)
}

/// Replaces the text of a file in one step, and keeps its owner and permissions. A link keeps its place; its target is replaced.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    atomic_file::replace_private(&path, |file| {
        file.write_all(text.as_bytes())?;
        match path.metadata() {
            Ok(old) => keep_owner(file, &old),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    })
}

/// Gives `file` the permissions and the owner of the file that it replaces: a server that could read the keys still can.
fn keep_owner(file: &File, old: &Metadata) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt as _, fchown};
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.set_permissions(old.permissions())
}

#[cfg(test)]
mod tests {
    use formats::disk::faults::for_each_fault;

    use super::*;
    use crate::quota::Quotas;
    use crate::secret::SecretHash;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn entry(name: &str) -> KeyEntry {
        let mut quotas = Quotas::default();
        for (index, resource) in Resource::ALL.into_iter().enumerate() {
            quotas.set(resource, Some(index as u64));
        }
        KeyEntry {
            quotas,
            name: name.to_owned(),
            sha256: SecretHash::of("abc"),
            personas: Some(vec!["customer".to_owned(), "acme-*".to_owned()]),
            base: true,
            admin: true,
            train: true,
            requests_per_minute: Some(60),
            tokens_per_minute: Some(20_000),
            share: 3,
            cache_group: Some("acme".to_owned()),
        }
    }

    #[test]
    fn written_keys_are_read_back() {
        for wanted in [
            entry("shop"),
            KeyEntry {
                personas: None,
                base: false,
                admin: false,
                train: false,
                requests_per_minute: None,
                tokens_per_minute: None,
                share: 1,
                quotas: Quotas::default(),
                cache_group: None,
                ..entry("plain")
            },
        ] {
            let read = parse("keys", &write(&wanted)).unwrap().remove(0);
            assert!(read.sha256.matches(&wanted.sha256));
            assert_eq!(format!("{read:?}"), format!("{wanted:?}"));
        }
    }

    #[test]
    fn file_with_a_byte_order_mark_is_read_and_edited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        std::fs::write(&path, format!("\u{feff}{}", write(&entry("first")))).unwrap();
        add(&path, &entry("second")).unwrap();
        assert!(remove(&path, "first").unwrap());
        let text = read_text(&path).unwrap().unwrap();
        let names: Vec<String> = parse("keys", &text)
            .unwrap()
            .into_iter()
            .map(|key| key.name)
            .collect();
        assert_eq!(names, ["second"]);
    }

    #[test]
    fn folder_that_does_not_exist_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let refused = add(&missing.join("keys.toml"), &entry("a")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("{}: no such folder; create it first", missing.display())
        );
    }

    #[test]
    fn keys_stay_valid_after_every_fault() {
        let names = |path: &Path| -> Vec<String> {
            let text = read_text(path).unwrap().unwrap_or_default();
            let entries = parse("keys", &text).unwrap();
            entries.into_iter().map(|entry| entry.name).collect()
        };
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("keys.toml");
            let added = injection.run(|| add(&path, &entry("first")));
            assert!(added.is_err() || names(&path) == ["first"], "{injection:?}");
            std::fs::remove_file(&path).ok();
            for name in ["a", "b"] {
                add(&path, &entry(name)).unwrap();
            }
            let added = injection.run(|| add(&path, &entry("c")));
            let found = names(&path);
            assert!(found == ["a", "b", "c"] || (added.is_err() && found == ["a", "b"]));
            let removed = injection.run(|| remove(&path, "a"));
            let found = names(&path);
            assert!(
                found[0] == "b" || (removed.is_err() && found[0] == "a"),
                "{injection:?}"
            );
            add(&path, &entry("d")).unwrap();
            assert_eq!(names(&path).last().unwrap(), "d");
        });
    }

    #[test]
    fn keys_that_are_added_at_once_are_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for n in 0..5 {
                        add(path, &entry(&format!("key-{writer}-{n}"))).unwrap();
                    }
                });
            }
        });
        let text = read_text(&path).unwrap().unwrap();
        assert_eq!(parse("keys", &text).unwrap().len(), 20);
    }

    #[test]
    fn adding_and_removing_keys_keeps_the_rest_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        for name in ["a", "b", "c"] {
            add(&path, &entry(name)).unwrap();
        }
        assert!(
            add(&path, &entry("b")).unwrap_err().to_string().ends_with(
                "keys.toml: key b exists; revoke it first, or edit its limits in the file"
            )
        );
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("[[key]]\nname = \"c\"", "[[key]] # of Carol\nname = \"c\"");
        std::fs::write(&path, format!("# ours\n{text}")).unwrap();
        assert!(remove(&path, "b").unwrap());
        assert!(!remove(&path, "b").unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("# ours\n") && text.contains("# of Carol"),
            "{text}"
        );
        let names: Vec<String> = parse("keys", &text)
            .unwrap()
            .into_iter()
            .map(|e| e.name)
            .collect();
        assert_eq!(names, ["a", "c"]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let inline = format!("key = [{{name = 'a', sha256 = '{ABC}'}}]");
        std::fs::write(&path, inline).unwrap();
        assert!(
            remove(&path, "a")
                .unwrap_err()
                .to_string()
                .contains("by hand")
        );
    }
}
