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

impl MappedFile {
    /// Gives back the memory of `part` of the file, which stays readable: the next touch reads it again.
    ///
    /// # Panics
    /// `part` is not in this file.
    pub fn release(&self, part: &[u8]) {
        let from = (part.as_ptr() as usize)
            .checked_sub(self.0.as_ptr() as usize)
            .filter(|from| from + part.len() <= self.0.len());
        let Some(from) = from else {
            panic!("the released part is not in the file")
        };
        #[cfg(unix)]
        {
            // Pages that the part shares with its neighbours stay.
            const PAGE: usize = 1 << 16;
            let first = from.next_multiple_of(PAGE);
            let end = (from + part.len()) / PAGE * PAGE;
            if first < end {
                // SAFETY: the mapping is of a file and never written, so what comes back is what was there. A failure
                // leaves the pages where they are.
                let _ = unsafe {
                    self.0.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        first,
                        end - first,
                    )
                };
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_parts_read_the_same() {
        let path = std::env::temp_dir().join(format!("lory-mapped-{}", std::process::id()));
        let bytes: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapped = map_file(&path).unwrap();
        let all = mapped.as_ref();
        assert_eq!(all, bytes);
        for part in [
            0..0,
            5..900_000,
            65_536..131_072,
            999_999..1_000_000,
            0..1_000_000,
        ] {
            mapped.release(&all[part]);
            assert_eq!(all, bytes);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
