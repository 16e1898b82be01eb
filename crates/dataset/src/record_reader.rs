//! Reads the records of files one by one, up to a number of those that are not rows.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use crate::RowLocation;
use crate::data_file::{ContentTooLarge, Record, Records};
use crate::error::DatasetError;
use crate::field_report::FieldReport;
use crate::stop::check_stop;

/// Most records of a data file or folder that are not rows: blank, broken, or left out by a mark. Reading one takes time, however small it is.
pub const MAX_SKIPPED: usize = 1_000_000;

/// Reads the object of a record; `None` for a row that is left out.
pub(crate) type ReadRow<'a, T, E = DatasetError> =
    dyn FnMut(&Map<String, Value>, RowLocation, &mut FieldReport) -> Result<Option<T>, E> + 'a;

/// What became of a record.
pub(crate) enum Read {
    /// It is a row, or was checked before.
    Row,
    /// It is left out, or broken.
    Skipped,
    /// It was not read, and no further ones are needed.
    Enough,
}

/// Reads the records of files, up to [`MAX_SKIPPED`] that are not rows.
pub(crate) struct RecordReader<'s> {
    stop: &'s AtomicBool,
    skipped: usize,
}

impl<'s> RecordReader<'s> {
    pub(crate) fn new(stop: &'s AtomicBool) -> Self {
        Self { stop, skipped: 0 }
    }

    /// Calls `read` with each record of the file `name` that is not blank. False if `read` needs no further ones.
    pub(crate) fn each<E: From<DatasetError>>(
        &mut self,
        records: &mut Records<impl BufRead>,
        name: &str,
        read: &mut dyn FnMut(&Record<'_>, RowLocation) -> Result<Read, E>,
    ) -> Result<bool, E> {
        let file: Arc<str> = name.into();
        loop {
            check_stop(self.stop)?;
            let record = records.next_record();
            let Some((line, record)) = record.map_err(|error| unreadable(error, name))? else {
                return Ok(true);
            };
            let location = RowLocation {
                file: file.clone(),
                line,
            };
            let read = match record.is_blank() {
                true => Read::Skipped,
                false => read(&record, location)?,
            };
            match read {
                Read::Row => {}
                Read::Skipped if self.skipped == MAX_SKIPPED => {
                    let message = format!(
                        "more than {MAX_SKIPPED} lines are blank, broken, or left out by their marks; remove them"
                    );
                    return Err(data_error(name, message).into());
                }
                Read::Skipped => self.skipped += 1,
                Read::Enough => return Ok(false),
            }
        }
    }
}

/// The error of reading the file `name`.
fn unreadable(source: io::Error, name: &str) -> DatasetError {
    match source.get_ref() {
        Some(cause) if cause.is::<ContentTooLarge>() => data_error(name, cause.to_string()),
        _ => DatasetError::Read {
            path: name.into(),
            source,
        },
    }
}

/// The error of the whole file `name`.
pub(crate) fn data_error(name: &str, message: String) -> DatasetError {
    DatasetError::File {
        file: name.to_owned(),
        message,
    }
}
