//! Reads files whose rows have their own rejected answers.
//!
//! A row is `{"prompt", "chosen", "rejected"}`, each a text or a list of messages, as in TRL's preference datasets. If there
//! is no `prompt`, it is the messages that `chosen` and `rejected` both begin with. Does not know tokens.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use formats::chat_template::Message;
use serde_json::{Map, Value};

use super::pairs::PreferencePair;
use crate::dataset::{
    CheckedFile, DataRow, Dataset, DatasetScan, MAX_LINE, RowContent, RowLocation, RowRange,
    object, parse_range,
};
use crate::error::TrainError;
use crate::stop::NEVER;

/// Names of the prompt, the chosen and the rejected answer: in most data sets, and in OpenAI's, whose prompt is `input.messages`.
const NAMES: [[&str; 3]; 2] = [
    ["prompt", "chosen", "rejected"],
    ["input.messages", "preferred_output", "non_preferred_output"],
];

/// Whether the first row of the file at `path` has a `chosen` and a `rejected` answer. A file that is not even JSON
/// does not; reading it as rows reports the error.
///
/// # Errors
/// The file cannot be read.
pub fn holds_pairs(path: &Path) -> Result<bool, TrainError> {
    let file = File::open(path).map_err(TrainError::read(path))?;
    let mut reader = BufReader::new(file).take(MAX_LINE as u64 + 1);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader
            .read_until(b'\n', &mut line)
            .map_err(TrainError::read(path))?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_start_matches('\u{feff}').trim();
        if length > 0 && text.is_empty() {
            continue;
        }
        let row: Option<Map<String, Value>> = serde_json::from_str(text).ok();
        let pair = |row: &Map<String, Value>| {
            let mut each = NAMES.iter();
            each.any(|[_, chosen, rejected]| {
                row.contains_key(*chosen) && row.contains_key(*rejected)
            })
        };
        return Ok(row.as_ref().is_some_and(pair));
    }
}

/// A file of rows with rejected answers, and all its errors.
#[derive(Debug)]
pub struct PairScan {
    /// The rows with their chosen answers.
    pub chosen: DatasetScan,
    /// The same rows with their rejected answers, by location.
    pub rejected: BTreeMap<RowLocation, DataRow>,
}

/// Reads the file at `path`, whose rows have rejected answers (see [`holds_pairs`]), to its end, broken lines included.
///
/// # Errors
/// As [`Dataset::scan`].
pub fn scan_pairs(path: &Path) -> Result<PairScan, TrainError> {
    let file = File::open(path).map_err(TrainError::read(path))?;
    scan_pairs_from(BufReader::new(file), &path.display().to_string(), &NEVER)
}

/// Checks every line of the file at `path`, whose rows have rejected answers, without keeping its rows in memory.
///
/// # Errors
/// As [`Dataset::check`].
pub fn check_pairs(path: &Path, stop: &AtomicBool) -> Result<CheckedFile, TrainError> {
    Dataset::check_with(path, stop, &mut |text, location| {
        parse_pair(text, location).map(|pair| pair.chosen)
    })
}

/// The pairs in `range` of the file at `path`, as [`crate::dataset::read_range`] reads rows.
///
/// # Errors
/// As [`crate::dataset::read_range`].
pub fn read_pair_range(
    path: &Path,
    range: RowRange,
    stop: &AtomicBool,
) -> Result<Vec<PreferencePair>, TrainError> {
    parse_range(path, range, stop, &mut |text, location| {
        parse_pair(text, location).map(Some)
    })
}

/// The first `limit` chosen rows for which `keep` holds, as [`crate::dataset::read_first`] reads rows.
///
/// # Errors
/// As [`crate::dataset::read_range`].
pub fn read_first_chosen(
    path: &Path,
    limit: usize,
    stop: &AtomicBool,
    keep: impl Fn(&DataRow) -> bool,
) -> Result<Vec<DataRow>, TrainError> {
    parse_range(path, RowRange::first(limit), stop, &mut |text, location| {
        let chosen = parse_pair(text, location)?.chosen;
        Ok(keep(&chosen).then_some(chosen))
    })
}

fn scan_pairs_from(
    reader: impl BufRead,
    name: &str,
    stop: &AtomicBool,
) -> Result<PairScan, TrainError> {
    let mut rejected = BTreeMap::new();
    let chosen = Dataset::scan_with(reader, name, stop, &mut |text, location| {
        let pair = parse_pair(text, location)?;
        rejected.insert(pair.rejected.location.clone(), pair.rejected);
        Ok(pair.chosen)
    })?;
    Ok(PairScan { chosen, rejected })
}

/// Calls `visit` with each pair of the file at `path`, whose lines were all checked before, one pair in memory at a time.
///
/// # Errors
/// As [`crate::dataset::read_range`], and those of `visit`.
pub(crate) fn each_pair(
    path: &Path,
    stop: &AtomicBool,
    visit: &mut dyn FnMut(PreferencePair) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    parse_range(
        path,
        RowRange::first(usize::MAX),
        stop,
        &mut |text, location| {
            visit(parse_pair(text, location)?)?;
            Ok(None::<PreferencePair>)
        },
    )?;
    Ok(())
}

fn parse_pair(text: &str, location: RowLocation) -> Result<PreferencePair, TrainError> {
    let object = object(text, &location)?;
    let [plain, openai] = NAMES;
    let [prompt_name, chosen_name, rejected_name] = match object.contains_key(openai[1]) {
        true => openai,
        false => plain,
    };
    let prompt = match prompt_name.split_once('.') {
        Some((outer, inner)) => object.get(outer).and_then(|input| input.get(inner)),
        None => object.get(prompt_name),
    };
    let prompt = match prompt {
        None | Some(Value::Null) => Vec::new(),
        Some(value) => messages(value, prompt_name, "user", &location)?,
    };
    let [chosen, rejected] = [chosen_name, rejected_name].map(|field| {
        let value = object.get(field).ok_or_else(|| {
            TrainError::field(
                &location,
                field,
                "is missing; a preference row has both `chosen` and `rejected`",
            )
        })?;
        messages(value, field, "assistant", &location)
    });
    let (chosen, rejected) = (chosen?, rejected?);
    // Without a prompt, it is the common beginning of both conversations.
    let alike = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b);
    let common = alike.count().min(chosen.len() - 1).min(rejected.len() - 1);
    let (common, prompt) = if prompt.is_empty() {
        (common, chosen[..common].to_vec())
    } else {
        (0, prompt)
    };
    match prompt.last() {
        None => {
            let message = format!(
                "is missing, and `{chosen_name}` and `{rejected_name}` do not begin with the same messages"
            );
            return Err(TrainError::field(&location, prompt_name, message));
        }
        Some(last) if last.role == "assistant" => {
            let message = "must end with the user's turn, which both answers are about";
            return Err(TrainError::field(&location, prompt_name, message));
        }
        Some(_) => {}
    }
    Ok(PreferencePair {
        chosen: answered_row(&prompt, &chosen[common..], chosen_name, &location)?,
        rejected: answered_row(&prompt, &rejected[common..], rejected_name, &location)?,
    })
}

/// The conversation of `prompt` and `answer`, which must be one message of the assistant. `field` is the answer's name in errors.
fn answered_row(
    prompt: &[Message],
    answer: &[Message],
    field: &str,
    location: &RowLocation,
) -> Result<DataRow, TrainError> {
    match answer {
        [answer] if answer.role == "assistant" => {
            let mut turns = prompt.to_vec();
            turns.push(answer.clone());
            Ok(DataRow {
                location: location.clone(),
                content: RowContent::Messages(turns),
                intent: None,
            })
        }
        _ => {
            let roles: Vec<&str> = answer.iter().map(|m| m.role.as_str()).collect();
            let message = format!(
                "must be one assistant's answer to the prompt, this is {} messages of the roles {}",
                answer.len(),
                roles.join(", ")
            );
            Err(TrainError::field(location, field, message))
        }
    }
}

/// A text as one message of `role`, or a list of messages.
fn messages(
    value: &Value,
    field: &str,
    role: &str,
    location: &RowLocation,
) -> Result<Vec<Message>, TrainError> {
    let wrong = |at: String, message: &str| Err(TrainError::field(location, at, message));
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let list = match value {
        Value::String(text) if text.trim().is_empty() => {
            return wrong(field.to_owned(), "is empty");
        }
        Value::String(text) => return Ok(vec![message(role, text)]),
        Value::Array(list) if !list.is_empty() => list,
        Value::Array(_) => return wrong(field.to_owned(), "the list is empty"),
        _ => {
            return wrong(
                field.to_owned(),
                "must be a string, or a list of objects with `role` and `content`",
            );
        }
    };
    let mut turns = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let part = |name: &str| item.get(name).and_then(Value::as_str);
        let (Some(role), Some(content)) = (part("role"), part("content")) else {
            return wrong(
                format!("{field}[{i}]"),
                "must be an object with the texts `role` and `content`",
            );
        };
        let known = match role {
            "system" => i == 0,
            "user" | "assistant" => true,
            _ => false,
        };
        if !known {
            return wrong(
                format!("{field}[{i}].role"),
                "must be user or assistant, or system at the beginning",
            );
        }
        if role == "assistant" && content.trim().is_empty() {
            return wrong(format!("{field}[{i}].content"), "the answer is empty");
        }
        turns.push(message(role, content));
    }
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::super::pairs::PairCounts;
    use super::*;

    fn one(line: &str) -> Result<PreferencePair, String> {
        let location = RowLocation {
            file: "p.jsonl".into(),
            line: 3,
        };
        parse_pair(line, location).map_err(|error| error.to_string())
    }

    #[test]
    fn every_shape_of_preference_row_is_read() {
        let turns = |row: &DataRow| match &row.content {
            RowContent::Messages(messages) => messages
                .iter()
                .map(|m| format!("{}: {}", m.role, m.content))
                .collect::<Vec<_>>(),
            _ => panic!("not messages"),
        };
        for line in [
            r#"{"prompt":"q","chosen":"a","rejected":"b","score":3}"#,
            r#"{"prompt":[{"role":"user","content":"q"}],"chosen":[{"role":"assistant","content":"a"}],"rejected":"b"}"#,
            r#"{"input":{"messages":[{"role":"user","content":"q"}],"tools":[]},"preferred_output":[{"role":"assistant","content":"a"}],"non_preferred_output":[{"role":"assistant","content":"b"}]}"#,
            r#"{"chosen":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#,
        ] {
            let pair = one(line).unwrap();
            assert_eq!(turns(&pair.chosen), ["user: q", "assistant: a"]);
            assert_eq!(turns(&pair.rejected), ["user: q", "assistant: b"]);
        }
        let system = r#"{"prompt":[{"role":"system","content":"s"},{"role":"user","content":"q"}],"chosen":"a","rejected":"b"}"#;
        assert_eq!(turns(&one(system).unwrap().chosen)[0], "system: s");

        let text = "\n{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}\n{\"prompt\":\"r\",\"chosen\":\"c\",\"rejected\":\"c \"}";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(check_pairs(file.path(), &NEVER).unwrap().rows, 2);
        let (mut pairs, mut counts) = (Vec::new(), PairCounts::default());
        let visit = &mut |pair: PreferencePair| {
            if counts.add_row(Some(&pair)) {
                pairs.push(pair);
            }
            Ok(())
        };
        each_pair(file.path(), &NEVER, visit).unwrap();
        assert_eq!((pairs.len(), counts.same, counts.rows), (1, 1, 2));
        assert_eq!(pairs[0].rejected.output(), "b");
    }

    #[test]
    fn broken_pair_is_reported_by_line_and_field() {
        for (line, expected) in [
            ("[]", "a row must be a JSON object, this is a list"),
            (
                r#"{"prompt":"q","chosen":"a"}"#,
                "field `rejected`: is missing",
            ),
            (
                r#"{"prompt":"q","rejected":"a"}"#,
                "field `chosen`: is missing",
            ),
            (
                r#"{"prompt":7,"chosen":"a","rejected":"b"}"#,
                "field `prompt`: must be a string, or a list",
            ),
            (
                r#"{"prompt":"q","chosen":" ","rejected":"b"}"#,
                "field `chosen`: is empty",
            ),
            (
                r#"{"prompt":"q","chosen":[],"rejected":"b"}"#,
                "field `chosen`: the list is empty",
            ),
            (
                r#"{"chosen":"a","rejected":"b"}"#,
                "field `prompt`: is missing, and",
            ),
            (
                r#"{"prompt":[{"role":"assistant","content":"x"}],"chosen":"a","rejected":"b"}"#,
                "field `prompt`: must end with the user's turn",
            ),
            (
                r#"{"prompt":"q","chosen":[{"role":"user","content":"x"}],"rejected":"b"}"#,
                "field `chosen`: must be one assistant's answer to the prompt, this is 1 messages of the roles user",
            ),
            (
                r#"{"prompt":"q","chosen":"a","rejected":[{"role":"tool","content":"x"}]}"#,
                "field `rejected[0].role`: must be user or assistant",
            ),
            (
                r#"{"prompt":"q","chosen":"a","rejected":[{"role":"assistant"}]}"#,
                "field `rejected[0]`: must be an object with the texts",
            ),
            (
                r#"{"prompt":"q","chosen":"a","rejected":[{"role":"assistant","content":""}]}"#,
                "field `rejected[0].content`: the answer is empty",
            ),
            (
                r#"{"input":{},"preferred_output":"a","non_preferred_output":"b"}"#,
                "field `input.messages`: is missing, and `preferred_output` and",
            ),
            ("{\"prompt\":", "not valid JSON at column 10"),
        ] {
            let error = one(line).unwrap_err();
            assert!(error.starts_with("p.jsonl:3: "), "{error}");
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
    }

    #[test]
    fn first_row_decides_whether_a_file_has_pairs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let holds = |text: &str| {
            std::fs::write(&path, text).unwrap();
            holds_pairs(&path).unwrap()
        };
        assert!(holds("\u{feff}\n \n{\"chosen\":1,\"rejected\":2}\n"));
        assert!(holds("{\"preferred_output\":1,\"non_preferred_output\":2}"));
        assert!(!holds(
            "{\"prompt\":\"chosen\",\"completion\":\"rejected\"}\n"
        ));
        assert!(!holds("") && !holds("{") && !holds("[1]\n{\"chosen\":1,\"rejected\":2}"));
        let error = holds_pairs(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /nowhere"), "{error}");
    }
}
