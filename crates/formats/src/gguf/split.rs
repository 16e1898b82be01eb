//! GGUF files that are split into parts, `<name>-00001-of-00003.gguf`, as llama.cpp's gguf-split writes them. The first part has the metadata. Each
//! part has `split.no` (from 0), `split.count` and `split.tensors.count`, the number of tensors of all parts.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::file::{Bytes, Gguf};
use super::{GgufError, MAX_TENSORS};

/// Most parts of a file.
pub const MAX_PARTS: u32 = 1024;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The name of a part of a split file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartName<'a> {
    /// What comes before `-00001-of-00003.gguf`.
    pub stem: &'a str,
    /// Which part it is, from 1.
    pub number: u32,
    /// The number of parts, at least 2.
    pub count: u32,
}

impl<'a> PartName<'a> {
    /// The part that a file's name, which may begin with folders, says it is.
    #[must_use]
    pub fn parse(name: &'a str) -> Option<PartName<'a>> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let plain = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse::<u32>().ok()).flatten()
        };
        let (number, count) = (digits(number)?, digits(count)?);
        (count > 1 && (1..=count).contains(&number)).then_some(PartName {
            stem,
            number,
            count,
        })
    }

    /// The names of all parts, in order.
    pub fn all(&self) -> impl Iterator<Item = String> {
        let (stem, count) = (self.stem, self.count);
        (1..=count).map(move |number| format!("{stem}-{number:05}-of-{count:05}.gguf"))
    }
}

/// The files of the GGUF file at `path`: itself, or all parts if its name is that of one and they are there.
#[must_use]
pub fn part_files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    let part = name.and_then(PartName::parse);
    let parts = part.filter(|part| part.count <= MAX_PARTS).map(|part| {
        let parts = part.all().map(|name| path.with_file_name(name));
        parts.collect::<Vec<_>>()
    });
    parts
        .filter(|parts| parts.iter().all(|part| part.is_file()))
        .unwrap_or_else(|| vec![path.to_owned()])
}

impl Gguf {
    /// Parses the file at `path`, and with it the other parts if it is a part of a split file. `map` reads or maps a file.
    ///
    /// # Errors
    /// [`GgufError`]: as [`Gguf::parse`], a part is missing, or the files are not the parts of one file.
    pub fn open_parts(
        path: &Path,
        map: &dyn Fn(&Path) -> io::Result<Bytes>,
    ) -> Result<Gguf, GgufError> {
        let open = |path: &Path| {
            let origin = path.display().to_string();
            match map(path) {
                Ok(bytes) => Gguf::parse(bytes, &origin),
                Err(source) => Err(GgufError::Io { origin, source }),
            }
        };
        let named = open(path)?;
        let Some(count) = named.get_u32(COUNT)?.filter(|count| *count > 1) else {
            return Ok(named);
        };
        let origin = || path.display().to_string();
        if count > MAX_PARTS {
            return Err(GgufError::Limit {
                origin: origin(),
                what: COUNT.to_owned(),
                found: count.into(),
                limit: MAX_PARTS.into(),
            });
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let part = name.and_then(PartName::parse);
        let Some(part) = part.filter(|part| part.count == count) else {
            return Err(GgufError::Part {
                origin: origin(),
                problem: format!(
                    "the file is one of {count} parts, whose names must end in -00001-of-{count:05}.gguf and so on"
                ),
            });
        };
        let paths: Vec<PathBuf> = part.all().map(|name| path.with_file_name(name)).collect();
        if let Some(missing) = paths.iter().position(|path| !path.is_file()) {
            return Err(GgufError::Part {
                origin: paths[missing].display().to_string(),
                problem: format!("part {} of {count} is missing", missing + 1),
            });
        }
        let mut named = Some(named);
        let mut parts = Vec::with_capacity(paths.len());
        for (number, path) in (1u32..).zip(&paths) {
            let again = named.take_if(|_| number == part.number);
            parts.push(match again {
                Some(gguf) => gguf,
                None => open(path)?,
            });
        }
        Gguf::join(parts)
    }

    /// The file whose parts these are, in order. Its metadata is that of the first part, without the keys of the split.
    ///
    /// # Errors
    /// [`GgufError`]: they are not all parts of one file.
    pub fn join(parts: Vec<Gguf>) -> Result<Gguf, GgufError> {
        let count = parts.len();
        let mut parts = parts.into_iter();
        let Some(mut whole) = parts.next() else {
            return Err(GgufError::Part {
                origin: "a split file".to_owned(),
                problem: "it has no parts".to_owned(),
            });
        };
        check_split(&whole, 0, count)?;
        let total = whole.get_u64(TENSORS)?;
        for (number, part) in (1..).zip(parts) {
            check_split(&part, number, count)?;
            check_same_file(&whole, &part)?;
            for mut tensor in part.tensors {
                if let Some(&other) = whole.by_name.get(&tensor.name) {
                    let other = whole.tensors[other].part + 1;
                    return Err(GgufError::Tensor {
                        origin: part.origin,
                        name: tensor.name,
                        problem: format!("is in part {other}, too"),
                    });
                }
                tensor.part = number;
                whole
                    .by_name
                    .insert(tensor.name.clone(), whole.tensors.len());
                whole.tensors.push(tensor);
            }
            whole.bytes.extend(part.bytes);
            if whole.tensors.len() as u64 > MAX_TENSORS {
                return Err(GgufError::Limit {
                    origin: part.origin,
                    what: "tensor count of all parts".to_owned(),
                    found: whole.tensors.len() as u64,
                    limit: MAX_TENSORS,
                });
            }
        }
        if let Some(total) = total.filter(|total| *total != whole.tensors.len() as u64) {
            return Err(GgufError::Metadata {
                origin: whole.origin,
                key: TENSORS.to_owned(),
                problem: format!("is {total}, but the parts have {}", whole.tensors.len()),
            });
        }
        whole.metadata.retain(|key, _| !is_split_key(key));
        Ok(whole)
    }
}

fn is_split_key(key: &str) -> bool {
    [NUMBER, COUNT, TENSORS].contains(&key)
}

/// Checks that `part` says it is the part `number` (from 0) of `count`.
fn check_split(part: &Gguf, number: usize, count: usize) -> Result<(), GgufError> {
    for (key, expected) in [(NUMBER, number), (COUNT, count)] {
        let found = part.get_u64(key)?;
        if found != Some(expected as u64) {
            let found = found.map_or("is missing".to_owned(), |found| format!("is {found}"));
            return Err(GgufError::Metadata {
                origin: part.origin.clone(),
                key: key.to_owned(),
                problem: format!(
                    "{found}, but this is part {} of {count}, which has {expected} there",
                    number + 1
                ),
            });
        }
    }
    Ok(())
}

/// Checks that `part` does not contradict the metadata of the first part. Most programs write only the keys of the split into it.
fn check_same_file(first: &Gguf, part: &Gguf) -> Result<(), GgufError> {
    let shared: HashMap<&str, _> = first
        .metadata
        .iter()
        .filter(|(key, _)| key.as_str() != NUMBER)
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let differs = |(key, value): &(&String, &super::Value)| {
        shared.get(key.as_str()).is_some_and(|other| other != value)
    };
    match part.metadata.iter().find(differs) {
        None => Ok(()),
        Some((key, _)) => Err(GgufError::Metadata {
            origin: part.origin.clone(),
            key: key.clone(),
            problem: format!(
                "is not that of {}: these are not parts of one file",
                first.origin
            ),
        }),
    }
}
