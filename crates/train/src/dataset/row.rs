//! One line of a data file: recognises its shape and names the field that breaks it.

use serde_json::error::Category;
use serde_json::{Map, Value};

use super::conversation::turns;
use super::fields::{Fields, kind, shortened};
use super::{Columns, DataRow, RowContent, RowLocation};
use crate::error::TrainError;

/// The object of a line, whatever its columns are.
pub(crate) fn object(text: &str, location: &RowLocation) -> Result<Map<String, Value>, TrainError> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| TrainError::row(location, invalid_json(text, &error)))?;
    let Value::Object(object) = value else {
        let message = format!(
            "a row must be a JSON object, this is {}; write one object a line",
            kind(&value)
        );
        return Err(TrainError::row(location, message));
    };
    Ok(object)
}

pub(super) fn parse_row(
    text: &str,
    location: RowLocation,
    columns: &Columns,
) -> Result<DataRow, TrainError> {
    let object = object(text, &location)?;
    let fields = Fields {
        object: &object,
        columns,
        location: &location,
    };
    let content = content(&fields)?;
    let intent = fields.get("intent").and_then(Value::as_str);
    let intent = intent.map(str::to_owned);
    Ok(DataRow {
        location,
        content,
        intent,
    })
}

/// Describes why a line is not valid JSON, with advice.
fn invalid_json(text: &str, error: &serde_json::Error) -> String {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or_default();
    let advice = match error.classify() {
        Category::Eof if text.starts_with('[') => {
            "; a list over several lines is not read: write one object a line, without the list's brackets and commas"
        }
        Category::Eof => "; a row must be whole on its line",
        // The parser's own limit, which keeps hostile lines from using up the stack.
        _ if reason.starts_with("recursion limit") => {
            "; more than 127 levels of nesting are not read"
        }
        _ => "",
    };
    format!(
        "not valid JSON at column {}: {reason}{advice}",
        error.column()
    )
}

fn content(fields: &Fields<'_>) -> Result<RowContent, TrainError> {
    // Complete shapes first, so that a stray column named `text` or `prompt` does not hide the one that was meant.
    if fields.has("messages") {
        turns(fields, "messages").map(RowContent::Messages)
    } else if fields.has("conversations") {
        turns(fields, "conversations").map(RowContent::Messages)
    } else if fields.has("instruction") && fields.has("output")
        || fields.has("instruction") && !fields.has("completion") && !fields.has("text")
    {
        Ok(RowContent::Alpaca {
            instruction: fields.required("instruction")?,
            input: fields.optional("input")?,
            output: fields.required("output")?,
        })
    } else if fields.has("prompt") && fields.has("completion")
        || (fields.has("prompt") || fields.has("completion")) && !fields.has("text")
    {
        Ok(RowContent::Completion {
            prompt: fields.required("prompt")?,
            completion: fields.required("completion")?,
        })
    } else if fields.has("text") {
        fields.required("text").map(RowContent::Text)
    } else {
        Err(TrainError::row(fields.location, no_shape(fields)))
    }
}

fn no_shape(fields: &Fields<'_>) -> String {
    let quoted = |name: &str| format!("`{}`", shortened(name));
    let found: Vec<String> = fields
        .object
        .keys()
        .take(8)
        .map(|key| quoted(key))
        .collect();
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
        "; other names can be given as `columns`".to_owned()
    } else {
        format!(", with {}", renamed.join(", "))
    };
    format!(
        "none of the known shapes: found {found}; a row holds `instruction` and `output` (and `input`), or \
         `messages`, or `conversations`, or `prompt` and `completion`, or `text`{renamed}"
    )
}
