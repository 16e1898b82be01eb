//! The cache's small marker files: they save reading a base again to find out what it is.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use formats::{atomic_file, disk};

/// The extension of a cached file.
pub(super) const GGUF: &str = "gguf";
/// The extension of a marker that names the cached file of a base.
pub(super) const KNOWN: &str = "known";
/// The extension of a marker that holds the hash of a base.
pub(super) const SHA256: &str = "sha256";
/// How long a hash marker is trusted. After that the base is read again.
pub(super) const MAX_AGE: Duration = Duration::from_secs(90 * 24 * 3600);

/// The largest marker that is read, in bytes.
const MAX_MARKER: u64 = 4 << 10;

/// Writes a marker. An error is ignored: if the marker is missing, the next start only reads the base again.
pub(super) fn write(marker: &Path, text: &[u8]) {
    let _ = atomic_file::replace_private(marker, |file| file.write_all(text));
}

/// The cached file that a marker names. None unless it is a plain name in the same folder.
pub(super) fn cached_file(marker: &Path) -> Option<PathBuf> {
    let name = text(marker)?;
    let plain = |c: char| c.is_ascii_hexdigit() || c == '-';
    let stem = name.strip_suffix(GGUF)?.strip_suffix('.')?;
    stem.chars().all(plain).then(|| PathBuf::from(&name))
}

/// The hash in a marker, in hex. None if the marker is too old or does not hold a hash.
pub(super) fn base_sha256(marker: &Path) -> Option<String> {
    age(marker).filter(|age| *age < MAX_AGE)?;
    let hash = text(marker)?;
    (hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit())).then_some(hash)
}

/// The text of a marker.
fn text(marker: &Path) -> Option<String> {
    String::from_utf8(disk::read(marker, MAX_MARKER).ok()?).ok()
}

/// How long ago a file was written.
pub(super) fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}
