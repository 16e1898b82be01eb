//! Counts what became of a file's fields: honoured, the reason to leave a row out, or dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The most names in each list of a report; fields with other names are counted together.
pub const MAX_REPORTED_FIELDS: usize = 100;

/// The name under which fields are counted once a list is full.
const OTHERS: &str = "(others)";

/// What became of the fields of a file's rows, apart from the columns that hold questions and answers. Each number counts rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FieldReport {
    /// Marks and columns that change what is trained, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub honoured: BTreeMap<String, usize>,
    /// Rows that were left out, by the mark that says so. They do not count as rows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, usize>,
    /// Columns, and keys of messages (`messages.name`), that training does not use, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<String, usize>,
    /// How many files of a folder were read; 0 if a file was named.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub files: usize,
    /// Files of a folder that were not read, by the split that their names mean.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_splits: BTreeMap<String, usize>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl FieldReport {
    /// How many rows were left out.
    #[must_use]
    pub fn skipped_rows(&self) -> usize {
        self.skipped.values().sum()
    }

    /// Whether no field was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == FieldReport::default()
    }

    /// Adds the counts of another report.
    pub fn add(&mut self, other: &FieldReport) {
        for (own, other) in [
            (&mut self.honoured, &other.honoured),
            (&mut self.skipped, &other.skipped),
            (&mut self.dropped, &other.dropped),
            (&mut self.other_splits, &other.other_splits),
        ] {
            for (name, rows) in other {
                count(own, name, *rows);
            }
        }
        self.files += other.files;
    }

    /// Counts the files of a folder.
    pub(crate) fn add_files(&mut self, files: usize, other_splits: &BTreeMap<&'static str, usize>) {
        self.files += files;
        for (split, files) in other_splits {
            count(&mut self.other_splits, split, *files);
        }
    }

    /// A line for each list that is not empty, for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let listed = |fields: &BTreeMap<String, usize>| {
            let each = fields.iter().map(|(name, rows)| format!("{name} ({rows})"));
            each.collect::<Vec<_>>().join(", ")
        };
        let lists = [
            ("rows left out", &self.skipped),
            (
                "fields that change what is trained, with their rows",
                &self.honoured,
            ),
            (
                "fields that training does not use, with their rows",
                &self.dropped,
            ),
        ];
        let filled = lists.iter().filter(|(_, fields)| !fields.is_empty());
        let lines = filled.map(|(title, fields)| format!("{title}: {}", listed(fields)));
        let files = match self.files {
            0 => None,
            files if self.other_splits.is_empty() => Some(format!("files read: {files}")),
            files => Some(format!(
                "files read: {files}; files of other splits, which are not read: {}",
                listed(&self.other_splits)
            )),
        };
        files.into_iter().chain(lines).collect()
    }
}

fn count(fields: &mut BTreeMap<String, usize>, name: &str, rows: usize) {
    let is_full = fields.len() >= MAX_REPORTED_FIELDS && !fields.contains_key(name);
    let name = if is_full { OTHERS } else { name };
    match fields.get_mut(name) {
        Some(counted) => *counted += rows,
        None => {
            fields.insert(name.to_owned(), rows);
        }
    }
}

/// What became of the fields of one row. It is added to the file's report once the row is read.
#[derive(Debug, Default)]
pub(crate) struct RowFields {
    honoured: Vec<&'static str>,
    dropped: Vec<String>,
}

impl RowFields {
    pub(crate) fn honour(&mut self, name: &'static str) {
        if !self.honoured.contains(&name) {
            self.honoured.push(name);
        }
    }

    pub(crate) fn drop_field(&mut self, name: &str) {
        let name = shortened(name);
        if self.dropped.len() <= MAX_REPORTED_FIELDS && !self.dropped.contains(&name) {
            self.dropped.push(name);
        }
    }

    /// Adds the row to the report of its file.
    pub(crate) fn report(&self, report: &mut FieldReport) {
        for name in &self.honoured {
            count(&mut report.honoured, name, 1);
        }
        for name in &self.dropped {
            count(&mut report.dropped, name, 1);
        }
    }
}

impl FieldReport {
    /// Counts a row that is left out because of `mark`.
    pub(crate) fn skip(&mut self, mark: &str) {
        count(&mut self.skipped, mark, 1);
    }
}

/// A name from a file, for a message: not too long, and nothing in it that a terminal obeys.
pub(crate) fn shortened(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut short: String = text.chars().take(40).map(shown).collect();
    if text.chars().count() > 40 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_of_many_names_stays_small() {
        let mut report = FieldReport::default();
        for i in 0..1000 {
            let mut row = RowFields::default();
            row.drop_field(&format!("column {i:04}"));
            row.report(&mut report);
        }
        assert_eq!(report.dropped.len(), MAX_REPORTED_FIELDS + 1);
        assert_eq!(report.dropped[OTHERS], 1000 - MAX_REPORTED_FIELDS);
        let mut twice = report.clone();
        twice.add(&report);
        assert_eq!(twice.dropped.values().sum::<usize>(), 2000);
        assert_eq!(twice.dropped.len(), MAX_REPORTED_FIELDS + 1);
    }
}
