//! A file mapped into memory, read-only.

use std::path::Path;

/// A file's bytes, mapped: pages are read when touched and given back under memory pressure.
///
/// The mapping is of a private, read-only kind. If another program truncates the file while it is mapped, touching the
/// lost pages ends the process, as with every mapped file; Lory itself only ever replaces files by rename.
pub struct MappedFile(memmap2::Mmap);

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a file.
///
/// # Errors
/// The file cannot be opened or mapped (an empty file cannot).
pub fn map_file(path: &Path) -> std::io::Result<MappedFile> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the mapping is read-only; see `MappedFile` for what a truncation by others means.
    Ok(MappedFile(unsafe { memmap2::Mmap::map(&file)? }))
}
