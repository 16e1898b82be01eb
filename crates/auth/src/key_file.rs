//! Reads and edits the file of keys.
//!
//! ```toml
//! [[key]]
//! name = "shop"                       # appears in logs; the secret never does
//! sha256 = "ba7816bf…"                # of the secret, 64 hexadecimal digits
//! personas = ["customer", "acme-*"]   # * at the end matches every name with that beginning [default: every persona]
//! base = false                        # may use the base without a persona [default: true only if personas is not set]
//! admin = false                       # may change personas, read /metrics, and use priorities below 0
//! train = false                       # may upload files and run training jobs, for the personas that it may use
//! requests_per_minute = 60            # [default: no limit]
//! tokens_per_minute = 20000           # of prompts and answers [default: no limit]
//! share = 1                           # its weight among waiting requests, 1 to 100
//! open_jobs = 16                      # quotas: also stored_jobs, open_evaluations, stored_evaluations, files, file_bytes, votes,
//!                                     # vote_pairs, adapter_bytes and upload_bytes [default: a quarter of the server's limit]
//! file_bytes = "500MB"                # bytes are a number, or a size with a unit
//! cache_group = "acme"                # keys of one group share the prefix cache [default: no other key shares it]
//! ```

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::Write as _;
use std::path::Path;

use bytesize::ByteSize;
use formats::atomic_file;
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;
use toml::Spanned;
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::error::KeysError;
use crate::key_entry::{KeyEntry, MAX_SHARE, check_group, check_name, check_pattern};
use crate::quota::{Quotas, Resource};
use crate::secret::SecretHash;

/// The most keys in a file. Each request is compared with all of them.
pub const MAX_KEYS: usize = 10_000;
/// The largest file, in bytes.
pub const MAX_BYTES: u64 = 16 << 20;
/// The array of tables in which a file lists its keys.
const KEY: &str = "key";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    key: Vec<RawKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    name: Spanned<String>,
    sha256: Spanned<String>,
    personas: Option<Vec<Spanned<String>>>,
    base: Option<bool>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    train: bool,
    requests_per_minute: Option<Spanned<i64>>,
    tokens_per_minute: Option<Spanned<i64>>,
    share: Option<Spanned<i64>>,
    cache_group: Option<Spanned<String>>,
    open_jobs: Option<Spanned<i64>>,
    stored_jobs: Option<Spanned<i64>>,
    open_evaluations: Option<Spanned<i64>>,
    stored_evaluations: Option<Spanned<i64>>,
    files: Option<Spanned<i64>>,
    file_bytes: Option<Spanned<Size>>,
    votes: Option<Spanned<i64>>,
    vote_pairs: Option<Spanned<i64>>,
    adapter_bytes: Option<Spanned<Size>>,
    upload_bytes: Option<Spanned<Size>>,
}

/// Bytes: a number, or a size with a unit.
struct Size(i64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size, such as \"500MB\" or 0")
    }

    fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
        Ok(Size(bytes))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
        let size = text.parse::<ByteSize>().ok();
        size.and_then(|size| i64::try_from(size.as_u64()).ok())
            .map(Size)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl RawKey {
    /// The quota of each resource as it is written, with its offset.
    fn quotas(&self) -> [(Resource, Option<(i64, usize)>); Resource::ALL.len()] {
        let count = |written: &Option<Spanned<i64>>| {
            let written = written.as_ref()?;
            Some((*written.get_ref(), written.span().start))
        };
        let bytes = |written: &Option<Spanned<Size>>| {
            let written = written.as_ref()?;
            Some((written.get_ref().0, written.span().start))
        };
        Resource::ALL.map(|resource| {
            let written = match resource {
                Resource::OpenJobs => count(&self.open_jobs),
                Resource::StoredJobs => count(&self.stored_jobs),
                Resource::OpenEvaluations => count(&self.open_evaluations),
                Resource::StoredEvaluations => count(&self.stored_evaluations),
                Resource::Files => count(&self.files),
                Resource::FileBytes => bytes(&self.file_bytes),
                Resource::Votes => count(&self.votes),
                Resource::VotePairs => count(&self.vote_pairs),
                Resource::AdapterBytes => bytes(&self.adapter_bytes),
                Resource::UploadBytes => bytes(&self.upload_bytes),
            };
            (resource, written)
        })
    }
}

/// Parses the text of a file. `place` is its name in errors.
///
/// # Errors
/// [`KeysError::Invalid`] with the line.
pub fn parse(place: &str, text: &str) -> Result<Vec<KeyEntry>, KeysError> {
    let file = FileText { place, text };
    let raw = parse_fields(&file)?;
    if raw.key.len() > MAX_KEYS {
        let message = format!("{} keys; there may be at most {MAX_KEYS}", raw.key.len());
        return Err(file.invalid(0, message));
    }
    let mut names = HashSet::new();
    let mut entries = Vec::with_capacity(raw.key.len());
    for key in raw.key {
        let place = key.name.span().start;
        let entry = key.into_entry(&file)?;
        if !names.insert(entry.name.clone()) {
            let name = entry.name;
            let message = format!("key {name} is listed twice; give one of them another name");
            return Err(file.invalid(place, message));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The fields of a file, if they have the right names and types.
fn parse_fields(file: &FileText<'_>) -> Result<RawFile, KeysError> {
    // Only the parser's message: its full text shows the line, which may hold a secret by mistake.
    let invalid = |error: &toml::de::Error, message: String| {
        file.invalid(error.span().map_or(0, |span| span.start), message)
    };
    let toml = toml::Deserializer::parse(file.text)
        .map_err(|error| invalid(&error, error.message().to_owned()))?;
    serde_path_to_error::deserialize(toml).map_err(|error| {
        let message = error.inner().message();
        // The parser's names of the types of Rust.
        let message = message
            .replace("expected i64", "expected a whole number")
            .replace("expected a boolean", "expected true or false");
        // Names of the parser's own, for spans, begin with $.
        let mut field = error.path().iter().filter_map(|segment| match segment {
            Segment::Map { key } if !key.starts_with('$') => Some(key),
            _ => None,
        });
        let message = match field.next_back() {
            Some(field) if message.starts_with("invalid ") => format!("{field}: {message}"),
            _ => message,
        };
        invalid(error.inner(), message)
    })
}

/// The text of a file, for the lines of errors.
struct FileText<'a> {
    /// The file's name in errors.
    place: &'a str,
    text: &'a str,
}

impl FileText<'_> {
    /// An error at the line of the byte at `offset`.
    fn invalid(&self, offset: usize, message: String) -> KeysError {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count();
        KeysError::Invalid {
            place: format!("{}:{}", self.place, line + 1),
            message,
        }
    }
}

impl RawKey {
    /// The key, if all its fields are valid.
    fn into_entry(self, file: &FileText<'_>) -> Result<KeyEntry, KeysError> {
        let name = self.name.get_ref().clone();
        check_name(&name).map_err(|message| file.invalid(self.name.span().start, message))?;
        let sha256 = SecretHash::parse(self.sha256.get_ref()).ok_or_else(|| {
            let message = format!(
                "key {name}: sha256 must be the 64 hexadecimal digits of the secret's SHA-256; `lory key new` writes them"
            );
            file.invalid(self.sha256.span().start, message)
        })?;
        for persona in self.personas.iter().flatten() {
            check_pattern(persona.get_ref()).map_err(|message| {
                file.invalid(persona.span().start, format!("key {name}: {message}"))
            })?;
        }
        let quotas = self.checked_quotas(&name, file)?;
        if let Some(group) = &self.cache_group {
            check_group(group.get_ref()).map_err(|message| {
                let message = format!("key {name}: cache_group: {message}");
                file.invalid(group.span().start, message)
            })?;
        }
        let number = |field: &str, value: Option<Spanned<i64>>, most: u32| match value {
            None => Ok(None),
            Some(value) => match u32::try_from(*value.get_ref()) {
                Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
                _ => {
                    let found = value.get_ref();
                    let message =
                        format!("key {name}: {field} must be from 1 to {most}, not {found}");
                    Err(file.invalid(value.span().start, message))
                }
            },
        };
        Ok(KeyEntry {
            quotas,
            base: self.base.unwrap_or(self.personas.is_none()),
            requests_per_minute: number("requests_per_minute", self.requests_per_minute, u32::MAX)?,
            tokens_per_minute: number("tokens_per_minute", self.tokens_per_minute, u32::MAX)?,
            share: number("share", self.share, MAX_SHARE)?.unwrap_or(1),
            personas: self
                .personas
                .map(|names| names.into_iter().map(Spanned::into_inner).collect()),
            admin: self.admin,
            train: self.train,
            cache_group: self.cache_group.map(Spanned::into_inner),
            name,
            sha256,
        })
    }

    fn checked_quotas(&self, name: &str, file: &FileText<'_>) -> Result<Quotas, KeysError> {
        let mut quotas = Quotas::default();
        for (resource, value) in self.quotas() {
            let Some((found, offset)) = value else {
                continue;
            };
            // Bytes may be more than 32 bits hold.
            let quota = u64::try_from(found).map_err(|_| {
                let field = resource.key();
                let message = format!("key {name}: {field} must be 0 or more, not {found}");
                file.invalid(offset, message)
            })?;
            quotas.set(resource, Some(quota));
        }
        Ok(quotas)
    }
}

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

/// Reads a file; none if it does not exist.
///
/// # Errors
/// [`KeysError::Io`].
pub fn read_text(path: &Path) -> Result<Option<String>, KeysError> {
    let io = |source| KeysError::Io {
        path: path.to_owned(),
        source,
    };
    let bytes = match formats::disk::read(path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let text = String::from_utf8(bytes).map_err(|error| io(std::io::Error::other(error)))?;
    Ok(Some(text))
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
        let bare = format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'");
        let bare = parse("keys", &bare).unwrap().remove(0);
        assert!(bare.base && bare.personas.is_none() && !bare.admin && bare.share == 1);
        let one = format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\npersonas = ['b']");
        assert!(!parse("keys", &one).unwrap()[0].base);
        assert!(parse("keys", "# nothing yet\n").unwrap().is_empty());
    }

    #[test]
    fn errors_name_the_line_and_show_no_secret() {
        let secret = "hunter2-hunter2-hunter2-hunter2-hunter2";
        for (text, expected) in [
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{secret}'"),
                "keys:3: key a: sha256 must be",
            ),
            (
                format!("[[key]]\nname = 'a'\nsecret = '{secret}'"),
                "keys:3: unknown field `secret`",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{secret}"),
                "keys:3: ",
            ),
            (
                format!("[[key]]\nname = 'a b'\nsha256 = '{ABC}'"),
                "keys:2: a key's name has",
            ),
            (
                format!(
                    "[[key]]\nname = 'a'\nsha256 = '{ABC}'\n[[key]]\nname = 'a'\nsha256 = '{ABC}'"
                ),
                "keys:5: key a is listed twice",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\nrequests_per_minute = 0"),
                "keys:4: key a: requests_per_minute must be from 1 to 4294967295, not 0",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\nshare = 101"),
                "keys:4: key a: share must be from 1 to 100, not 101",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\nfile_bytes = -1"),
                "keys:4: key a: file_bytes must be 0 or more, not -1",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\nfile_bytes = 'lots'"),
                "keys:4: file_bytes: invalid value: string \"lots\", expected a size, such as \"500MB\" or 0",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\nupload_bytes = true"),
                "keys:4: upload_bytes: invalid type: boolean `true`, expected a size, such as",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\nopen_jobs = '2'"),
                "keys:4: open_jobs: invalid type: string \"2\", expected a whole number",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\ntrain = 1"),
                "keys:4: train: invalid type: integer `1`, expected true or false",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\npersonas = [1]"),
                "keys:4: personas: invalid type: integer `1`, expected a string",
            ),
            (
                format!("[[key]]\nname = 7\nsha256 = '{ABC}'"),
                "keys:2: name: invalid type: integer `7`, expected a string",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\ncache_group = 'a b'"),
                "keys:4: key a: cache_group: a group's name has 1 to 64",
            ),
            (
                format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\npersonas = ['Upper']"),
                "keys:4: key a: \"Upper\" is not a persona's name",
            ),
        ] {
            let error = parse("keys", &text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn quotas_of_bytes_may_have_units() {
        let text = format!(
            "[[key]]\nname = 'a'\nsha256 = '{ABC}'\nfile_bytes = '1GB'\nadapter_bytes = '2 MiB'\nupload_bytes = 5"
        );
        let key = parse("keys", &text).unwrap().remove(0);
        let quota = |resource| key.quotas.get(resource);
        assert_eq!(quota(Resource::FileBytes), Some(1_000_000_000));
        assert_eq!(quota(Resource::AdapterBytes), Some(2 << 20));
        assert_eq!(quota(Resource::UploadBytes), Some(5));
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
