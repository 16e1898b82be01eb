//! Reads rows record by record, within limits. A broken record does not hide those after it.

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};

use crate::data_file::{DataFile, DataFiles, Records, data_files, is_table};
use crate::error::DatasetError;
use crate::field_report::FieldReport;
use crate::record::record_object;
use crate::record_reader::{Read, ReadRow, RecordReader, data_error};
use crate::row::parse_row;
use crate::stop::NEVER;
use crate::{Columns, DataRow, Dataset, HoldOut};

/// Most rows of a data file or folder.
pub const MAX_ROWS: usize = 1_000_000;
/// Most content of a data file or folder, in bytes after decompression: its rows are in memory while it is trained on.
pub const MAX_BYTES: u64 = 2 << 30;
/// Broken lines that are kept, of those that are counted.
pub const MAX_BROKEN: usize = 1000;
/// Broken lines that an error names.
const NAMED: usize = 10;

/// A data file and all its errors.
#[derive(Debug)]
pub struct DatasetScan {
    /// The rows that are whole; may be empty.
    pub data: Dataset,
    /// What is wrong with the broken lines, in their order: [`DatasetError::Row`], at most [`MAX_BROKEN`] of them.
    pub broken: Vec<DatasetError>,
    /// How many lines are broken.
    pub broken_lines: usize,
    /// What became of the fields of the rows.
    pub fields: FieldReport,
    /// The size of the content, in bytes after decompression.
    pub bytes: u64,
}

impl DatasetScan {
    /// The rows, where no line is broken and there is at least one.
    ///
    /// # Errors
    /// [`DatasetError::Row`] where one line is broken, [`DatasetError::Rows`] where several are, [`DatasetError::File`] where
    /// there are no rows.
    pub fn whole(mut self) -> Result<Dataset, DatasetError> {
        let file = self.data.file.to_string();
        match self.broken_lines {
            0 if self.data.rows.is_empty() => Err(DatasetError::File {
                file,
                message: match self.fields.skipped_rows() {
                    0 => no_rows(&self.data.file, self.bytes).to_owned(),
                    count => format!(
                        "all of its {count} rows are left out by their marks ({})",
                        {
                            let marks: Vec<&str> =
                                self.fields.skipped.keys().map(String::as_str).collect();
                            marks.join(", ")
                        }
                    ),
                },
            }),
            0 => Ok(self.data),
            1 => Err(self.broken.remove(0)),
            count => {
                self.broken.truncate(NAMED);
                Err(DatasetError::Rows {
                    file,
                    count,
                    first: self.broken,
                })
            }
        }
    }
}

impl Dataset {
    /// Reads the file at `path`, whose columns have the fields' own names.
    ///
    /// # Errors
    /// As [`Dataset::read_as`].
    pub fn read(path: &Path) -> Result<Self, DatasetError> {
        Self::read_as(path, &Columns::default())
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As [`Dataset::scan`] and [`DatasetScan::whole`].
    pub fn read_as(path: &Path, columns: &Columns) -> Result<Self, DatasetError> {
        Self::scan(path, columns)?.whole()
    }

    /// Reads rows from `reader`; `name` is the name of the file in messages.
    ///
    /// # Errors
    /// As [`Dataset::scan`] and [`DatasetScan::whole`].
    pub fn parse(reader: impl BufRead, name: &str) -> Result<Self, DatasetError> {
        Self::scan_from(reader, name, &Columns::default())?.whole()
    }

    /// Reads the file at `path` to its end, whatever its lines are.
    ///
    /// A line is broken that is longer than [`MAX_LINE`](crate::MAX_LINE), not UTF-8, not a JSON object, not of a known shape, has a field of the
    /// wrong type, or an empty question or answer.
    ///
    /// # Errors
    /// The file cannot be read, is UTF-16, has more than [`MAX_ROWS`] rows, [`MAX_SKIPPED`](crate::MAX_SKIPPED) other records or [`MAX_BYTES`] bytes.
    pub fn scan(path: &Path, columns: &Columns) -> Result<DatasetScan, DatasetError> {
        Self::scan_until(path, columns, &NEVER)
    }

    /// As [`Dataset::scan`], until `stop` is set.
    ///
    /// # Errors
    /// As [`Dataset::scan`], and [`DatasetError::Stopped`].
    pub fn scan_until(
        path: &Path,
        columns: &Columns,
        stop: &AtomicBool,
    ) -> Result<DatasetScan, DatasetError> {
        Self::scan_with(path, stop, &mut |object, location, fields| {
            parse_row(object, location, columns, fields)
        })
    }

    /// As [`Dataset::scan`], of what `reader` gives; `name` is the name of the file in messages.
    ///
    /// # Errors
    /// As [`Dataset::scan`].
    pub fn scan_from(
        reader: impl BufRead,
        name: &str,
        columns: &Columns,
    ) -> Result<DatasetScan, DatasetError> {
        Self::scan_reader(reader, name, &mut |object, location, fields| {
            parse_row(object, location, columns, fields)
        })
    }

    /// As [`Dataset::scan_from`], for rows of another shape.
    pub(crate) fn scan_reader(
        reader: impl BufRead,
        name: &str,
        row: &mut ReadRow<'_, DataRow>,
    ) -> Result<DatasetScan, DatasetError> {
        let mut scanner = Scanner::new(&NEVER, MAX_BYTES);
        let row = &mut |object: &_, location, fields: &mut _| keep(row(object, location, fields));
        scanner.read(DataFile::of(reader, name, MAX_BYTES)?, name, row)?;
        Ok(scanner.finish(name))
    }

    /// Checks every line of the file at `path` as [`Dataset::scan`] does, without keeping its rows in memory. Its content, after
    /// decompression, has at most `most` bytes.
    ///
    /// # Errors
    /// As [`Dataset::scan_until`] and [`DatasetScan::whole`].
    pub fn check(
        path: &Path,
        columns: &Columns,
        most: u64,
        stop: &AtomicBool,
    ) -> Result<CheckedFile, DatasetError> {
        Self::check_with(path, most, stop, &mut |object, location, fields| {
            parse_row(object, location, columns, fields)
        })
    }

    /// As [`Dataset::check`], for rows of another shape.
    pub(crate) fn check_with(
        path: &Path,
        most: u64,
        stop: &AtomicBool,
        row: &mut ReadRow<'_, DataRow>,
    ) -> Result<CheckedFile, DatasetError> {
        let (mut rows, mut hold_out) = (0, HoldOut::default());
        let mut scan = scan_files(path, most, stop, &mut |object, location, fields| {
            let Some(row) = row(object, location, fields)? else {
                return Ok(None);
            };
            rows += 1;
            hold_out.add(&row);
            // One row stays, for the check that there is one.
            Ok(Some((rows == 1).then_some(row)))
        })?;
        let fields = std::mem::take(&mut scan.fields);
        let checked = CheckedFile {
            rows,
            hold_out,
            fields: fields.clone(),
            bytes: scan.bytes,
            hash: scan.data.hash.clone(),
        };
        DatasetScan { fields, ..scan }.whole()?;
        Ok(checked)
    }

    /// As [`Dataset::scan_until`], for rows of another shape.
    pub(crate) fn scan_with(
        path: &Path,
        stop: &AtomicBool,
        row: &mut ReadRow<'_, DataRow>,
    ) -> Result<DatasetScan, DatasetError> {
        scan_files(path, MAX_BYTES, stop, &mut |object, location, fields| {
            keep(row(object, location, fields))
        })
    }
}

/// Why the file called `name`, of `bytes` bytes, has no rows.
fn no_rows(name: &str, bytes: u64) -> &'static str {
    match is_table(Path::new(name)) {
        true if bytes == 0 => {
            "the file holds no rows: it is empty; write the names of the columns on its first line and a row on each line after it"
        }
        true => {
            "the file holds no rows: it has only the line of the columns' names; write a row on each line after it"
        }
        false => "the file holds no rows; write one JSON object a line",
    }
}

/// A row that counts is kept.
fn keep(
    row: Result<Option<DataRow>, DatasetError>,
) -> Result<Option<Option<DataRow>>, DatasetError> {
    row.map(|row| row.map(Some))
}

/// Scans the file at `path`, or the files of a folder. Of the rows that count, `row` returns those that are kept.
fn scan_files(
    path: &Path,
    most: u64,
    stop: &AtomicBool,
    row: &mut ReadRow<'_, Option<DataRow>>,
) -> Result<DatasetScan, DatasetError> {
    let mut scanner = Scanner::new(stop, most);
    let DataFiles {
        files,
        other_splits,
    } = data_files(path)?;
    if path.is_dir() {
        scanner.fields.add_files(files.len(), &other_splits);
    }
    for file in files {
        let source = DataFile::open(&file, scanner.left)?;
        scanner.read(source, &file.display().to_string(), row)?;
    }
    Ok(scanner.finish(&path.display().to_string()))
}

/// What was read of the files of a data set.
struct Scanner<'s> {
    reader: RecordReader<'s>,
    /// Rows that count.
    count: usize,
    /// The bytes that were read, and those that may still be read.
    bytes: u64,
    left: u64,
    rows: Vec<DataRow>,
    broken: Vec<DatasetError>,
    broken_lines: usize,
    fields: FieldReport,
    /// The name and the hash of each file.
    hashes: Vec<(String, String)>,
}

impl<'s> Scanner<'s> {
    fn new(stop: &'s AtomicBool, most: u64) -> Self {
        Self {
            reader: RecordReader::new(stop),
            count: 0,
            bytes: 0,
            left: most,
            rows: Vec::new(),
            broken: Vec::new(),
            broken_lines: 0,
            fields: FieldReport::default(),
            hashes: Vec::new(),
        }
    }

    /// Reads a file to its end.
    fn read(
        &mut self,
        source: DataFile<'_>,
        name: &str,
        row: &mut ReadRow<'_, Option<DataRow>>,
    ) -> Result<(), DatasetError> {
        let mut records = Records::new(source.content, source.layout);
        let Self {
            reader,
            count,
            rows,
            broken,
            broken_lines,
            fields,
            ..
        } = self;
        let read = reader.each(&mut records, name, &mut |record, location| {
            let object = record_object(record, &location);
            match object.and_then(|object| row(&object, location, fields)) {
                Ok(Some(_)) if *count == MAX_ROWS => {
                    let message = format!("more than {MAX_ROWS} rows; split the file");
                    Err(data_error(name, message))
                }
                Ok(Some(row)) => {
                    *count += 1;
                    rows.extend(row);
                    Ok(Read::Row)
                }
                Ok(None) => Ok(Read::Skipped),
                Err(error) => {
                    *broken_lines += 1;
                    if broken.len() < MAX_BROKEN {
                        broken.push(error);
                    }
                    Ok(Read::Skipped)
                }
            }
        });
        read.map_err(|error| with_first_broken(error, broken.first()))?;
        let content = records.into_reader();
        self.bytes += content.read_bytes();
        self.left = self.left.saturating_sub(content.read_bytes());
        self.hashes.push((name.to_owned(), content.hash()));
        Ok(())
    }

    /// The data set called `name`.
    fn finish(self, name: &str) -> DatasetScan {
        let hash = match self.hashes.as_slice() {
            [(_, hash)] => hash.clone(),
            files => {
                let mut hasher = Sha256::new();
                files.iter().for_each(|(_, hash)| hasher.update(hash));
                base16ct::lower::encode_string(&hasher.finalize())
            }
        };
        DatasetScan {
            data: Dataset {
                file: name.into(),
                rows: self.rows,
                hash,
            },
            broken: self.broken,
            broken_lines: self.broken_lines,
            fields: self.fields,
            bytes: self.bytes,
        }
    }
}

/// The error of a file with too many records, with the first broken one, which shows why.
fn with_first_broken(error: DatasetError, broken: Option<&DatasetError>) -> DatasetError {
    match (error, broken) {
        (DatasetError::File { file, message }, Some(broken)) => {
            let broken = broken.to_string();
            // The message begins with the file already.
            let line = broken.strip_prefix(&format!("{file}:")).unwrap_or(&broken);
            let message = format!("{message}. The first broken line is {line}");
            DatasetError::File { file, message }
        }
        (error, _) => error,
    }
}

/// A file whose lines are all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFile {
    /// The number of its rows.
    pub rows: usize,
    /// What decides which of them are held out.
    pub hold_out: HoldOut,
    /// What became of their fields.
    pub fields: FieldReport,
    /// The size of its content, in bytes after decompression.
    pub bytes: u64,
    /// SHA-256 of its content, in hex, as [`Dataset::hash`].
    pub hash: String,
}
