//! One line of a data file: recognises its shape and names the field that breaks it.

use std::fmt;

use formats::chat_template::{Message, alpaca_prompt};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::context;
use crate::conversation::{Turns, conversation, turns};
use crate::error::DatasetError;
use crate::field_report::{FieldReport, shortened};
use crate::fields::{Fields, kind};
use crate::usual_names::{holds_turns, is_turn, mapping, probable_column};
use crate::{Columns, DataRow, RowContent, RowLocation};

/// The object of a line, whatever its columns are.
pub(crate) fn object(
    text: &str,
    location: &RowLocation,
) -> Result<Map<String, Value>, DatasetError> {
    let invalid = |error| DatasetError::row(location, invalid_json(text, &error));
    if !text.trim_start().starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            let message = invalid_json(text, &error);
            DatasetError::row(
                location,
                format!("{message}; a row is a JSON object, such as {{\"prompt\": \"...\", \"completion\": \"...\"}}"),
            )
        })?;
        let is_turns = |list: &Vec<Value>| !list.is_empty() && list.iter().all(is_turn);
        if value.as_array().is_some_and(is_turns) {
            return Ok(Map::from_iter([("messages".to_owned(), value)]));
        }
        let message = format!(
            "a row must be a JSON object, this is {}; write one object a line",
            kind(&value)
        );
        return Err(DatasetError::row(location, message));
    }
    let RowObject { fields, duplicate } = serde_json::from_str(text).map_err(invalid)?;
    match duplicate {
        None => Ok(fields),
        Some(name) => {
            let message = "is given twice; remove one of them";
            Err(DatasetError::field(location, shortened(&name), message))
        }
    }
}

/// The object of a row, and the first field that it has twice.
#[derive(Default)]
struct RowObject {
    fields: Map<String, Value>,
    duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for RowObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RowObjectVisitor)
    }
}

struct RowObjectVisitor;

impl<'de> Visitor<'de> for RowObjectVisitor {
    type Value = RowObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RowObject, A::Error> {
        let mut object = RowObject::default();
        while let Some(name) = entries.next_key::<String>()? {
            if object.duplicate.is_none() && object.fields.contains_key(&name) {
                object.duplicate = Some(name.clone());
            }
            object.fields.insert(name, entries.next_value()?);
        }
        Ok(object)
    }
}

/// Reads a row and adds its fields to the report; `None` if a mark leaves it out, which is counted there.
pub(crate) fn parse_row(
    object: &Map<String, Value>,
    location: RowLocation,
    columns: &Columns,
    report: &mut FieldReport,
) -> Result<Option<DataRow>, DatasetError> {
    let fields = Fields::new(object, columns, &location);
    if is_negative(&fields) {
        report.skip(NEGATIVE);
        return Ok(None);
    }
    let Some((content, marks)) = content(&fields)? else {
        report.skip(UNTRAINED);
        return Ok(None);
    };
    let tools = match content {
        RowContent::Text(_) => None,
        _ => context::tools(&fields),
    };
    let intent = intent(&fields);
    fields.report(report);
    Ok(Some(DataRow {
        location,
        content,
        intent,
        marks,
        tools,
    }))
}

/// How rows are counted whose answer is an example of a bad one.
const NEGATIVE: &str = "label: false";
/// How rows are counted whose marks leave no answer to train.
const UNTRAINED: &str = "weight: 0 on every answer";

/// The column `intent`, if it has a text.
pub(crate) fn intent(fields: &Fields<'_>) -> Option<String> {
    fields
        .get("intent")
        .and_then(Value::as_str)
        .map(str::to_owned)
}

/// The columns that say whether the answer of a row is good.
pub(crate) const LABELS: [&str; 2] = ["label", "kto_tag"];

/// Whether the row is marked as an example of a bad answer, as in data for KTO.
fn is_negative(fields: &Fields<'_>) -> bool {
    let mut negative = false;
    for name in LABELS {
        let good = match fields.peek(name) {
            Some(Value::Bool(good)) => Some(*good),
            // Tables have texts only.
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Some(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Some(false),
            // A class, which says nothing about the answer.
            _ => None,
        };
        if let Some(good) = good {
            let _ = fields.get(name);
            fields.honour(name);
            negative |= !good;
        }
    }
    negative
}

/// Describes why a line is not valid JSON, with advice.
fn invalid_json(text: &str, error: &serde_json::Error) -> String {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or_default();
    let advice = match error.classify() {
        Category::Eof if text.starts_with('[') => {
            "; a list over several lines is not read: write one object a line, without the list's brackets and commas"
        }
        Category::Eof => "; a row must be whole on its line, or all rows are one list in [ and ]",
        _ if text.trim_end().ends_with("},") && reason.starts_with("trailing characters") => {
            "; remove the comma behind the row, or write all rows as a list in [ and ]"
        }
        _ if text.starts_with("{'") => {
            "; JSON has double quotes: write the rows with json.dumps(row)"
        }
        // The parser's own limit, which keeps hostile lines from using up the stack.
        _ if reason.starts_with("recursion limit") => {
            "; more than 127 levels of nesting are not read"
        }
        _ => "",
    };
    if let Some(number) = python_number(text, error) {
        let field = field_of_error(text).unwrap_or_default();
        return format!(
            "not valid JSON at column {}: field `{field}` is {number}, which JSON does not have; write null, or leave the field out",
            error.column()
        );
    }
    let is_surrogate =
        reason.starts_with("lone leading surrogate") || reason == "unexpected end of hex escape";
    if is_surrogate && let Some(field) = field_of_error(text) {
        return format!(
            "not valid JSON at column {}: field `{field}` has half of a surrogate pair (an emoji that was cut, such as \\ud83d); write \
             whole characters",
            error.column()
        );
    }
    format!(
        "not valid JSON at column {}: {reason}{advice}",
        error.column()
    )
}

/// The number at which `text` is not valid JSON, if it is one that Python writes.
fn python_number(text: &str, error: &serde_json::Error) -> Option<&'static str> {
    let line = text.lines().nth(error.line().checked_sub(1)?)?.as_bytes();
    // The error may be at the number's first character, or at the one after it.
    let mut starts = error.column().saturating_sub(2)..=error.column();
    let at = |start: usize| {
        let rest = line.get(start..)?;
        let mut numbers = ["NaN", "-Infinity", "Infinity"].into_iter();
        numbers.find(|number| rest.starts_with(number.as_bytes()))
    };
    starts.find_map(at)
}

/// The path of the value at which `text` is not valid JSON, if it is in one.
fn field_of_error(text: &str) -> Option<String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let error = serde_path_to_error::deserialize::<_, Value>(&mut reader).err()?;
    let path = error.path().to_string();
    (path != ".").then(|| shortened(&path))
}

/// A row's content, and the marks of its answers.
type Marked = (RowContent, Vec<Option<bool>>);

/// The content of a row in any shape; `None` if marks leave no answer to train.
fn content(fields: &Fields<'_>) -> Result<Option<Marked>, DatasetError> {
    let plain = |content| Ok(Some((content, Vec::new())));
    // Complete shapes first, so that a stray column named `text` or `prompt` does not hide the one that was meant.
    if fields.has("messages") {
        conversation(fields, "messages").map(|turns| messages(turns, fields))
    } else if fields.has("conversations") {
        conversation(fields, "conversations").map(|turns| messages(turns, fields))
    } else if fields.has("instruction") && fields.has("output")
        || fields.has("instruction") && !fields.has("completion") && !fields.has("text")
    {
        let instruction = fields.required("instruction")?;
        let input = fields.optional("input")?;
        let output = fields.required("output")?;
        match before(fields) {
            Some(mut turns) => {
                turns.push("user", alpaca_prompt(&instruction, &input));
                turns.push("assistant", output);
                Ok(messages(turns, fields))
            }
            None => plain(RowContent::Alpaca {
                instruction,
                input,
                output,
            }),
        }
    } else if fields.has("prompt") && fields.has("completion")
        || (fields.has("prompt") || fields.has("completion")) && !fields.has("text")
    {
        completion(fields)
    } else if fields.has("text") {
        plain(RowContent::Text(fields.required("text")?))
    } else {
        Err(DatasetError::row(fields.location, no_shape(fields)))
    }
}

/// A prompt and its completion, each a text or a list of turns.
fn completion(fields: &Fields<'_>) -> Result<Option<Marked>, DatasetError> {
    let is_list = |field| matches!(fields.peek(field), Some(Value::Array(_)));
    let earlier = before(fields);
    if !is_list("prompt") && !is_list("completion") && earlier.is_none() {
        let content = RowContent::Completion {
            prompt: fields.required("prompt")?,
            completion: fields.required("completion")?,
        };
        return Ok(Some((content, Vec::new())));
    }
    let mut all = earlier.unwrap_or_default();
    if is_list("prompt") {
        let prompt = turns(fields, "prompt")?;
        let opens = prompt
            .messages
            .first()
            .is_some_and(|turn| turn.role == "system");
        if opens && !all.messages.is_empty() {
            let message = "begins with a system message, and the row has `system` or `history` too; give the system prompt once";
            return Err(fields.error("prompt", message));
        }
        all.append(prompt);
    } else {
        all.push("user", fields.required("prompt")?);
    }
    if is_list("completion") {
        // The prompt is context: only the completion is trained.
        all.marks.iter_mut().for_each(|mark| *mark = Some(false));
        all.append(conversation(fields, "completion")?);
    } else {
        all.push("assistant", fields.required("completion")?);
    }
    Ok(messages(all, fields))
}

/// The system prompt and the history of a row; `None` if it has neither.
fn before(fields: &Fields<'_>) -> Option<Turns> {
    let system = context::system(fields);
    let history = context::history(fields);
    if system.is_none() && history.messages.is_empty() {
        return None;
    }
    let opens = history
        .messages
        .first()
        .is_some_and(|turn| turn.role == "system");
    let mut turns = Turns::default();
    match system {
        Some(_) if opens => fields.drop_column("system"),
        Some(system) => turns.push("system", system),
        None => {}
    }
    turns.append(history);
    Some(turns)
}

/// A conversation up to its last answer that is trained, after the row's system prompt; `None` if no answer is trained.
fn messages(mut turns: Turns, fields: &Fields<'_>) -> Option<Marked> {
    let opens = turns
        .messages
        .first()
        .is_some_and(|turn| turn.role == "system");
    if !opens && let Some(system) = context::system(fields) {
        turns.messages.insert(0, Message::new("system", system));
    }
    if !turns.end_at_trained_answer() {
        return None;
    }
    let is_marked = turns.marks.iter().any(Option::is_some);
    let marks = if is_marked { turns.marks } else { Vec::new() };
    Some((RowContent::Messages(turns.messages), marks))
}

/// The most mappings of columns that an error suggests.
const MAX_MAPPINGS: usize = 8;

/// What to do about a row of no known shape.
fn advice(fields: &Fields<'_>) -> String {
    let mappings = mappings(fields);
    if !mappings.is_empty() {
        return format!(
            "rename columns, or map them in `columns`: {}",
            mappings.join(" ")
        );
    }
    let holds_rows = |name: &&String| {
        let list = fields.value(name).and_then(Value::as_array);
        list.is_some_and(|list| list.iter().all(Value::is_object) && !list.is_empty())
    };
    match fields.names().find(holds_rows) {
        Some(name) => format!(
            "if `{}` is the list of rows, write that list alone",
            shortened(name)
        ),
        None => "rename columns, or map them in `columns`, such as instruction=question".to_owned(),
    }
}

/// The columns that are probably fields, as they are mapped.
fn mappings(fields: &Fields<'_>) -> Vec<String> {
    let mut found: Vec<(String, &String)> = Vec::new();
    for name in fields.names() {
        let field = name.to_ascii_lowercase();
        if field != *name && fields.columns.is_field(&field) {
            found.push((field, name));
        } else if fields.value(name).is_some_and(holds_turns) {
            found.push(("conversations".to_owned(), name));
        }
    }
    let has = |found: &[(String, &String)], names: [&str; 2]| {
        let is_found = |name: &&str| found.iter().any(|(field, _)| field == name);
        names.iter().any(|name| fields.has(name)) || names.iter().any(is_found)
    };
    if found.iter().all(|(field, _)| field != "conversations") {
        for names in [["instruction", "prompt"], ["output", "completion"]] {
            let texts = fields
                .names()
                .filter(|name| fields.value(name).is_some_and(Value::is_string));
            let others = texts.filter(|name| !found.iter().any(|(_, column)| column == name));
            let probable = probable_column(others, names[0]);
            if !has(&found, names)
                && let Some(column) = probable
            {
                found.push((names[0].to_owned(), column));
            }
        }
    }
    let each = found.iter().take(MAX_MAPPINGS);
    each.map(|(field, column)| mapping(field, column)).collect()
}

fn no_shape(fields: &Fields<'_>) -> String {
    let quoted = |name: &str| format!("`{}`", shortened(name));
    let found: Vec<String> = fields.names().take(8).map(|key| quoted(key)).collect();
    let found = if found.is_empty() {
        "no fields".to_owned()
    } else {
        found.join(", ")
    };
    let renamed: Vec<String> = fields
        .columns
        .iter()
        .map(|(field, column)| format!("{} read as `{field}`", quoted(column)))
        .collect();
    let renamed = if renamed.is_empty() {
        format!("; {}", advice(fields))
    } else {
        format!(", with {}", renamed.join(", "))
    };
    format!(
        "none of the known shapes: found {found}; a row holds `instruction` and `output` (and `input`), or \
         `messages`, or `conversations`, or `prompt` and `completion`, or `text`{renamed}"
    )
}
