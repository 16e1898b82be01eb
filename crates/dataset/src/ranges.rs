//! Reads some rows of files that were checked before, without the work of reading the others, or each row without keeping it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use crate::data_file::{DataFile, Record, Records, data_files};
use crate::error::DatasetError;
use crate::field_report::FieldReport;
use crate::read::MAX_BYTES;
use crate::record::{may_be_left_out, record_object};
use crate::record_reader::{Read, ReadRow, RecordReader};
use crate::row::parse_row;
use crate::stop::NEVER;
use crate::{Columns, DataRow};

/// Some rows of a file, without the work of reading the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRange {
    /// The index of the first, from 0.
    pub first: usize,
    /// The most rows.
    pub limit: usize,
    /// The most bytes of their lines; the first row is read however long it is.
    pub max_bytes: usize,
}

/// The rows in `range` of the file at `path`, whose lines were all checked before. Lines before the range are skipped without being
/// parsed, unless a mark may leave them out; lines after it are not read.
///
/// # Errors
/// The file cannot be read, a line in the range is broken, or [`DatasetError::Stopped`].
pub fn read_range(
    path: &Path,
    columns: &Columns,
    range: RowRange,
    stop: &AtomicBool,
) -> Result<Vec<DataRow>, DatasetError> {
    parse_range(path, range, stop, &mut |object, location, fields| {
        parse_row(object, location, columns, fields)
    })
}

/// The first `limit` rows for which `keep` holds of the file at `path`, whose lines were all checked before. Lines after them are not read.
///
/// # Errors
/// As [`read_range`].
pub fn read_first(
    path: &Path,
    columns: &Columns,
    limit: usize,
    stop: &AtomicBool,
    keep: impl Fn(&DataRow) -> bool,
) -> Result<Vec<DataRow>, DatasetError> {
    let range = RowRange::first(limit);
    parse_range(path, range, stop, &mut |object, location, fields| {
        let row = parse_row(object, location, columns, fields)?;
        Ok(row.filter(&keep))
    })
}

/// Calls `visit` with each row of the file at `path`, whose lines were all checked before, one row in memory at a time.
///
/// # Errors
/// As [`read_range`], and those of `visit`.
pub fn each_row<E: From<DatasetError>>(
    path: &Path,
    columns: &Columns,
    stop: &AtomicBool,
    visit: &mut dyn FnMut(DataRow) -> Result<(), E>,
) -> Result<(), E> {
    let all = RowRange::first(usize::MAX);
    parse_range(path, all, stop, &mut |object, location, fields| {
        if let Some(row) = parse_row(object, location, columns, fields)? {
            visit(row)?;
        }
        Ok::<_, E>(None::<DataRow>)
    })?;
    Ok(())
}

impl RowRange {
    /// The first `limit` rows, however long they are.
    pub(crate) fn first(limit: usize) -> RowRange {
        RowRange {
            first: 0,
            limit,
            max_bytes: usize::MAX,
        }
    }
}

/// The object of the first record of the file at `path`, or of the first file of a folder that has one; `None` if it is broken.
pub(crate) fn first_object(path: &Path) -> Result<Option<Map<String, Value>>, DatasetError> {
    let mut reader = RecordReader::new(&NEVER);
    let mut first = None;
    for path in data_files(path)?.files {
        let DataFile { content, layout } = DataFile::open(&path, MAX_BYTES)?;
        let mut records = Records::new(content.without_hash(), layout);
        let name = path.display().to_string();
        let more = reader.each::<DatasetError>(&mut records, &name, &mut |record, location| {
            first = record_object(record, &location).ok();
            Ok(Read::Enough)
        })?;
        if !more {
            break;
        }
    }
    Ok(first)
}

/// As [`read_range`], for rows of another shape: `row` reads one record. A row for which it returns `None` does not count.
pub(crate) fn parse_range<T, E: From<DatasetError>>(
    path: &Path,
    range: RowRange,
    stop: &AtomicBool,
    row: &mut ReadRow<'_, T, E>,
) -> Result<Vec<T>, E> {
    let mut reader = RecordReader::new(stop);
    let mut rows = Vec::new();
    let mut fields = FieldReport::default();
    let (mut seen, mut bytes, mut left) = (0, 0, MAX_BYTES);
    for path in data_files(path).map_err(DatasetError::from)?.files {
        let DataFile { content, layout } =
            DataFile::open(&path, left).map_err(DatasetError::from)?;
        let mut records = Records::new(content.without_hash(), layout);
        let name = path.display().to_string();
        let more = reader.each::<E>(&mut records, &name, &mut |record, location| {
            let mut parse = |record: &Record<'_>| {
                let object = record_object(record, &location)?;
                row(&object, location.clone(), &mut fields)
            };
            if seen < range.first {
                let counts = !may_be_left_out(record) || !matches!(parse(record), Ok(None));
                seen += usize::from(counts);
                return Ok(Read::Row);
            }
            bytes += record.content_bytes();
            if rows.len() >= range.limit || bytes > range.max_bytes && !rows.is_empty() {
                return Ok(Read::Enough);
            }
            rows.extend(parse(record)?);
            Ok(Read::Row)
        })?;
        if !more {
            break;
        }
        left = left.saturating_sub(records.into_reader().read_bytes());
    }
    Ok(rows)
}
