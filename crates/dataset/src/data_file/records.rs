//! The records of a file, one by one: lines, elements of a JSON list, or records of a table. A record takes at most [`MAX_LINE`] bytes of
//! memory, however long it is.

use std::collections::HashSet;
use std::io::{self, BufRead, Read};

use csv_core::ReadRecordResult;

use super::layout::{Layout, NAMES_DELIMITER};

/// Longest record of a data file, in bytes; the end of a line does not count.
pub const MAX_LINE: usize = 1 << 20;
/// Most columns of a table.
pub const MAX_COLUMNS: usize = 1000;

/// Characters of a column's name that a message shows.
const SHOWN_NAME: usize = 64;

/// A record as it was read.
#[derive(Debug)]
pub enum Record<'b> {
    /// The text of an object.
    Json(&'b [u8]),
    /// Cells of a table, and the names of their columns.
    Cells(&'b [String], Vec<&'b [u8]>),
    /// Longer than [`MAX_LINE`].
    TooLong,
    /// Not a record, for this reason. After a broken header there are no more records.
    Broken(String),
}

/// The records of a file.
pub struct Records<R> {
    reader: R,
    /// The bytes of the current record.
    bytes: Vec<u8>,
    state: State,
}

enum State {
    /// The number of lines that were read.
    Lines(usize),
    List(ListState),
    Table(Box<Table>),
}

#[derive(Default)]
struct ListState {
    elements: usize,
    begun: bool,
    closed: bool,
    ended: bool,
}

struct Table {
    parser: csv_core::Reader,
    names: Vec<String>,
    /// The header is broken, so the records mean nothing.
    ended: bool,
    /// The cells of the current record, one after the other, and where each ends.
    cells: Vec<u8>,
    ends: Vec<usize>,
    /// The number of line ends that were read.
    lines: usize,
}

impl<R: BufRead> Records<R> {
    /// The records that `reader` has in this layout.
    pub fn new(reader: R, layout: Layout) -> Self {
        let state = match layout {
            Layout::Lines => State::Lines(0),
            Layout::List => State::List(ListState::default()),
            Layout::Table(delimiter) => State::Table(Box::new(Table {
                parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
                names: Vec::new(),
                ended: false,
                cells: vec![0; MAX_LINE],
                ends: vec![0; MAX_COLUMNS],
                lines: 0,
            })),
        };
        Self {
            reader,
            bytes: Vec::new(),
            state,
        }
    }

    /// The reader, of which everything was read up to the last record.
    pub fn into_reader(self) -> R {
        self.reader
    }

    /// The next record and its line; in a list, the number of its element. Both count from 1.
    ///
    /// # Errors
    /// The reader's.
    pub fn next_record(&mut self) -> io::Result<Option<(usize, Record<'_>)>> {
        let Self {
            reader,
            bytes,
            state,
        } = self;
        match state {
            State::Lines(lines) => {
                let record = next_line(reader, bytes)?;
                *lines += 1;
                Ok(record.map(|record| (*lines, record)))
            }
            State::List(list) => list.next(reader, bytes),
            State::Table(table) => table.next(reader),
        }
    }
}

fn next_line<'b>(
    reader: &mut impl BufRead,
    bytes: &'b mut Vec<u8>,
) -> io::Result<Option<Record<'b>>> {
    bytes.clear();
    // Two bytes more than the limit: the line's end may be CR LF.
    let limit = MAX_LINE as u64 + 2;
    let count = reader.by_ref().take(limit).read_until(b'\n', bytes)?;
    if count == 0 {
        return Ok(None);
    }
    if !bytes.ends_with(b"\n") && count as u64 == limit {
        skip_line(reader)?;
    }
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Ok(Some(if line.len() > MAX_LINE {
        Record::TooLong
    } else {
        Record::Json(line)
    }))
}

/// Reads on to the line's end.
fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let part = filled(reader)?;
        let end = part.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(part.len(), |end| end + 1);
        reader.consume(count);
        if end.is_some() || count == 0 {
            return Ok(());
        }
    }
}

fn filled(reader: &mut impl BufRead) -> io::Result<&[u8]> {
    // A loop that returns what it borrows in one of its branches would borrow it in all of them.
    while let Err(error) = reader.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    reader.fill_buf()
}

/// The state of an element that is being read.
#[derive(Default)]
struct Element {
    begun: bool,
    depth: usize,
    in_string: bool,
    escaped: bool,
    too_long: bool,
}

impl ListState {
    fn next<'b>(
        &mut self,
        reader: &mut impl BufRead,
        bytes: &'b mut Vec<u8>,
    ) -> io::Result<Option<(usize, Record<'b>)>> {
        bytes.clear();
        if self.ended {
            return Ok(None);
        }
        let mut element = Element::default();
        loop {
            let part = filled(reader)?;
            if part.is_empty() {
                self.ended = true;
                if self.closed {
                    return Ok(None);
                }
                let message = "the file ends before the list does; is it cut off?";
                return Ok(Some((
                    self.elements + 1,
                    Record::Broken(message.to_owned()),
                )));
            }
            let (mut used, mut found) = (0, false);
            for byte in part {
                if self.closed && !byte.is_ascii_whitespace() {
                    self.ended = true;
                    let message = "there is text after the end of the list; write one list, or one object a line";
                    return Ok(Some((
                        self.elements + 1,
                        Record::Broken(message.to_owned()),
                    )));
                }
                if !self.begun {
                    // The bracket of the list is the first byte that is not white space.
                    self.begun = *byte == b'[';
                    used += 1;
                    continue;
                }
                match element.step(*byte) {
                    Step::Outside if *byte == b']' => self.closed = true,
                    Step::Outside => {}
                    Step::Inside if bytes.len() < MAX_LINE => bytes.push(*byte),
                    Step::Inside => element.too_long = true,
                    Step::Last => {
                        bytes.push(*byte);
                        used += 1;
                        found = true;
                        break;
                    }
                    Step::After => {
                        found = true;
                        break;
                    }
                }
                used += 1;
            }
            reader.consume(used);
            if found {
                self.elements += 1;
                let is_whole = !element.too_long && bytes.len() <= MAX_LINE;
                let record = match is_whole {
                    true => Record::Json(bytes),
                    false => Record::TooLong,
                };
                return Ok(Some((self.elements, record)));
            }
        }
    }
}

/// What a byte of a list is for its elements.
enum Step {
    /// White space, a comma, or a bracket of the list.
    Outside,
    Inside,
    /// The last byte of an element.
    Last,
    /// The byte after an element.
    After,
}

impl Element {
    fn step(&mut self, byte: u8) -> Step {
        if !self.begun && (byte.is_ascii_whitespace() || matches!(byte, b',' | b']')) {
            return Step::Outside;
        }
        let is_first = !std::mem::replace(&mut self.begun, true);
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => {
                self.in_string = !self.in_string;
                if !self.in_string && self.depth == 0 {
                    return Step::Last;
                }
            }
            _ if self.in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Step::Last;
                }
            }
            b',' | b']' | b'}' if self.depth == 0 && !is_first => return Step::After,
            _ if self.depth == 0 && byte.is_ascii_whitespace() => return Step::After,
            _ => {}
        }
        Step::Inside
    }
}

/// A record of a table as it was read.
enum Row {
    /// It has so many cells.
    Cells(usize),
    /// It is longer than [`MAX_LINE`].
    TooLong,
    /// It has more than [`MAX_COLUMNS`] cells.
    TooWide,
}

impl Table {
    fn next<'b>(
        &'b mut self,
        reader: &mut impl BufRead,
    ) -> io::Result<Option<(usize, Record<'b>)>> {
        if self.ended {
            return Ok(None);
        }
        if self.names.is_empty() {
            let mut first = self.read(reader)?;
            if first
                .as_ref()
                .is_some_and(|(_, row)| self.names_delimiter(row))
            {
                first = self.read(reader)?;
            }
            let Some((line, row)) = first else {
                return Ok(None);
            };
            if let Err(reason) = self.read_header(&row) {
                self.ended = true;
                return Ok(Some((line, Record::Broken(reason))));
            }
        }
        let Some((line, row)) = self.read(reader)? else {
            return Ok(None);
        };
        let columns = self.names.len();
        let advice = "is a quote or a delimiter missing?";
        let record = match row {
            Row::TooLong => Record::TooLong,
            Row::TooWide => Record::Broken(format!(
                "has more than {MAX_COLUMNS} cells, but the header has {columns} columns; {advice}"
            )),
            Row::Cells(count) if count != columns => Record::Broken(format!(
                "has {count} cells, but the header has {columns} columns; {advice}"
            )),
            Row::Cells(count) => {
                Record::Cells(&self.names, (0..count).map(|i| self.cell(i)).collect())
            }
        };
        Ok(Some((line, record)))
    }

    /// Whether a row names the delimiter for Excel.
    fn names_delimiter(&self, row: &Row) -> bool {
        matches!(row, Row::Cells(2))
            && self.cell(0).eq_ignore_ascii_case(NAMES_DELIMITER)
            && self.cell(1).is_empty()
    }

    /// The names of the columns; the error says why they cannot be used.
    fn read_header(&mut self, row: &Row) -> Result<(), String> {
        let count = match row {
            Row::Cells(count) => *count,
            Row::TooLong => {
                return Err(format!(
                    "the header is longer than {MAX_LINE} bytes; shorten the names of the columns"
                ));
            }
            Row::TooWide => {
                return Err(format!(
                    "the header has more than {MAX_COLUMNS} columns; remove those that are not needed"
                ));
            }
        };
        let mut names: Vec<String> = Vec::with_capacity(count);
        let mut seen = HashSet::with_capacity(count);
        for i in 0..count {
            let Ok(name) = std::str::from_utf8(self.cell(i)) else {
                return Err("the header is not UTF-8 text; save the file as UTF-8".to_owned());
            };
            let name = name.trim().to_owned();
            // Spreadsheets write columns without a name, which are not used.
            if !name.is_empty() && !seen.insert(name.clone()) {
                let shown: String = name.chars().take(SHOWN_NAME).collect();
                return Err(format!(
                    "the header has the column `{shown}` twice; rename or remove one of them"
                ));
            }
            names.push(name);
        }
        self.names = names;
        Ok(())
    }

    fn cell(&self, i: usize) -> &[u8] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.cells[start..self.ends[i]]
    }

    /// Reads a record, and its line.
    fn read(&mut self, reader: &mut impl BufRead) -> io::Result<Option<(usize, Row)>> {
        // Line ends before the record, so that its line is known.
        loop {
            let part = filled(reader)?;
            let blank = part.iter().take_while(|byte| matches!(byte, b'\n' | b'\r'));
            let blank = &part[..blank.count()];
            self.lines += blank.iter().filter(|byte| **byte == b'\n').count();
            match blank.len() {
                0 => break,
                count => reader.consume(count),
            }
        }
        let line = self.lines + 1;
        let (mut bytes, mut cells, mut too_large) = (0, 0, None);
        loop {
            let part = filled(reader)?;
            let (result, read, written, ended) =
                self.parser
                    .read_record(part, &mut self.cells[bytes..], &mut self.ends[cells..]);
            self.lines += part[..read].iter().filter(|byte| **byte == b'\n').count();
            reader.consume(read);
            bytes += written;
            cells += ended;
            // The rest of a record that is too large is read and thrown away.
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => {
                    (bytes, cells) = (0, 0);
                    too_large.get_or_insert(Row::TooLong);
                }
                ReadRecordResult::OutputEndsFull => {
                    (bytes, cells) = (0, 0);
                    too_large.get_or_insert(Row::TooWide);
                }
                ReadRecordResult::Record => {
                    return Ok(Some((line, too_large.unwrap_or(Row::Cells(cells)))));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }
}

impl Record<'_> {
    /// The number of bytes of its content.
    #[must_use]
    pub fn content_bytes(&self) -> usize {
        match self {
            Record::Json(bytes) => bytes.len(),
            Record::Cells(_, cells) => cells.iter().map(|cell| cell.len()).sum(),
            Record::TooLong | Record::Broken(_) => 0,
        }
    }

    /// Whether it has only white space.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        match self {
            Record::Json(line) => match line.trim_ascii().first() {
                None => true,
                Some(byte) if byte.is_ascii() => false,
                Some(_) => std::str::from_utf8(line).is_ok_and(|text| text.trim().is_empty()),
            },
            Record::Cells(_, cells) => cells.iter().all(|cell| cell.trim_ascii().is_empty()),
            Record::TooLong | Record::Broken(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;
    use crate::data_file::{ContentTooLarge, Counted};

    #[test]
    fn endless_file_is_read_up_to_the_limit() {
        let layouts = [Layout::Lines, Layout::List, Layout::Table(b',')];
        for (byte, most) in [
            (b'x', 3 << 20),
            (b'\n', 1000),
            (b'"', 3 << 20),
            (b'[', 3 << 20),
        ] {
            for layout in layouts {
                let endless = BufReader::new(io::repeat(byte));
                let mut records = Records::new(Counted::new(endless, most), layout);
                let error = loop {
                    match records.next_record() {
                        Ok(record) => assert!(record.is_some(), "{layout:?} {byte}"),
                        Err(error) => break error,
                    }
                };
                assert!(error.get_ref().unwrap().is::<ContentTooLarge>());
                assert!(records.bytes.capacity() <= 2 * MAX_LINE + 64);
                let read = records.reader.read_bytes();
                assert!(read > most && read <= most + (1 << 20), "{layout:?} {read}");
            }
        }
    }
}
