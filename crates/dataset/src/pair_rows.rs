//! Reads files whose rows have their own rejected answers, as `read` reads rows. Does not know tokens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use crate::error::DatasetError;
use crate::field_report::FieldReport;
use crate::pair::{is_pair, parse_pair};
use crate::ranges::{RowRange, first_object, parse_range};
use crate::read::{CheckedFile, DatasetScan};
use crate::stop::NEVER;
use crate::{Columns, DataRow, Dataset, RowLocation};

/// A question with the answer to prefer and the one to reject.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferencePair {
    /// The question and the answer to prefer.
    pub chosen: DataRow,
    /// The same question, and the answer to reject.
    pub rejected: DataRow,
}

impl PreferencePair {
    /// Whether both answers are the same, so that neither can be preferred.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.rejected.output().trim() == self.chosen.output().trim()
    }
}

/// Whether the first row of the file at `path` has a `chosen` and a `rejected` answer, in these columns. A file that is not even JSON
/// does not; reading it as rows reports the error.
///
/// # Errors
/// The file cannot be read.
pub fn holds_pairs(path: &Path, columns: &Columns) -> Result<bool, DatasetError> {
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
pub fn scan_pairs(path: &Path, columns: &Columns) -> Result<PairScan, DatasetError> {
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
) -> Result<CheckedFile, DatasetError> {
    Dataset::check_with(path, most, stop, &mut |object, location, fields| {
        pair(object, &location, columns, fields).map(|pair| Some(pair.chosen))
    })
}

/// The pairs in `range` of the file at `path`, as [`crate::read_range`] reads rows.
///
/// # Errors
/// As [`crate::read_range`].
pub fn read_pair_range(
    path: &Path,
    range: RowRange,
    stop: &AtomicBool,
) -> Result<Vec<PreferencePair>, DatasetError> {
    let columns = Columns::default();
    parse_range(path, range, stop, &mut |object, location, fields| {
        pair(object, &location, &columns, fields).map(Some)
    })
}

/// The first `limit` chosen rows for which `keep` holds, as [`crate::read_first`] reads rows.
///
/// # Errors
/// As [`crate::read_range`].
pub fn read_first_chosen(
    path: &Path,
    limit: usize,
    stop: &AtomicBool,
    keep: impl Fn(&DataRow) -> bool,
) -> Result<Vec<DataRow>, DatasetError> {
    let (columns, range) = (Columns::default(), RowRange::first(limit));
    parse_range(path, range, stop, &mut |object, location, fields| {
        let chosen = pair(object, &location, &columns, fields)?.chosen;
        Ok(keep(&chosen).then_some(chosen))
    })
}

/// Calls `visit` with each pair of the file at `path`, whose lines were all checked before, one pair in memory at a time.
///
/// # Errors
/// As [`crate::read_range`], and those of `visit`.
pub fn each_pair<E: From<DatasetError>>(
    path: &Path,
    columns: &Columns,
    stop: &AtomicBool,
    visit: &mut dyn FnMut(PreferencePair) -> Result<(), E>,
) -> Result<(), E> {
    let all = RowRange::first(usize::MAX);
    parse_range(path, all, stop, &mut |object, location, fields| {
        visit(pair(object, &location, columns, fields)?)?;
        Ok::<_, E>(None::<PreferencePair>)
    })?;
    Ok(())
}

fn pair(
    object: &Map<String, Value>,
    location: &RowLocation,
    columns: &Columns,
    fields: &mut FieldReport,
) -> Result<PreferencePair, DatasetError> {
    let [chosen, rejected] = parse_pair(object, location, columns, fields)?;
    Ok(PreferencePair { chosen, rejected })
}
