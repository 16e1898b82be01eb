//! The object that a record of a data file spells.

use crate::data_file::{MAX_LINE, Record};
use serde_json::{Map, Value};

use crate::RowLocation;
use crate::conversation::MARKS;
use crate::error::DatasetError;
use crate::row::{LABELS, object};

/// Columns of tables whose cells may be lists in JSON.
const LISTS: [&str; 10] = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "history",
    "tools",
    "functions",
];

/// The object of a record.
pub(crate) fn record_object(
    record: &Record<'_>,
    location: &RowLocation,
) -> Result<Map<String, Value>, DatasetError> {
    match record {
        Record::Json(bytes) => object(text(bytes, location)?, location),
        Record::Cells(names, cells) => {
            let mut object = Map::with_capacity(names.len());
            for (name, cell) in names.iter().zip(cells) {
                object.insert(name.clone(), cell_value(name, text(cell, location)?));
            }
            Ok(object)
        }
        Record::TooLong => {
            let message =
                format!("the line is longer than {MAX_LINE} bytes; split the row or shorten it");
            Err(DatasetError::row(location, message))
        }
        Record::Broken(message) => Err(DatasetError::row(location, message.as_str())),
    }
}

/// Whether a record may have a mark by which a row is left out. It has none if this is false.
pub(crate) fn may_be_left_out(record: &Record<'_>) -> bool {
    match record {
        Record::Json(line) => std::str::from_utf8(line).is_ok_and(|text| {
            // Its name may be in a text that is JSON itself.
            let mut marks = LABELS.into_iter().chain(MARKS.iter().map(|mark| mark.name));
            text.contains("\\u") || marks.any(|mark| text.contains(mark))
        }),
        Record::Cells(..) => true,
        Record::TooLong | Record::Broken(_) => false,
    }
}

/// The value of a cell: null if it is empty, a list if it spells one and its column may have one, otherwise its text.
fn cell_value(name: &str, cell: &str) -> Value {
    if cell.trim().is_empty() {
        return Value::Null;
    }
    let list = || {
        let value: Value = serde_json::from_str(cell).ok()?;
        let list = value.as_array()?;
        let is_structured = |item: &Value| item.is_object() || item.is_array();
        (!list.is_empty() && list.iter().all(is_structured)).then_some(value)
    };
    let is_list = LISTS.contains(&name) && cell.trim_start().starts_with('[');
    is_list
        .then(list)
        .flatten()
        .unwrap_or_else(|| Value::String(cell.to_owned()))
}

/// The text of a record.
fn text<'b>(bytes: &'b [u8], location: &RowLocation) -> Result<&'b str, DatasetError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let message = format!(
            "not UTF-8 text at byte {} of the line; save the file as UTF-8",
            error.valid_up_to() + 1
        );
        DatasetError::row(location, message)
    })?;
    Ok(text.trim_end())
}
