//! Reads rows line by line, within limits. A broken line does not hide the lines after it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::row::parse_row;
use super::{Columns, DataRow, Dataset, RowLocation};
use crate::error::TrainError;

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
        let file = File::open(path).map_err(TrainError::read(path))?;
        Self::scan_from(
            BufReader::with_capacity(1 << 16, file),
            &path.display().to_string(),
            columns,
        )
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
        Self::scan_with(reader, name, &mut |text, location| {
            parse_row(text, location, columns)
        })
    }

    /// As [`Dataset::scan_from`], for rows of another shape: `row` reads one line, without its end.
    pub(crate) fn scan_with(
        reader: impl BufRead,
        name: &str,
        row: &mut dyn FnMut(&str, RowLocation) -> Result<DataRow, TrainError>,
    ) -> Result<DatasetScan, TrainError> {
        let file: Arc<str> = name.into();
        let refuse = |message: String| TrainError::Data {
            file: name.to_owned(),
            message,
        };
        let mut lines = Lines::new(reader, MAX_BYTES);
        let mut rows = Vec::new();
        let mut broken = Vec::new();
        let mut broken_lines = 0;
        for line in 1.. {
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
                Ok(_) if rows.len() == MAX_ROWS => {
                    return Err(refuse(format!("more than {MAX_ROWS} rows; split the file")));
                }
                Ok(row) => rows.push(row),
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
                hash: base16ct::lower::encode_string(&lines.hasher.finalize()),
            },
            broken,
            broken_lines,
        })
    }
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

/// Reads lines one by one, never more than a line's limit into memory, and hashes every byte.
struct Lines<R> {
    reader: R,
    hasher: Sha256,
    bytes: Vec<u8>,
    read: u64,
    most: u64,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R, most: u64) -> Self {
        Self {
            reader,
            hasher: Sha256::new(),
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
        self.hasher.update(&self.bytes);
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
            self.hasher.update(&part[..count]);
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
