//! The fields of one row: looked up by column, read as text, and named in errors.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};

use serde_json::{Map, Value};

use crate::error::DatasetError;
use crate::field_report::{FieldReport, RowFields, shortened};
use crate::usual_names::{known_column, mapping, probable_column};
use crate::{Columns, RowLocation};

/// The error of an answer that is empty or white space.
pub const EMPTY_ANSWER: &str = "the answer is empty";

/// Most tools of a row, as in a request.
pub const MAX_ROW_TOOLS: usize = 128;

/// The most columns that an error suggests.
const MAX_SUGGESTED: usize = 8;

/// The fields of a row, looked up by column. A column that is null counts as absent.
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    pub(crate) columns: &'a Columns,
    pub(crate) location: &'a RowLocation,
    /// The columns that were read.
    read: RefCell<Vec<&'a str>>,
    row: RefCell<RowFields>,
    /// The row's tools, once they were needed.
    tools: OnceCell<Option<Cow<'a, Value>>>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(
        object: &'a Map<String, Value>,
        columns: &'a Columns,
        location: &'a RowLocation,
    ) -> Self {
        Self {
            object,
            columns,
            location,
            read: RefCell::default(),
            row: RefCell::default(),
            tools: OnceCell::new(),
        }
    }

    /// The value of `field`, which counts as used from now on.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        let (column, value) = self.find(field)?;
        self.read.borrow_mut().push(column);
        Some(value)
    }

    /// The value of `field`, which does not count as used.
    pub(crate) fn peek(&self, field: &str) -> Option<&'a Value> {
        self.find(field).map(|(_, value)| value)
    }

    /// The tools of the row, which do not count as used.
    pub(crate) fn tools(&self) -> &[Value] {
        let tools = self.tools.get_or_init(|| {
            let named = self.peek("tools").or_else(|| self.peek("functions"));
            match named.or_else(|| self.peek("input")?.get("tools"))? {
                Value::String(text) => serde_json::from_str(text).ok().map(Cow::Owned),
                value => Some(Cow::Borrowed(value)),
            }
        });
        let list = tools.as_deref().and_then(Value::as_array);
        let list = list.filter(|tools| tools.len() <= MAX_ROW_TOOLS);
        list.map_or(&[], Vec::as_slice)
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.find(field).is_some()
    }

    fn find(&self, field: &str) -> Option<(&'a str, &'a Value)> {
        let (column, value) = self.object.get_key_value(self.column(field)?)?;
        (!value.is_null()).then_some((column.as_str(), value))
    }

    /// The column that `field` is read from: that of its name, or one that is known to hold it.
    fn column<'f>(&'f self, field: &'f str) -> Option<&'f str> {
        let column = self.columns.column(field)?;
        if column != field || self.object.get(field).is_some_and(|value| !value.is_null()) {
            return Some(column);
        }
        // A column that is mapped has that meaning only.
        let known = known_column(self.object, field).filter(|name| !self.columns.is_field(name));
        known.or(Some(column))
    }

    /// Whether `field` is read from a column that is known to hold it.
    pub(crate) fn is_under_other_name(&self, field: &str) -> bool {
        self.column(field) != self.columns.column(field)
    }

    /// The value of a column, whatever field it is.
    pub(crate) fn value(&self, column: &str) -> Option<&'a Value> {
        self.object.get(column)
    }

    /// The names of the columns.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a String> + Clone {
        self.object.keys()
    }

    /// Counts a mark or a column that changes what is trained.
    pub(crate) fn honour(&self, name: &'static str) {
        self.row.borrow_mut().honour(name);
    }

    /// Counts a field that training does not use.
    pub(crate) fn drop_field(&self, name: &str) {
        self.row.borrow_mut().drop_field(name);
    }

    /// Counts the column of `field`, which was read but is not used.
    pub(crate) fn drop_column(&self, field: &str) {
        self.drop_field(self.column(field).unwrap_or(field));
    }

    /// Adds the fields of this row to the report of its file; columns that were not read are dropped.
    pub(crate) fn report(&self, report: &mut FieldReport) {
        let read = self.read.borrow();
        for (column, value) in self.object {
            let is_used = read.contains(&column.as_str());
            if !is_used && !is_nothing(value) {
                self.drop_field(column);
            }
        }
        self.row.borrow().report(report);
    }

    /// An error at `field`, by its column's name.
    pub(crate) fn error(&self, field: &str, message: impl Into<String>) -> DatasetError {
        self.error_in(field, "", message)
    }

    /// An error at `path` inside `field`.
    pub(crate) fn error_in(
        &self,
        field: &str,
        path: &str,
        message: impl Into<String>,
    ) -> DatasetError {
        let message = message.into();
        match self.column(field) {
            Some(column) if column != field => DatasetError::field(
                self.location,
                format!("{}{path}", shortened(column)),
                format!("(read as `{field}`) {message}"),
            ),
            _ => DatasetError::field(self.location, format!("{field}{path}"), message),
        }
    }

    pub(crate) fn required(&self, field: &str) -> Result<String, DatasetError> {
        let Some(value) = self.get(field) else {
            return Err(self.error(field, self.missing(field)));
        };
        let content = text(value, "a string").map_err(|message| self.error(field, message))?;
        if content.trim().is_empty() {
            let answer = matches!(field, "output" | "completion");
            return Err(self.error(field, if answer { EMPTY_ANSWER } else { "is empty" }));
        }
        Ok(content.to_owned())
    }

    /// The message about a missing field, with the column that it probably is in.
    fn missing(&self, field: &str) -> String {
        let texts = self.object.iter().filter(|(_, value)| value.is_string());
        // A label may be a class, which is the answer.
        let others = texts.map(|(name, _)| name);
        let others = others.filter(|name| !self.columns.is_field(name) || *name == "label");
        if let Some(column) = probable_column(others.clone(), field) {
            let mapping = mapping(field, column);
            return format!(
                "is missing; if it is in the column `{column}`, rename that to `{field}`, or map it in `columns`: {mapping}"
            );
        }
        let others: Vec<String> = others
            .map(|name| shortened(name))
            .take(MAX_SUGGESTED)
            .collect();
        match others.is_empty() {
            true => "is missing".to_owned(),
            false => format!(
                "is missing; the row has {}; rename the column that it is in to `{field}`, or map it in `columns`",
                others.join(", ")
            ),
        }
    }

    pub(crate) fn optional(&self, field: &str) -> Result<String, DatasetError> {
        let content = match self.get(field) {
            None => return Ok(String::new()),
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

/// Whether a value says nothing: null, or an empty text, list or object.
pub(crate) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The text of `value`, which must be `wanted`. The error describes what it is instead.
pub(crate) fn text<'v>(value: &'v Value, wanted: &str) -> Result<&'v str, String> {
    let Value::String(text) = value else {
        return Err(format!("must be {wanted}, this is {}", kind(value)));
    };
    match text.chars().position(|c| c == '\0') {
        Some(at) => Err(format!("has a NUL at character {}; remove it", at + 1)),
        None => Ok(text),
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
