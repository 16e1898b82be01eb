//! Reads files whose rows have their own rejected answers, as `dataset` reads rows. Does not know tokens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use super::pairs::PreferencePair;
use crate::dataset::{
    CheckedFile, Columns, DataRow, Dataset, DatasetScan, FieldReport, RowLocation, RowRange,
    first_object, is_pair, parse_pair, parse_range,
};
use crate::error::TrainError;
use crate::stop::NEVER;

/// Whether the first row of the file at `path` has a `chosen` and a `rejected` answer, in these columns. A file that is not even JSON
/// does not; reading it as rows reports the error.
///
/// # Errors
/// The file cannot be read.
pub fn holds_pairs(path: &Path, columns: &Columns) -> Result<bool, TrainError> {
    let first = first_object(path)?;
    Ok(first.is_some_and(|object| is_pair(&object, columns)))
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
pub fn scan_pairs(path: &Path, columns: &Columns) -> Result<PairScan, TrainError> {
    let mut rejected = BTreeMap::new();
    let chosen = Dataset::scan_with(path, &NEVER, &mut |object, location, fields| {
        let pair = pair(object, &location, columns, fields)?;
        rejected.insert(location, pair.rejected);
        Ok(Some(pair.chosen))
    })?;
    Ok(PairScan { chosen, rejected })
}

/// Checks every line of the file at `path`, whose rows have rejected answers, without keeping its rows in memory.
///
/// # Errors
/// As [`Dataset::check`].
pub fn check_pairs(
    path: &Path,
    columns: &Columns,
    most: u64,
    stop: &AtomicBool,
) -> Result<CheckedFile, TrainError> {
    Dataset::check_with(path, most, stop, &mut |object, location, fields| {
        pair(object, &location, columns, fields).map(|pair| Some(pair.chosen))
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
    let columns = Columns::default();
    parse_range(path, range, stop, &mut |object, location, fields| {
        pair(object, &location, &columns, fields).map(Some)
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
    let (columns, range) = (Columns::default(), RowRange::first(limit));
    parse_range(path, range, stop, &mut |object, location, fields| {
        let chosen = pair(object, &location, &columns, fields)?.chosen;
        Ok(keep(&chosen).then_some(chosen))
    })
}

/// Calls `visit` with each pair of the file at `path`, whose lines were all checked before, one pair in memory at a time.
///
/// # Errors
/// As [`crate::dataset::read_range`], and those of `visit`.
pub(crate) fn each_pair(
    path: &Path,
    columns: &Columns,
    stop: &AtomicBool,
    visit: &mut dyn FnMut(PreferencePair) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let all = RowRange::first(usize::MAX);
    parse_range(path, all, stop, &mut |object, location, fields| {
        visit(pair(object, &location, columns, fields)?)?;
        Ok(None::<PreferencePair>)
    })?;
    Ok(())
}

fn pair(
    object: &Map<String, Value>,
    location: &RowLocation,
    columns: &Columns,
    fields: &mut FieldReport,
) -> Result<PreferencePair, TrainError> {
    let [chosen, rejected] = parse_pair(object, location, columns, fields)?;
    Ok(PreferencePair { chosen, rejected })
}

#[cfg(test)]
mod tests {
    use super::super::pairs::PairCounts;
    use super::*;
    use crate::dataset::{MAX_BYTES, RowContent};

    fn scan(text: &str) -> Result<PairScan, TrainError> {
        let mut rejected = BTreeMap::new();
        let columns = Columns::default();
        let row = &mut |object: &_, location: RowLocation, fields: &mut _| {
            let pair = pair(object, &location, &columns, fields)?;
            rejected.insert(location, pair.rejected);
            Ok(Some(pair.chosen))
        };
        let chosen = Dataset::scan_reader(text.as_bytes(), "p.jsonl", row)?;
        Ok(PairScan { chosen, rejected })
    }

    fn one(line: &str) -> Result<PreferencePair, String> {
        let mut scan = scan(&format!("\n\n{line}")).map_err(|error| error.to_string())?;
        match scan.chosen.broken.pop() {
            Some(error) => Err(error.to_string()),
            None => Ok(PreferencePair {
                chosen: scan.chosen.data.rows.remove(0),
                rejected: scan.rejected.into_values().next().unwrap(),
            }),
        }
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
        let columns = Columns::default();
        let checked = check_pairs(file.path(), &columns, MAX_BYTES, &NEVER).unwrap();
        assert_eq!(checked.rows, 2);
        let (mut pairs, mut counts) = (Vec::new(), PairCounts::default());
        let visit = &mut |pair: PreferencePair| {
            if counts.add_row(Some(&pair)) {
                pairs.push(pair);
            }
            Ok(())
        };
        each_pair(file.path(), &columns, &NEVER, visit).unwrap();
        assert_eq!((pairs.len(), counts.same, counts.rows), (1, 1, 2));
        assert_eq!(pairs[0].rejected.output(), "b");
    }

    #[test]
    fn broken_pair_is_reported_by_line_and_field() {
        for (line, expected) in [
            ("7", "a row must be a JSON object, this is a number"),
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
                "field `rejected`: must be one assistant's answer to the prompt, this is 1 messages of the roles user",
            ),
            (
                r#"{"prompt":"q","chosen":"a","rejected":[{"role":"assistant"}]}"#,
                "field `rejected[0].content`: is missing",
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
            holds_pairs(&path, &Columns::default()).unwrap()
        };
        assert!(holds("\u{feff}\n \n{\"chosen\":1,\"rejected\":2}\n"));
        assert!(holds("{\"preferred_output\":1,\"non_preferred_output\":2}"));
        assert!(!holds(
            "{\"prompt\":\"chosen\",\"completion\":\"rejected\"}\n"
        ));
        assert!(!holds("") && !holds("{") && !holds("[1]\n{\"chosen\":1,\"rejected\":2}"));
        let error = holds_pairs(Path::new("/nowhere"), &Columns::default())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cannot read /nowhere"), "{error}");
    }
}
