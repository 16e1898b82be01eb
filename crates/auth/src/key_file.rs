//! Reads the file of keys. `key_edits` changes it.
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
use std::path::Path;

use bytesize::ByteSize;
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;
use toml::Spanned;

use crate::error::KeysError;
use crate::key_entry::{KeyEntry, MAX_SHARE, check_group, check_name, check_pattern};
use crate::quota::{Quotas, Resource};
use crate::secret::SecretHash;

/// The most keys in a file. Each request is compared with all of them.
pub const MAX_KEYS: usize = 10_000;
/// The largest file, in bytes.
pub const MAX_BYTES: u64 = 16 << 20;

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

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn defaults_of_a_key_depend_on_its_personas() {
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
}
