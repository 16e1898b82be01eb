//! Files of a clone that was made without Git LFS: small texts that point to the real files.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

/// How a pointer begins.
const START: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// Opens a file of a model or an adapter for reading, as [`crate::disk::open`] does.
///
/// # Errors
/// It is a pointer, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let mut file = crate::disk::open(path)?;
    let mut start = Vec::new();
    (&mut file)
        .take(START.len() as u64)
        .read_to_end(&mut start)?;
    check(&start)?;
    file.rewind()?;
    Ok(file)
}

/// Checks that `bytes`, the beginning of a file, are not those of a pointer.
///
/// # Errors
/// They are; the message says how to fetch the file.
pub fn check(bytes: &[u8]) -> io::Result<()> {
    if !bytes.starts_with(START) {
        return Ok(());
    }
    let message = "a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder";
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}
