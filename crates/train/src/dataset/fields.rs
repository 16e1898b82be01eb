//! The fields of one row: looked up by column, read as text, and named in errors.

use serde_json::{Map, Value};

use super::{Columns, RowLocation};
use crate::error::TrainError;

/// The error of an answer that is empty or white space.
pub(crate) const EMPTY_ANSWER: &str = "the answer is empty";

/// The fields of a row, looked up by column.
pub(super) struct Fields<'a> {
    pub(super) object: &'a Map<String, Value>,
    pub(super) columns: &'a Columns,
    pub(super) location: &'a RowLocation,
}

impl Fields<'_> {
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(self.columns.column(field)?)
    }

    pub(super) fn has(&self, field: &str) -> bool {
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

    pub(super) fn required(&self, field: &str) -> Result<String, TrainError> {
        let Some(value) = self.get(field) else {
            return Err(self.error(field, "is missing"));
        };
        let content = text(value, "a string").map_err(|message| self.error(field, message))?;
        if content.trim().is_empty() {
            let answer = matches!(field, "output" | "completion");
            return Err(self.error(field, if answer { EMPTY_ANSWER } else { "is empty" }));
        }
        Ok(content.to_owned())
    }

    pub(super) fn optional(&self, field: &str) -> Result<String, TrainError> {
        let content = match self.get(field) {
            None | Some(Value::Null) => return Ok(String::new()),
            Some(value) => text(value, "a string or null"),
        };
        let content = content.map_err(|message| self.error(field, message))?;
        Ok(if content.trim().is_empty() {
            String::new()
        } else {
            content.to_owned()
        })
    }
}

/// The text of `value`, which must be `wanted`. The error describes what it is instead.
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
