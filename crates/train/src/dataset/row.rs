//! One line of a data file: recognises its shape and names the field that breaks it.

use serde_json::error::Category;
use serde_json::{Map, Value};

use super::turns::turns;
use super::{Columns, DataRow, RowContent, RowLocation};
use crate::error::TrainError;

/// What is said of an answer without a word.
pub(crate) const EMPTY_ANSWER: &str = "the answer is empty";

/// The object of a line, whatever its columns are.
pub(crate) fn object(text: &str, location: &RowLocation) -> Result<Map<String, Value>, TrainError> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| TrainError::row(location, no_json(text, &error)))?;
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
    let content = fields.content()?;
    let intent = fields.get("intent").and_then(Value::as_str);
    let intent = intent.map(str::to_owned);
    Ok(DataRow {
        location,
        content,
        intent,
    })
}

/// What is wrong with a line that is no JSON, and what may be the reason.
fn no_json(text: &str, error: &serde_json::Error) -> String {
    let said = error.to_string();
    let said = said.split(" at line ").next().unwrap_or_default();
    let advice = match error.classify() {
        Category::Eof if text.starts_with('[') => {
            "; a list over several lines is not read: write one object a line, without the list's brackets and commas"
        }
        Category::Eof => "; a row must be whole on its line",
        // The parser's own limit, which keeps hostile lines from using up the stack.
        _ if said.starts_with("recursion limit") => {
            "; more than 127 levels of nesting are not read"
        }
        _ => "",
    };
    format!(
        "not valid JSON at column {}: {said}{advice}",
        error.column()
    )
}

/// A row's columns, by the fields that they stand for.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    columns: &'a Columns,
    location: &'a RowLocation,
}

impl Fields<'_> {
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(self.columns.column(field)?)
    }

    fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    /// An error at `field`, by its column's name.
    pub(super) fn error(&self, field: &str, message: impl Into<String>) -> TrainError {
        self.error_in(field, "", message)
    }

    /// An error at `path` inside `field`.
    pub(super) fn error_in(
        &self,
        field: &str,
        path: &str,
        message: impl Into<String>,
    ) -> TrainError {
        let message = message.into();
        match self.columns.column(field) {
            Some(column) if column != field => TrainError::field(
                self.location,
                format!("{}{path}", shortened(column)),
                format!("(read as `{field}`) {message}"),
            ),
            _ => TrainError::field(self.location, format!("{field}{path}"), message),
        }
    }

    fn content(&self) -> Result<RowContent, TrainError> {
        // Complete shapes first, so that a stray column named `text` or `prompt` does not hide the one that was meant.
        if self.has("messages") {
            turns(self, "messages").map(RowContent::Messages)
        } else if self.has("conversations") {
            turns(self, "conversations").map(RowContent::Messages)
        } else if self.has("instruction") && self.has("output")
            || self.has("instruction") && !self.has("completion") && !self.has("text")
        {
            Ok(RowContent::Alpaca {
                instruction: self.required("instruction")?,
                input: self.optional("input")?,
                output: self.required("output")?,
            })
        } else if self.has("prompt") && self.has("completion")
            || (self.has("prompt") || self.has("completion")) && !self.has("text")
        {
            Ok(RowContent::Completion {
                prompt: self.required("prompt")?,
                completion: self.required("completion")?,
            })
        } else if self.has("text") {
            self.required("text").map(RowContent::Text)
        } else {
            Err(TrainError::row(self.location, self.no_shape()))
        }
    }

    fn no_shape(&self) -> String {
        let quoted = |name: &str| format!("`{}`", shortened(name));
        let found: Vec<String> = self.object.keys().take(8).map(|key| quoted(key)).collect();
        let found = if found.is_empty() {
            "no fields".to_owned()
        } else {
            found.join(", ")
        };
        let renamed: Vec<String> = self
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

    fn required(&self, field: &str) -> Result<String, TrainError> {
        let Some(value) = self.get(field) else {
            return Err(self.error(field, "is missing"));
        };
        let said = text(value, "a string").map_err(|message| self.error(field, message))?;
        if said.trim().is_empty() {
            let answer = matches!(field, "output" | "completion");
            return Err(self.error(field, if answer { EMPTY_ANSWER } else { "is empty" }));
        }
        Ok(said.to_owned())
    }

    fn optional(&self, field: &str) -> Result<String, TrainError> {
        let said = match self.get(field) {
            None | Some(Value::Null) => return Ok(String::new()),
            Some(value) => text(value, "a string or null"),
        };
        let said = said.map_err(|message| self.error(field, message))?;
        Ok(if said.trim().is_empty() {
            String::new()
        } else {
            said.to_owned()
        })
    }
}

/// The text of `value`, which must be `wanted`; an error is what is wrong with it.
pub(super) fn text<'v>(value: &'v Value, wanted: &str) -> Result<&'v str, String> {
    let Value::String(text) = value else {
        return Err(format!("must be {wanted}, this is {}", kind(value)));
    };
    match text.chars().position(|c| c == '\0') {
        Some(at) => Err(format!("has a NUL at character {}; remove it", at + 1)),
        None => Ok(text),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A name from a file, for a message: not too long, and nothing in it that a terminal obeys.
pub(super) fn shortened(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut short: String = text.chars().take(40).map(shown).collect();
    if text.chars().count() > 40 {
        short.push('…');
    }
    short
}
