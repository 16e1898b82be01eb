//! Bases that were quantized once, kept on disk: the next start reads what the first one computed.
//!
//! ```text
//! quantized/
//!   <outline>-<content>.gguf    the converted tensors alone, named by what they were made of (`source.rs`)
//!   <identity>.known            the name of such a file: what the base with these files on the disk is, without reading it
//!   <listing>.sha256            what the base with these files on the disk is known by, without reading it
//! ```
//!
//! A file appears under its name when it is whole. The folder is bounded; the file that was used least recently goes first.

mod source;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use formats::atomic_file::{self, AtomicFile};
use formats::checkpoint::Checkpoint;
use formats::config::{ConfigError, ModelConfig};
use formats::gguf::{GgufStream, TensorView, Value};
use sha2::{Digest as _, Sha256};

use self::source::{Content, file_name};
use crate::files::BaseFiles;
use crate::files::sha256;

pub use self::source::Source;

/// What the kept files may take on disk together, in bytes.
pub const LIMIT: u64 = 64 << 30;
const SUFFIX: &str = "gguf";
/// What says which kept file a base's files are.
const KNOWN: &str = "known";
/// What says what a base's files are known by.
const SHA256: &str = "sha256";
/// So long that is taken from there; a base is read again then.
const REMEMBERED: Duration = Duration::from_secs(90 * 24 * 3600);

/// The folder of kept bases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    folder: PathBuf,
    limit: u64,
}

/// A kept file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it was made of, as far as it says.
    pub source: Option<String>,
    /// Its precision, as far as it says.
    pub precision: Option<String>,
}

impl Kept {
    /// The bases kept in a folder, which need not exist yet.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Kept {
        Kept {
            folder,
            limit: LIMIT,
        }
    }

    /// The kept tensors of a base, if they are there and can be read. Where the base's files were not seen before, all of them are
    /// read for it, with `threads` threads, if something that looks like them is kept.
    #[must_use]
    pub fn find(&self, source: &Source<'_>, threads: usize) -> Option<BaseFiles> {
        let marker = self.marker(source);
        if let Some(name) = marker.as_ref().and_then(|marker| known(marker))
            && let Some(found) = self.open(&name)
        {
            return Some(found);
        }
        let outline = source.outline();
        let alike = |(path, _): (PathBuf, _)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{outline}-")) && name.ends_with(SUFFIX)
        };
        if !self.files().any(alike) {
            return None;
        }
        let name = file_name(&outline, &source.content(threads));
        let found = self.open(&name)?;
        self.remember(marker.as_deref(), &name);
        Some(found)
    }

    fn open(&self, name: &Path) -> Option<BaseFiles> {
        let path = self.folder.join(name);
        let file = File::options().append(true).open(&path);
        // Used now: others go before it. A folder that cannot be written is still read.
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
        BaseFiles::open(&path).ok()
    }

    /// Where it stands what a base's files are; none if they cannot be looked at.
    fn marker(&self, source: &Source<'_>) -> Option<PathBuf> {
        let identity = source.identity().ok()?;
        Some(self.folder.join(format!("{identity}.{KNOWN}")))
    }

    fn remember(&self, marker: Option<&Path>, name: &Path) {
        if let Some(marker) = marker {
            self.mark(marker, name.as_os_str().as_encoded_bytes());
        }
    }

    /// Without the marker the base is read again at the next start, so what goes wrong is not told.
    fn mark(&self, marker: &Path, text: &[u8]) {
        let _ = atomic_file::replace_private(marker, |file| file.write_all(text));
    }

    /// The sha256 that the base at `path` is known by, in hex, as [`sha256`] has it. Its files are read for it once, and then
    /// not for some months, as long as they stay as they are.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn fingerprint(&self, path: &Path) -> io::Result<String> {
        // Taken before the files are read: were they changed meanwhile, they would not be found by it.
        let listing = base16ct::lower::encode_string(&Sha256::digest(source::listing(path)?));
        let marker = self.folder.join(format!("{listing}.{SHA256}"));
        if age(&marker).is_some_and(|age| age < REMEMBERED)
            && let Ok(known) = fs::read_to_string(&marker)
            && known.len() == 64
            && known.bytes().all(|c| c.is_ascii_hexdigit())
        {
            return Ok(known);
        }
        let hash = sha256(path)?;
        if fs::create_dir_all(&self.folder).is_ok() {
            self.sweep();
            self.mark(&marker, hash.as_bytes());
        }
        Ok(hash)
    }

    /// What is kept, the least recently used first.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        let entry = |(_, path, bytes): (SystemTime, PathBuf, u64)| {
            let files = BaseFiles::open(&path).ok();
            let text = |key: &str| files.as_ref()?.metadata_text(key);
            Entry {
                bytes,
                source: text("lory.source"),
                precision: text("lory.precision"),
                path,
            }
        };
        self.by_use().into_iter().map(entry).collect()
    }

    /// When each kept file was used last, where it lies and its length; the least recently used first.
    fn by_use(&self) -> Vec<(SystemTime, PathBuf, u64)> {
        let mut found: Vec<_> = self
            .files()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == SUFFIX))
            .map(|(path, meta)| (meta.modified().unwrap_or(UNIX_EPOCH), path, meta.len()))
            .collect();
        found.sort();
        found
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
    }

    /// Begins to keep a base's converted tensors.
    ///
    /// # Errors
    /// The folder cannot be written, or the disk has no room for them.
    pub fn begin<'a>(&'a self, source: Source<'a>) -> io::Result<Keeping<'a>> {
        let bytes: u64 = source
            .tensors
            .iter()
            .filter_map(|(_, dtype, dims)| dtype.bytes_for(dims.iter().product()))
            .sum();
        fs::create_dir_all(&self.folder)?;
        self.make_room(bytes)?;
        let mut file = AtomicFile::create_private_in(&self.folder)?;
        let metadata = BTreeMap::from([
            (
                "lory.source".to_owned(),
                Value::from(source.path.display().to_string().as_str()),
            ),
            (
                "lory.precision".to_owned(),
                Value::from(source.precision.name()),
            ),
        ]);
        let stream = GgufStream::begin(file.file().try_clone()?, &metadata, source.tensors)?;
        Ok(Keeping {
            stream: RefCell::new(Ok(stream)),
            content: RefCell::new(Content::begin(source.precision)),
            // Taken before the files are read: were they changed meanwhile, they would not be found by it.
            marker: self.marker(&source),
            outline: source.outline(),
            file,
            kept: self,
            source,
        })
    }

    /// Removes what is of no use any more: files that were left half-written, and markers that say nothing.
    fn sweep(&self) {
        atomic_file::remove_leftovers(&self.folder);
        for (path, _) in self.files() {
            let older = |than: Duration| age(&path).is_some_and(|age| age > than);
            let is = |kind: &str| path.extension().is_some_and(|e| e == kind);
            let points_nowhere =
                is(KNOWN) && known(&path).is_none_or(|name| !self.folder.join(name).exists());
            let forgotten = is(SHA256) && older(REMEMBERED);
            if points_nowhere || forgotten {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Removes what was used least recently until `bytes` more fit, on the disk too.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        self.sweep();
        let kept = self.by_use();
        let mut total: u64 = kept.iter().map(|(.., bytes)| bytes).sum();
        for (_, path, length) in kept {
            if total + bytes <= self.limit {
                break;
            }
            fs::remove_file(path)?;
            total -= length;
        }
        if bytes > self.limit {
            return Err(io::Error::other(format!(
                "{} is more than the {} that are kept",
                crate::plan::size(bytes),
                crate::plan::size(self.limit)
            )));
        }
        Ok(())
    }
}

/// How long ago a file was written.
fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

/// The name in a marker, if it is one of a file in the same folder.
fn known(marker: &Path) -> Option<PathBuf> {
    let name = fs::read_to_string(marker).ok()?;
    let plain = |c: char| c.is_ascii_hexdigit() || c == '-';
    let stem = name.strip_suffix(SUFFIX)?.strip_suffix('.')?;
    stem.chars().all(plain).then(|| PathBuf::from(&name))
}

/// Tensors that are being kept. Dropped unfinished, nothing of them stays.
pub struct Keeping<'a> {
    stream: RefCell<io::Result<GgufStream>>,
    content: RefCell<Content>,
    marker: Option<PathBuf>,
    outline: String,
    file: AtomicFile,
    kept: &'a Kept,
    source: Source<'a>,
}

impl Keeping<'_> {
    /// Takes a tensor, and reads once more what it was made of; what goes wrong is told at the end, since a base runs without being
    /// kept.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut stream = self.stream.borrow_mut();
        if let Ok(open) = stream.as_mut() {
            if let Err(error) = open.put(name, bytes) {
                *stream = Err(error);
            }
            let made_of = self.source.checkpoint.tensor(name);
            self.content.borrow_mut().add(name, made_of.as_ref());
        }
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// It could not be written; nothing of it stays.
    pub fn finish(self) -> io::Result<()> {
        self.stream.into_inner()?.finish()?;
        let name = file_name(&self.outline, &self.content.into_inner().finish());
        let path = self.kept.folder.join(&name);
        self.file.commit(&path)?;
        self.kept.remember(self.marker.as_deref(), &name);
        Ok(())
    }
}

/// A checkpoint of which some tensors lie converted elsewhere.
pub struct Overlaid<'a> {
    /// The converted ones.
    pub kept: &'a dyn Checkpoint,
    /// All.
    pub source: &'a dyn Checkpoint,
}

impl Checkpoint for Overlaid<'_> {
    fn config(&self) -> Result<ModelConfig, ConfigError> {
        self.source.config()
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.kept.tensor(name).or_else(|| self.source.tensor(name))
    }

    fn place(&self, name: &str) -> (String, String) {
        match self.kept.tensor(name) {
            Some(_) => self.kept.place(name),
            None => self.source.place(name),
        }
    }

    fn types_are_chosen(&self) -> bool {
        self.source.types_are_chosen()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use formats::gguf::{GgmlType, Gguf, GgufWriter};
    use model::Precision;

    use super::*;

    /// A file with two tensors, of which `t` is converted.
    struct Tensors {
        path: PathBuf,
        gguf: Gguf,
        converted: Vec<(String, GgmlType, Vec<u64>)>,
    }

    impl Tensors {
        /// `values` fill `t`; its last byte is `last`.
        fn write(path: PathBuf, values: u8, last: u8) -> Tensors {
            let mut data = vec![values; 16 << 10];
            *data.last_mut().unwrap() = last;
            let mut writer = GgufWriter::new();
            let dims = [64, 64];
            writer.tensor("t", GgmlType::F32, &dims, data).unwrap();
            writer
                .tensor("norm", GgmlType::F32, &[1], vec![0; 4])
                .unwrap();
            fs::write(&path, writer.to_bytes().unwrap()).unwrap();
            Tensors::open(path)
        }

        fn open(path: PathBuf) -> Tensors {
            let bytes = fs::read(&path).unwrap();
            Tensors {
                path,
                gguf: Gguf::parse(Arc::new(bytes), "t").unwrap(),
                converted: vec![("t".to_owned(), GgmlType::Q8_0, vec![64, 64])],
            }
        }

        fn source(&self, precision: Precision) -> Source<'_> {
            Source {
                path: &self.path,
                checkpoint: &self.gguf,
                precision,
                tensors: &self.converted,
                release: &|_| (),
            }
        }

        fn keep(&self, kept: &Kept, precision: Precision, values: u8) -> PathBuf {
            let source = self.source(precision);
            let keeping = kept.begin(source).unwrap();
            keeping.put("t", &[values; 4352]);
            keeping.finish().unwrap();
            let name = file_name(&source.outline(), &source.content(3));
            let path = kept.folder.join(name);
            assert!(path.exists(), "both ways to a name are one");
            path
        }

        fn found(&self, kept: &Kept, precision: Precision) -> Option<u8> {
            let files = kept.find(&self.source(precision), 2)?;
            Some(files.checkpoint().tensor("t").unwrap().data[0])
        }
    }

    fn kept_in(folder: &Path) -> Kept {
        Kept::in_folder(folder.join("kept"))
    }

    #[test]
    fn a_base_is_found_by_what_it_holds_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let kept = kept_in(folder.path());
        let base = Tensors::write(at("a.gguf"), 1, 1);
        assert_eq!(base.found(&kept, Precision::Q8), None);
        base.keep(&kept, Precision::Q8, 7);
        assert_eq!(base.found(&kept, Precision::Q8), Some(7));
        assert_eq!(base.found(&kept, Precision::Q4), None);

        fs::copy(at("a.gguf"), at("copy.gguf")).unwrap();
        let copy = Tensors::open(at("copy.gguf"));
        assert_eq!(copy.found(&kept, Precision::Q8), Some(7));
        fs::rename(at("a.gguf"), at("moved.gguf")).unwrap();
        let moved = Tensors::open(at("moved.gguf"));
        assert_eq!(moved.found(&kept, Precision::Q8), Some(7));

        // Alike at a glance, and another at the end of a tensor.
        let other = Tensors::write(at("other.gguf"), 1, 2);
        let outline = |base: &Tensors| base.source(Precision::Q8).outline();
        assert_eq!(outline(&other), outline(&base));
        assert_eq!(other.found(&kept, Precision::Q8), None);
        // In the same place, as long, and with the same time of change.
        let changed = fs::metadata(at("copy.gguf")).unwrap().modified().unwrap();
        let other = Tensors::write(at("copy.gguf"), 1, 2);
        let file = File::options().append(true).open(&other.path).unwrap();
        file.set_modified(changed).unwrap();
        assert_eq!(other.found(&kept, Precision::Q8), None);
    }

    #[test]
    fn what_was_seen_before_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let kept = kept_in(folder.path());
        let base = Tensors::write(folder.path().join("a.gguf"), 1, 1);
        base.keep(&kept, Precision::Q8, 7);
        // Neither outline nor content are asked for: these tensors are not there.
        let mut unread = base.source(Precision::Q8);
        let none = [("none".to_owned(), GgmlType::Q8_0, vec![64, 64])];
        unread.tensors = &none;
        assert!(kept.find(&unread, 1).is_some());
        // Without the marker they are, and nothing is like them.
        for (path, _) in kept.files() {
            if path.extension().is_some_and(|e| e == KNOWN) {
                fs::write(&path, "../a.gguf").unwrap();
            }
        }
        assert!(kept.find(&unread, 1).is_none());
        // And the base itself is found by its content, and known from then on.
        assert_eq!(base.found(&kept, Precision::Q8), Some(7));
        assert!(kept.find(&unread, 1).is_some());
    }

    #[test]
    fn a_base_is_read_once_for_what_it_is_known_by() {
        let folder = tempfile::tempdir().unwrap();
        let kept = kept_in(folder.path());
        let base = folder.path().join("base");
        fs::create_dir(&base).unwrap();
        let weights = base.join("model.safetensors");
        fs::write(&weights, "one").unwrap();
        let first = kept.fingerprint(&base).unwrap();
        assert_eq!(first, sha256(&base).unwrap());
        let marker = || {
            let mut all = kept.files().map(|(path, _)| path);
            all.find(|path| path.extension().is_some_and(|e| e == SHA256))
        };
        // What stands there is taken, unless it is no hash or too old.
        let other = "0".repeat(64);
        fs::write(marker().unwrap(), &other).unwrap();
        assert_eq!(kept.fingerprint(&base).unwrap(), other);
        fs::write(marker().unwrap(), "0").unwrap();
        assert_eq!(kept.fingerprint(&base).unwrap(), first);
        fs::write(marker().unwrap(), &other).unwrap();
        let file = File::options().append(true).open(marker().unwrap());
        let long_ago = SystemTime::now() - REMEMBERED - Duration::from_secs(60);
        file.unwrap().set_modified(long_ago).unwrap();
        assert_eq!(kept.fingerprint(&base).unwrap(), first);
        kept.sweep();
        assert!(marker().is_some());
        // As long, and another.
        fs::write(&weights, "two").unwrap();
        let second = kept.fingerprint(&base).unwrap();
        assert_eq!(second, sha256(&base).unwrap());
        assert_ne!(second, first);
        // A folder that cannot be written is no error.
        let nowhere = Kept::in_folder(weights.join("kept"));
        assert_eq!(nowhere.fingerprint(&base).unwrap(), second);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_and_errors_wait_for_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let kept = kept_in(folder.path());
        let base = Tensors::write(folder.path().join("a.gguf"), 1, 1);
        let begin = || kept.begin(base.source(Precision::Q8)).unwrap();
        drop(begin());
        let said = |keeping: Keeping<'_>| keeping.finish().unwrap_err().to_string();
        assert!(said(begin()).contains("t was never written"));
        let wrong = begin();
        wrong.put("u", &[0; 4352]);
        assert!(said(wrong).contains("announced"));
        assert_eq!(kept.list(), []);
        assert_eq!(fs::read_dir(&kept.folder).unwrap().count(), 0);
        assert_eq!(base.found(&kept, Precision::Q8), None);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = kept_in(folder.path());
        let base = |i: u8| Tensors::write(folder.path().join(format!("{i}.gguf")), i, i);
        let bases = [base(1), base(2), base(3)];
        let old = bases[0].keep(&kept, Precision::Q4, 1);
        let used = bases[1].keep(&kept, Precision::Q4, 2);
        let past = |path: &Path, seconds: u64| {
            let at = SystemTime::now() - std::time::Duration::from_secs(seconds);
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(at).unwrap();
        };
        past(&used, 200);
        past(&old, 100);
        // Found, so used now.
        assert_eq!(bases[1].found(&kept, Precision::Q4), Some(2));
        let each = fs::metadata(&used).unwrap().len();
        kept.limit = 2 * each + each / 2;
        let new = bases[2].keep(&kept, Precision::Q8, 3);
        let left: Vec<PathBuf> = kept.list().into_iter().map(|entry| entry.path).collect();
        assert_eq!(left, [used, new]);
        assert!(!old.exists());
        assert_eq!(kept.list()[1].precision.as_deref(), Some("q8"));
        // What said where the old one is goes when room is made the next time.
        bases[2].keep(&kept, Precision::Q8, 3);
        let markers = |(path, _): &(PathBuf, _)| path.extension().is_some_and(|e| e == KNOWN);
        assert_eq!(kept.files().filter(markers).count(), 2);
        kept.limit = 10;
        let error = kept.begin(bases[0].source(Precision::Q4));
        assert!(error.err().unwrap().to_string().contains("more than"));
    }
}
