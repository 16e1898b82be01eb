//! A file of lines that grows at its end, and outlasts a full disk and a crash: a line that was not written completely affects only
//! itself.
//!
//! A failed append is cut off again. If that fails too, or the process was killed, the next append begins on a new line. A reader
//! gets every line, also a damaged one, and decides itself what it can use.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::disk;

/// The longest line that is read, in bytes; a longer one is damaged.
pub const MAX_LINE: usize = 1 << 20;

/// Whether [`AppendLog::append`] waits until the line is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// A power cut may lose the line.
    Later,
    /// The line outlasts a power cut.
    Now,
}

/// One file of lines. Any number of threads and processes may append to it.
#[derive(Debug, Clone)]
pub struct AppendLog {
    path: PathBuf,
}

impl AppendLog {
    /// The log at `path`; the first append creates it.
    #[must_use]
    pub fn new(path: PathBuf) -> AppendLog {
        AppendLog { path }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `line`, which must not contain a line break.
    ///
    /// # Errors
    /// The file cannot be opened or written. The line is then not in it, or only in part.
    pub fn append(&self, line: &[u8], flush: Flush) -> io::Result<()> {
        if line.contains(&b'\n') {
            return Err(io::Error::other("a line of a log has a line break"));
        }
        let mut file = disk::open_append(&self.path)?;
        // Where the file system has no locks, lines of two writers at the same moment may still mix after a failure.
        let _ = file.lock();
        let before = file.metadata()?.len();
        let mut bytes = Vec::with_capacity(line.len() + 2);
        if before > 0 && last_byte(&file)? != b'\n' {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        let mut written = file.write_all(&bytes);
        if flush == Flush::Now {
            written = written.and_then(|()| file.sync_all());
            if let (0, Some(folder)) = (before, self.path.parent()) {
                written = written.and_then(|()| disk::sync_folder(folder));
            }
        }
        if written.is_err() {
            // If this fails too, the next append begins on a new line.
            let _ = file.truncate(before);
        }
        // Closing the file is not enough while a second handle of it is open, as in a process that was started meanwhile.
        let _ = file.unlock();
        written
    }

    /// Calls `each` with the number, from 1, and the bytes of every line, also of an incomplete last one. A line beyond
    /// [`MAX_LINE`] is cut there. A missing file has no lines.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, mut each: impl FnMut(usize, &[u8])) -> io::Result<()> {
        let file = match disk::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let mut part = reader.by_ref().take(MAX_LINE as u64 + 1);
            if part.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            } else if line.len() > MAX_LINE {
                line.truncate(MAX_LINE);
                reader.skip_until(b'\n')?;
            }
            each(number, &line);
        }
        Ok(())
    }
}

fn last_byte(mut file: &File) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}
