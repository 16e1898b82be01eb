//! Recognises by the beginning of a file, and by its name, how rows are written in it.

use std::ffi::OsStr;
use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::usual_names::is_turn;

/// What Excel has before the delimiter, in a line of its own before the header.
pub(super) const NAMES_DELIMITER: &[u8] = b"sep=";

/// How the rows of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// An object on each line.
    Lines,
    /// One list of objects.
    List,
    /// Records of cells with this delimiter, after a record of column names.
    Table(u8),
}

/// The layout of a file called `name` that begins with `start`.
pub(super) fn layout(start: &[u8], name: &str) -> Layout {
    let text = start.trim_ascii_start();
    match text.first() {
        // Each line is a conversation.
        Some(b'[') if begins_with_turns(text) => return Layout::Lines,
        Some(b'[') => return Layout::List,
        Some(b'{') => return Layout::Lines,
        _ => {}
    }
    match format_name(Path::new(name)).as_deref() {
        Some("tsv") => Layout::Table(b'\t'),
        Some("csv") => {
            let header = first_line(start);
            if let Some(delimiter) = named_delimiter(header) {
                return Layout::Table(delimiter);
            }
            let count = |delimiter: u8| header.iter().filter(|byte| **byte == delimiter).count();
            // Spreadsheets write semicolons where the comma separates decimals. Of equal counts the last one is taken.
            let delimiter = [b'|', b'\t', b';', b',']
                .into_iter()
                .max_by_key(|one| count(*one));
            Layout::Table(delimiter.unwrap_or(b','))
        }
        _ => Layout::Lines,
    }
}

/// The first line, without its end.
fn first_line(text: &[u8]) -> &[u8] {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or(text);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The delimiter that Excel reads in a line `sep=;` before the header.
fn named_delimiter(line: &[u8]) -> Option<u8> {
    let (name, rest) = line.split_at_checked(NAMES_DELIMITER.len())?;
    match rest {
        [delimiter] if name.eq_ignore_ascii_case(NAMES_DELIMITER) => {
            let may_be = *delimiter != b'"' && !delimiter.is_ascii_alphanumeric();
            may_be.then_some(*delimiter)
        }
        _ => None,
    }
}

/// Whether the first line of `text`, which begins with a bracket, is a whole list of turns.
fn begins_with_turns(text: &[u8]) -> bool {
    let line = first_line(text);
    match serde_json::from_slice::<Vec<Value>>(line) {
        Ok(list) => !list.is_empty() && list.iter().all(is_turn),
        Err(_) if line.len() < text.len() => false,
        // The line goes on after the bytes that are looked at.
        Err(_) => {
            let elements = serde_json::Deserializer::from_slice(&line[1..]).into_iter::<Value>();
            let first = elements.map_while(Result::ok).next();
            first.is_some_and(|first| is_turn(&first))
        }
    }
}

/// Whether `text` begins with an object that goes on after its first line, which ends between two of its parts.
pub(super) fn is_object_on_several_lines(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let line = first_line(text);
    let rest = text[line.len()..].trim_ascii_start();
    let goes_on = match (line.trim_ascii_end().last(), rest.first()) {
        (Some(b'['), Some(_)) => true,
        (Some(b'{' | b','), Some(next)) => *next == b'"',
        _ => false,
    };
    let error = || serde_json::from_slice::<IgnoredAny>(line).err();
    goes_on
        && line.first() == Some(&b'{')
        && error().is_some_and(|error| {
            // A text that is cut off may end with a bracket too.
            error.is_eof() && !error.to_string().starts_with("EOF while parsing a string")
        })
}

/// Whether the file at `path` has the name of a table.
#[must_use]
pub fn is_table(path: &Path) -> bool {
    matches!(format_name(path).as_deref(), Some("csv" | "tsv"))
}

/// The ending of a file's name in lower case, that of a compressed file without the ending of its compression.
pub(super) fn format_name(path: &Path) -> Option<String> {
    let ending = |path: &Path| {
        let ending = path.extension().and_then(OsStr::to_str);
        ending.map(str::to_ascii_lowercase)
    };
    match ending(path)?.as_str() {
        "gz" | "gzip" | "zst" | "zstd" => ending(Path::new(path.file_stem()?)),
        plain => Some(plain.to_owned()),
    }
}
