//! Reads rows line by line, within limits. A broken line does not hide the lines after it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use formats::disk;
use sha2::{Digest, Sha256};

use super::row::parse_row;
use super::{Columns, DataRow, Dataset, HoldOut, RowLocation};
use crate::error::TrainError;
use crate::stop::{NEVER, check_stop};

/// Longest line of a data file, in bytes, its end not counted.
pub const MAX_LINE: usize = 1 << 20;
/// Most rows of a data file.
pub const MAX_ROWS: usize = 1_000_000;
/// Largest data file, in bytes: its rows are in memory while it is trained on.
pub const MAX_BYTES: u64 = 2 << 30;
/// Broken lines that are kept, of those that are counted.
pub const MAX_BROKEN: usize = 1000;
/// Broken lines that an error names.
const NAMED: usize = 10;

/// Reads one line of a file; `None` for a line that does not count.
type ReadRow<'a, T> = dyn FnMut(&str, RowLocation) -> Result<Option<T>, TrainError> + 'a;

/// A data file and all its errors.
#[derive(Debug)]
pub struct DatasetScan {
    /// The rows that are whole; may be empty.
    pub data: Dataset,
    /// What is wrong with the broken lines, in their order: [`TrainError::Row`], at most [`MAX_BROKEN`] of them.
    pub broken: Vec<TrainError>,
    /// How many lines are broken.
    pub broken_lines: usize,
}

impl DatasetScan {
    /// The rows, where no line is broken and there is at least one.
    ///
    /// # Errors
    /// [`TrainError::Row`] where one line is broken, [`TrainError::Rows`] where several are, [`TrainError::Data`] where
    /// there are no rows.
    pub fn whole(mut self) -> Result<Dataset, TrainError> {
        let file = self.data.file.to_string();
        match self.broken_lines {
            0 if self.data.rows.is_empty() => Err(TrainError::Data {
                file,
                message: "the file holds no rows; write one JSON object a line".to_owned(),
            }),
            0 => Ok(self.data),
            1 => Err(self.broken.remove(0)),
            count => {
                self.broken.truncate(NAMED);
                Err(TrainError::Rows {
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
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        Self::read_as(path, &Columns::default())
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As [`Dataset::scan`] and [`DatasetScan::whole`].
    pub fn read_as(path: &Path, columns: &Columns) -> Result<Self, TrainError> {
        Self::scan(path, columns)?.whole()
    }

    /// Reads rows from `reader`; `name` is the name of the file in messages.
    ///
    /// # Errors
    /// As [`Dataset::scan`] and [`DatasetScan::whole`].
    pub fn parse(reader: impl BufRead, name: &str) -> Result<Self, TrainError> {
        Self::scan_from(reader, name, &Columns::default())?.whole()
    }

    /// Reads the file at `path` to its end, whatever its lines are.
    ///
    /// A line is broken that is longer than [`MAX_LINE`], not UTF-8, not a JSON object, not of a known shape, has a field of the
    /// wrong type, or an empty question or answer.
    ///
    /// # Errors
    /// The file cannot be read, is UTF-16, has more than [`MAX_ROWS`] rows or [`MAX_BYTES`] bytes.
    pub fn scan(path: &Path, columns: &Columns) -> Result<DatasetScan, TrainError> {
        Self::scan_until(path, columns, &NEVER)
    }

    /// As [`Dataset::scan`], until `stop` is set.
    ///
    /// # Errors
    /// As [`Dataset::scan`], and [`TrainError::Stopped`].
    pub fn scan_until(
        path: &Path,
        columns: &Columns,
        stop: &AtomicBool,
    ) -> Result<DatasetScan, TrainError> {
        let mut row = |text: &str, location| parse_row(text, location, columns);
        Self::scan_with(open(path)?, &path.display().to_string(), stop, &mut row)
    }

    /// As [`Dataset::scan`], of what `reader` gives; `name` is the name of the file in messages.
    ///
    /// # Errors
    /// As [`Dataset::scan`].
    pub fn scan_from(
        reader: impl BufRead,
        name: &str,
        columns: &Columns,
    ) -> Result<DatasetScan, TrainError> {
        Self::scan_with(reader, name, &NEVER, &mut |text, location| {
            parse_row(text, location, columns)
        })
    }

    /// Checks every line of the file at `path` as [`Dataset::scan`] does, without keeping its rows in memory.
    ///
    /// # Errors
    /// As [`Dataset::scan_until`] and [`DatasetScan::whole`].
    pub fn check(
        path: &Path,
        columns: &Columns,
        stop: &AtomicBool,
    ) -> Result<CheckedFile, TrainError> {
        Self::check_with(path, stop, &mut |text, location| {
            parse_row(text, location, columns)
        })
    }

    /// As [`Dataset::check`], for rows of another shape.
    pub(crate) fn check_with(
        path: &Path,
        stop: &AtomicBool,
        row: &mut dyn FnMut(&str, RowLocation) -> Result<DataRow, TrainError>,
    ) -> Result<CheckedFile, TrainError> {
        let mut checked = CheckedFile {
            rows: 0,
            hold_out: HoldOut::default(),
            hash: String::new(),
        };
        let name = path.display().to_string();
        let scan = Self::scan_lines(open(path)?, &name, stop, &mut |text, location| {
            let row = row(text, location)?;
            checked.rows += 1;
            checked.hold_out.add(&row);
            // One row stays, for the check that there is one.
            Ok((checked.rows == 1).then_some(row))
        })?;
        checked.hash = scan.whole()?.hash;
        Ok(checked)
    }

    /// As [`Dataset::scan_from`], for rows of another shape: `row` reads one line, without its end.
    pub(crate) fn scan_with(
        reader: impl BufRead,
        name: &str,
        stop: &AtomicBool,
        row: &mut dyn FnMut(&str, RowLocation) -> Result<DataRow, TrainError>,
    ) -> Result<DatasetScan, TrainError> {
        Self::scan_lines(reader, name, stop, &mut |text, location| {
            row(text, location).map(Some)
        })
    }

    /// As [`Dataset::scan_with`]; of the rows, those that `row` returns are kept.
    fn scan_lines(
        reader: impl BufRead,
        name: &str,
        stop: &AtomicBool,
        row: &mut ReadRow<'_, DataRow>,
    ) -> Result<DatasetScan, TrainError> {
        let file: Arc<str> = name.into();
        let refuse = |message: String| TrainError::Data {
            file: name.to_owned(),
            message,
        };
        let mut lines = Lines::new(reader, MAX_BYTES);
        let mut rows = Vec::new();
        let mut count = 0;
        let mut broken = Vec::new();
        let mut broken_lines = 0;
        for line in 1.. {
            check_stop(stop)?;
            let read = lines.next_line().map_err(|source| TrainError::Read {
                path: name.into(),
                source,
            })?;
            let location = RowLocation {
                file: file.clone(),
                line,
            };
            let parsed = match read {
                Line::End => break,
                Line::PastTheLimit => {
                    return Err(refuse(format!(
                        "the file is larger than {MAX_BYTES} bytes; split it"
                    )));
                }
                Line::TooLong => Err(too_long(&location)),
                Line::Bytes(bytes) if line == 1 && is_utf16(bytes) => {
                    return Err(refuse("the file is UTF-16; save it as UTF-8".to_owned()));
                }
                Line::Bytes(bytes) => match text(bytes, &location) {
                    Ok("") => continue,
                    Ok(text) => row(text, location),
                    Err(error) => Err(error),
                },
            };
            match parsed {
                Ok(_) if count == MAX_ROWS => {
                    return Err(refuse(format!("more than {MAX_ROWS} rows; split the file")));
                }
                Ok(row) => {
                    count += 1;
                    rows.extend(row);
                }
                Err(error) => {
                    broken_lines += 1;
                    if broken.len() < MAX_BROKEN {
                        broken.push(error);
                    }
                }
            }
        }
        Ok(DatasetScan {
            data: Dataset {
                file,
                rows,
                hash: base16ct::lower::encode_string(&lines.hasher.unwrap_or_default().finalize()),
            },
            broken,
            broken_lines,
        })
    }
}

/// A file whose lines are all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFile {
    /// The number of its rows.
    pub rows: usize,
    /// What decides which of them are held out.
    pub hold_out: HoldOut,
    /// SHA-256 of the file's bytes, in hex.
    pub hash: String,
}

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

/// The rows in `range` of the file at `path`, whose lines were all checked before: every line that is not blank is a row. Lines before
/// the range are skipped without being parsed, and lines after it are not read.
///
/// # Errors
/// The file cannot be read, a line in the range is broken, or [`TrainError::Stopped`].
pub fn read_range(
    path: &Path,
    columns: &Columns,
    range: RowRange,
    stop: &AtomicBool,
) -> Result<Vec<DataRow>, TrainError> {
    parse_range(path, range, stop, &mut |text, location| {
        parse_row(text, location, columns).map(Some)
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
) -> Result<Vec<DataRow>, TrainError> {
    parse_range(path, RowRange::first(limit), stop, &mut |text, location| {
        let row = parse_row(text, location, columns)?;
        Ok(keep(&row).then_some(row))
    })
}

/// Calls `visit` with each row of the file at `path`, whose lines were all checked before, one row in memory at a time.
///
/// # Errors
/// As [`read_range`], and those of `visit`.
pub(crate) fn each_row(
    path: &Path,
    columns: &Columns,
    stop: &AtomicBool,
    visit: &mut dyn FnMut(DataRow) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    parse_range(
        path,
        RowRange::first(usize::MAX),
        stop,
        &mut |text, location| {
            visit(parse_row(text, location, columns)?)?;
            Ok(None::<DataRow>)
        },
    )?;
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

/// As [`read_range`], for rows of another shape: `row` reads one line. A row for which it returns `None` does not count.
pub(crate) fn parse_range<T>(
    path: &Path,
    range: RowRange,
    stop: &AtomicBool,
    row: &mut ReadRow<'_, T>,
) -> Result<Vec<T>, TrainError> {
    let file: Arc<str> = path.display().to_string().into();
    let mut lines = Lines::new(open(path)?, MAX_BYTES);
    lines.hasher = None;
    let mut rows = Vec::new();
    let (mut seen, mut bytes) = (0, 0);
    for line in 1.. {
        check_stop(stop)?;
        let location = RowLocation {
            file: file.clone(),
            line,
        };
        let read = match lines.next_line().map_err(TrainError::read(path))? {
            Line::End | Line::PastTheLimit => break,
            Line::TooLong => return Err(too_long(&location)),
            Line::Bytes(read) if is_blank(read) => continue,
            Line::Bytes(read) => read,
        };
        seen += 1;
        if seen <= range.first {
            continue;
        }
        bytes += read.len();
        let is_full = rows.len() >= range.limit || bytes > range.max_bytes && !rows.is_empty();
        if is_full {
            break;
        }
        rows.extend(row(text(read, &location)?, location)?);
    }
    Ok(rows)
}

/// Whether a line has only white space, or a byte order mark and white space.
fn is_blank(line: &[u8]) -> bool {
    match line.trim_ascii().first() {
        None => true,
        Some(byte) if byte.is_ascii() => false,
        Some(_) => std::str::from_utf8(line)
            .is_ok_and(|text| text.trim_start_matches('\u{feff}').trim().is_empty()),
    }
}

fn open(path: &Path) -> Result<BufReader<File>, TrainError> {
    let file = disk::open(path).map_err(TrainError::read(path))?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

fn too_long(location: &RowLocation) -> TrainError {
    let message = format!("the line is longer than {MAX_LINE} bytes; split the row or shorten it");
    TrainError::row(location, message)
}

/// Whether a file that starts with `bytes` has the byte order mark of UTF-16.
fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")
}

/// A line's text without its end and, in the first line, without a byte order mark.
fn text<'b>(bytes: &'b [u8], location: &RowLocation) -> Result<&'b str, TrainError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let message = format!(
            "not UTF-8 text at byte {} of the line; save the file as UTF-8",
            error.valid_up_to() + 1
        );
        TrainError::row(location, message)
    })?;
    let text = match location.line {
        1 => text.strip_prefix('\u{feff}').unwrap_or(text),
        _ => text,
    };
    Ok(text.trim_end())
}

/// One line of a file.
enum Line<'b> {
    Bytes(&'b [u8]),
    TooLong,
    PastTheLimit,
    End,
}

/// Reads lines one by one, never more than a line's limit into memory, and hashes every byte if it has a hasher.
struct Lines<R> {
    reader: R,
    hasher: Option<Sha256>,
    bytes: Vec<u8>,
    read: u64,
    most: u64,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R, most: u64) -> Self {
        Self {
            reader,
            hasher: Some(Sha256::new()),
            bytes: Vec::new(),
            read: 0,
            most,
        }
    }

    fn next_line(&mut self) -> io::Result<Line<'_>> {
        self.bytes.clear();
        // Two bytes more than the limit: the line's end may be CR LF.
        let limit = MAX_LINE as u64 + 2;
        let count = (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut self.bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.bytes);
        }
        self.read += count as u64;
        if count == 0 {
            return Ok(Line::End);
        }
        let ended = self.bytes.ends_with(b"\n");
        if !ended && count as u64 == limit {
            self.skip_line()?;
        }
        if self.read > self.most {
            return Ok(Line::PastTheLimit);
        }
        let line = self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Ok(if line.len() > MAX_LINE {
            Line::TooLong
        } else {
            Line::Bytes(line)
        })
    }

    /// Reads on to the line's end, or to where the file is past its limit.
    fn skip_line(&mut self) -> io::Result<()> {
        while self.read <= self.most {
            let part = match self.reader.fill_buf() {
                Ok(part) => part,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = part.iter().position(|byte| *byte == b'\n');
            let count = end.map_or(part.len(), |end| end + 1);
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&part[..count]);
            }
            self.reader.consume(count);
            self.read += count as u64;
            if end.is_some() || count == 0 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_of_rows_is_read_without_parsing_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let row = |i: usize| format!("{{\"prompt\":\"{i}\",\"completion\":\"a\"}}\n");
        // Lines outside the range are never parsed: these would be errors.
        let text = format!(
            "\u{feff}no row\n\n \u{a0}\n{}{}{}no row\n",
            row(1),
            row(2),
            row(3)
        );
        std::fs::write(&path, text).unwrap();
        let read = |first, limit, max_bytes| {
            let range = RowRange {
                first,
                limit,
                max_bytes,
            };
            let rows = read_range(&path, &Columns::default(), range, &NEVER).unwrap();
            rows.iter()
                .map(|row| (row.input(), row.location.line))
                .collect::<Vec<_>>()
        };
        let all = [
            ("1".to_owned(), 4),
            ("2".to_owned(), 5),
            ("3".to_owned(), 6),
        ];
        assert_eq!(read(1, 3, 1000), all);
        assert_eq!(read(2, 1, 1000), all[1..2]);
        // One row, however long it is, and then as many as fit.
        assert_eq!(read(1, 3, 1), all[..1]);
        assert_eq!(read(1, 3, 2 * row(1).len()), all[..2]);
        assert_eq!(read(9, 1, 1000), []);
        let stop = AtomicBool::new(true);
        let range = RowRange {
            first: 1,
            limit: 1,
            max_bytes: 1,
        };
        let stopped = read_range(&path, &Columns::default(), range, &stop);
        assert!(matches!(stopped, Err(TrainError::Stopped)));
    }

    #[test]
    fn endless_file_is_read_up_to_the_limit() {
        for (bytes, most) in [(b'x', 3 << 20), (b'\n', 1000)] {
            let endless = BufReader::new(io::repeat(bytes));
            let mut lines = Lines::new(endless, most);
            while !matches!(lines.next_line().unwrap(), Line::PastTheLimit) {}
            assert!(lines.bytes.capacity() <= 2 * MAX_LINE + 64);
            assert!(lines.read > most && lines.read <= most + (1 << 20));
        }
    }
}
