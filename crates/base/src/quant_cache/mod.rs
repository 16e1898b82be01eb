//! The quant cache: weights that were quantized once are stored on disk, so the next start reads them instead of quantizing
//! again. Must not know how a model is run.
//!
//! ```text
//! quantized/
//!   <outline>-<content>.gguf    the quantized tensors of a base, named by the tensors they were made from (`quant_source.rs`)
//!   <identity>.known            the name of such a file; saves reading a base whose files have not changed
//!   <listing>.sha256            the hash of a base; saves reading a base whose files have not changed
//! ```
//!
//! A file gets its name when it is complete. The size of the folder is limited: the least recently used file is removed first.

mod marker;
mod overlaid;
mod quant_source;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use formats::{atomic_file, disk};
use sha2::{Digest as _, Sha256};

use self::marker::{GGUF, KNOWN, MAX_AGE, SHA256};
use self::quant_source::file_name;
use crate::files::{BaseFiles, sha256};
use crate::plan::format_size;

pub use self::overlaid::OverlaidCheckpoint;
pub use self::quant_source::QuantSource;
pub use self::writer::CacheWriter;

/// The most bytes that the cached files may take on disk together.
pub const LIMIT: u64 = 64 << 30;

/// The folder of quantized bases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantCache {
    folder: PathBuf,
    limit: u64,
}

/// Whether this cache gave the name to a file.
fn is_cache_name(name: &str) -> bool {
    let hex = |text: &str, digits: usize| {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        text.len() == digits && text.bytes().all(digit)
    };
    match name.rsplit_once('.') {
        Some((stem, GGUF)) => stem
            .split_once('-')
            .is_some_and(|(outline, content)| hex(outline, 16) && hex(content, 64)),
        Some((stem, KNOWN | SHA256)) => hex(stem, 64),
        _ => false,
    }
}

/// A cached file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CacheEntry {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The path of the base that it was made from; none if the file does not name it.
    pub source: Option<String>,
    /// Its precision; none if the file does not name it.
    pub precision: Option<String>,
}

impl QuantCache {
    /// The cache in `folder`, which need not exist yet.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> QuantCache {
        QuantCache {
            folder,
            limit: LIMIT,
        }
    }

    /// The cached tensors of a base; none if they are missing or cannot be read.
    ///
    /// If no marker knows the base's files but a cached file has the same outline, the base is read once with `threads` threads.
    #[must_use]
    pub fn find(&self, source: &QuantSource<'_>, threads: usize) -> Option<BaseFiles> {
        let marker = self.marker(source);
        if let Some(name) = marker.as_deref().and_then(marker::cached_file)
            && let Some(found) = self.open(&name)
        {
            return Some(found);
        }
        let outline = source.outline();
        let same_outline = |(path, _): (PathBuf, _)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{outline}-")) && name.ends_with(GGUF)
        };
        if !self.files().any(same_outline) {
            return None;
        }
        let name = file_name(&outline, &source.content(threads));
        let found = self.open(&name)?;
        if let Some(marker) = marker {
            marker::write(&marker, name.as_os_str().as_encoded_bytes());
        }
        Some(found)
    }

    fn open(&self, name: &Path) -> Option<BaseFiles> {
        let path = self.folder.join(name);
        let file = File::options().append(true).open(&path);
        // The modification time is the time of the last use. A folder that cannot be written can still be read.
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
        BaseFiles::open(&path).ok()
    }

    /// The marker that names the cached file of a base; none if the base's files cannot be examined.
    fn marker(&self, source: &QuantSource<'_>) -> Option<PathBuf> {
        let identity = source.identity().ok()?;
        Some(self.folder.join(format!("{identity}.{KNOWN}")))
    }

    /// The sha256 of the base at `path`, in hex, as [`sha256`] computes it. It is remembered for some months as long as the base's
    /// files do not change, because computing it reads all of them.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn base_sha256(&self, path: &Path) -> io::Result<String> {
        // Listed before the files are read: if they change meanwhile, the marker does not match them.
        let listing = Sha256::digest(quant_source::listing(path)?);
        let listing = base16ct::lower::encode_string(&listing);
        let marker = self.folder.join(format!("{listing}.{SHA256}"));
        if let Some(hash) = marker::base_sha256(&marker) {
            return Ok(hash);
        }
        let hash = sha256(path)?;
        if disk::create_private_folders(&self.folder).is_ok() {
            self.sweep();
            marker::write(&marker, hash.as_bytes());
        }
        Ok(hash)
    }

    /// The cached files, the least recently used first.
    #[must_use]
    pub fn list(&self) -> Vec<CacheEntry> {
        let entry = |(_, path, bytes): (SystemTime, PathBuf, u64)| {
            let files = BaseFiles::open(&path).ok();
            let text = |key: &str| files.as_ref()?.metadata_text(key);
            CacheEntry {
                bytes,
                source: text("lory.source"),
                precision: text("lory.precision"),
                path,
            }
        };
        self.by_use().into_iter().map(entry).collect()
    }

    /// The last use, path and length of each cached file, the least recently used first.
    fn by_use(&self) -> Vec<(SystemTime, PathBuf, u64)> {
        let mut found: Vec<_> = self
            .files()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == GGUF))
            .map(|(path, meta)| (meta.modified().unwrap_or(UNIX_EPOCH), path, meta.len()))
            .collect();
        found.sort();
        found
    }

    /// The files that this cache made. Others in the folder are left alone.
    fn files(&self) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_cache_name));
        ours.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
    }

    /// Begins to cache the quantized tensors of a base.
    ///
    /// # Errors
    /// The folder cannot be written, or the tensors do not fit into the cache or on the disk.
    pub fn begin<'a>(&'a self, source: QuantSource<'a>) -> io::Result<CacheWriter<'a>> {
        let bytes: u64 = source
            .tensors
            .iter()
            .filter_map(|(_, dtype, dims)| dtype.bytes_for(dims.iter().product()))
            .sum();
        disk::create_private_folders(&self.folder)?;
        self.make_room(bytes)?;
        // The files are listed before they are read: if they change meanwhile, the marker does not match them.
        let marker = self.marker(&source);
        CacheWriter::begin(&self.folder, source, marker)
    }

    /// Removes incomplete files, markers of missing files, and markers that are too old.
    fn sweep(&self) {
        atomic_file::remove_leftovers(&self.folder);
        for (path, _) in self.files() {
            let older = |than: Duration| marker::age(&path).is_some_and(|age| age > than);
            let is = |kind: &str| path.extension().is_some_and(|e| e == kind);
            let file_is_missing = is(KNOWN)
                && marker::cached_file(&path).is_none_or(|name| !self.folder.join(name).exists());
            let too_old = is(SHA256) && older(MAX_AGE);
            if file_is_missing || too_old {
                let _ = disk::remove_file(&path);
            }
        }
    }

    /// Removes the least recently used files until `bytes` more fit into the limit.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        self.sweep();
        let cached = self.by_use();
        let mut total: u64 = cached.iter().map(|(.., bytes)| bytes).sum();
        for (_, path, length) in cached {
            if total + bytes <= self.limit {
                break;
            }
            disk::remove_file(&path)?;
            total -= length;
        }
        if bytes > self.limit {
            return Err(io::Error::other(format!(
                "{} is more than the cache's limit of {}",
                format_size(bytes),
                format_size(self.limit)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
