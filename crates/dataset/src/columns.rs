//! Maps the fields of a row to the columns of a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::DatasetError;

/// The fields that a column can be read as.
const FIELDS: [&str; 16] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "text",
    "intent",
    "system",
    "history",
    "tools",
    "label",
    "chosen",
    "rejected",
    "kto_tag",
];

/// The columns of a file that does not use the fields' own names: field to column, `instruction = "question"`.
///
/// A field that is not listed here is read from the column of its name, unless that column is mapped to another field.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Columns(BTreeMap<String, String>);

impl Columns {
    /// Reads `field` from `column` from now on.
    ///
    /// # Errors
    /// A field that rows do not have, a column without a name, or one that is read as another field already.
    pub fn set(&mut self, field: &str, column: &str) -> Result<(), DatasetError> {
        let refuse = DatasetError::Columns;
        if !FIELDS.contains(&field) {
            let known = FIELDS.join(", ");
            return Err(refuse(format!(
                "rows have no field `{field}`; the fields are {known}"
            )));
        }
        if column.is_empty() {
            return Err(refuse(format!("`{field}` needs the name of a column")));
        }
        let taken = self.0.iter().find(|(f, c)| *c == column && *f != field);
        if let Some((other, _)) = taken {
            return Err(refuse(format!(
                "column `{column}` cannot be both `{other}` and `{field}`"
            )));
        }
        self.0.insert(field.to_owned(), column.to_owned());
        Ok(())
    }

    /// Whether every field has its own name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The renamed fields with their columns.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(f, c)| (f.as_str(), c.as_str()))
    }

    /// Whether a column is read as some field.
    pub(crate) fn is_field(&self, column: &str) -> bool {
        FIELDS.contains(&column) || self.0.values().any(|other| other == column)
    }

    /// The column that `field` is read from; none where its own name is read as another field.
    pub(crate) fn column<'a>(&'a self, field: &'a str) -> Option<&'a str> {
        match self.0.get(field) {
            Some(column) => Some(column),
            None if self.0.values().any(|column| column == field) => None,
            None => Some(field),
        }
    }
}

impl TryFrom<BTreeMap<String, String>> for Columns {
    type Error = DatasetError;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, DatasetError> {
        let mut columns = Self::default();
        for (field, column) in &map {
            columns.set(field, column)?;
        }
        Ok(columns)
    }
}

impl From<Columns> for BTreeMap<String, String> {
    fn from(columns: Columns) -> Self {
        columns.0
    }
}
