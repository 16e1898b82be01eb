//! Bases that were quantized once, kept on disk: the next start reads what the first one computed.
//!
//! A kept file is a GGUF of the converted tensors alone, under the hash of everything that decides about them: the source's files
//! (by place, length, time of change and the beginning of each, which lists its tensors), the precision, and the quantizer's
//! version. It appears under its name when it is whole. The folder is bounded; the file that was used least recently goes first.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use formats::checkpoint::Checkpoint;
use formats::config::{ConfigError, ModelConfig};
use formats::gguf::{GgmlType, GgufStream, TensorView, Value};
use model::{Precision, QUANTIZER};
use sha2::{Digest as _, Sha256};

use crate::pull;
use crate::service::BaseFiles;
use crate::service::files::all_files;

/// What the kept files may take on disk together, in bytes.
pub const LIMIT: u64 = 64 << 30;
/// How much of each source file goes into the key.
const HEAD: u64 = 64 << 10;
const SUFFIX: &str = "gguf";
/// How files that are being written begin; those of processes that ended are removed after a day.
const PARTIAL: &str = ".partial-";

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

/// The name of a base in a precision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Kept {
    /// The bases kept in a folder, which need not exist yet.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Kept {
        Kept {
            folder,
            limit: LIMIT,
        }
    }

    /// What the base at `path` is called in a precision.
    ///
    /// # Errors
    /// A file of the base cannot be read.
    pub fn key(path: &Path, precision: Precision) -> io::Result<Key> {
        let mut hasher = Sha256::new();
        hasher.update(format!("lory {QUANTIZER} {precision}\n"));
        for file in all_files(path).map_err(io::Error::other)? {
            let file = file.canonicalize()?;
            let meta = fs::metadata(&file)?;
            let changed = meta.modified()?.duration_since(UNIX_EPOCH);
            let changed = changed.unwrap_or_default().as_nanos();
            hasher.update(format!("{} {} {changed}\n", file.display(), meta.len()));
            let mut head = Vec::new();
            File::open(&file)?.take(HEAD).read_to_end(&mut head)?;
            hasher.update(&head);
        }
        Ok(Key(pull::hex(&hasher.finalize())))
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.{SUFFIX}", key.0))
    }

    /// The kept tensors of a base, if they are there and can be read.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<BaseFiles> {
        let path = self.path(key);
        let file = File::options().append(true).open(&path);
        // Used now: others go before it. A folder that cannot be written is still read.
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
        BaseFiles::open(&path).ok()
    }

    /// What is kept, the least recently used first.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        let mut found: Vec<(SystemTime, PathBuf, u64)> = self
            .files()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == SUFFIX))
            .map(|(path, meta)| (meta.modified().unwrap_or(UNIX_EPOCH), path, meta.len()))
            .collect();
        found.sort();
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
        found.into_iter().map(entry).collect()
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
    }

    /// Begins to keep a base's converted tensors.
    ///
    /// # Errors
    /// The folder cannot be written, or the disk has no room for them.
    pub fn begin(
        &self,
        key: &Key,
        source: &Path,
        precision: Precision,
        tensors: &[(String, GgmlType, Vec<u64>)],
    ) -> io::Result<Keeping> {
        let bytes: u64 = tensors
            .iter()
            .filter_map(|(_, dtype, dims)| dtype.bytes_for(dims.iter().product()))
            .sum();
        fs::create_dir_all(&self.folder)?;
        self.make_room(bytes)?;
        let file = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempfile_in(&self.folder)?;
        let metadata = BTreeMap::from([
            (
                "lory.source".to_owned(),
                Value::from(source.display().to_string().as_str()),
            ),
            ("lory.precision".to_owned(), Value::from(precision.name())),
        ]);
        let stream = GgufStream::begin(file.reopen()?, &metadata, tensors)?;
        Ok(Keeping {
            stream: RefCell::new(Ok(stream)),
            file,
            path: self.path(key),
        })
    }

    /// Removes what was used least recently until `bytes` more fit, on the disk too.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let day = std::time::Duration::from_secs(24 * 3600);
        for (path, meta) in self.files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let old = meta.modified().ok().and_then(|at| at.elapsed().ok());
            if name.starts_with(PARTIAL) && old.is_some_and(|old| old > day) {
                let _ = fs::remove_file(&path);
            }
        }
        let mut kept: Vec<(SystemTime, PathBuf, u64)> = self
            .files()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == SUFFIX))
            .map(|(path, meta)| (meta.modified().unwrap_or(UNIX_EPOCH), path, meta.len()))
            .collect();
        kept.sort();
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

/// Tensors that are being kept. Dropped unfinished, nothing of them stays.
pub struct Keeping {
    stream: RefCell<io::Result<GgufStream>>,
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Keeping {
    /// Takes a tensor; what goes wrong is told at the end, since a base runs without being kept.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut stream = self.stream.borrow_mut();
        if let Ok(open) = stream.as_mut()
            && let Err(error) = open.put(name, bytes)
        {
            *stream = Err(error);
        }
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// It could not be written; nothing of it stays.
    pub fn finish(self) -> io::Result<()> {
        self.stream.into_inner()?.finish()?;
        self.file.persist(&self.path).map_err(|error| error.error)?;
        if cfg!(unix)
            && let Some(folder) = self.path.parent()
        {
            File::open(folder)?.sync_all()?;
        }
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
    use super::*;
    use formats::gguf::GgmlType;

    fn keep(kept: &Kept, source: &Path, precision: Precision, values: u8) -> PathBuf {
        let key = Kept::key(source, precision).unwrap();
        let tensors = [("t".to_owned(), GgmlType::F32, vec![256])];
        let keeping = kept.begin(&key, source, precision, &tensors).unwrap();
        keeping.put("t", &[values; 1024]);
        keeping.finish().unwrap();
        kept.path(&key)
    }

    #[test]
    fn a_key_changes_with_whatever_decides() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.gguf");
        fs::write(&source, "one").unwrap();
        let key = |precision| Kept::key(&source, precision).unwrap();
        let first = key(Precision::Q4);
        assert_eq!(first, key(Precision::Q4));
        assert_ne!(first, key(Precision::Q8));
        fs::write(&source, "two").unwrap();
        assert_ne!(first, key(Precision::Q4));
        assert!(Kept::key(&folder.path().join("none"), Precision::Q4).is_err());
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_and_errors_wait_for_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.gguf");
        fs::write(&source, "one").unwrap();
        let kept = Kept::in_folder(folder.path().join("kept"));
        let key = Kept::key(&source, Precision::Q4).unwrap();
        let tensors = [("t".to_owned(), GgmlType::F32, vec![256])];
        let begin = || kept.begin(&key, &source, Precision::Q4, &tensors).unwrap();
        drop(begin());
        let cut = begin();
        assert!(
            cut.finish()
                .unwrap_err()
                .to_string()
                .contains("t was never written")
        );
        let wrong = begin();
        wrong.put("u", &[0; 1024]);
        assert!(
            wrong
                .finish()
                .unwrap_err()
                .to_string()
                .contains("announced")
        );
        assert_eq!(kept.list(), []);
        assert_eq!(fs::read_dir(folder.path().join("kept")).unwrap().count(), 0);
        assert!(kept.find(&key).is_none());
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::in_folder(folder.path().join("kept"));
        let mut sources = Vec::new();
        for name in ["a", "b", "c"] {
            let source = folder.path().join(name);
            fs::write(&source, name).unwrap();
            sources.push(source);
        }
        let old = keep(&kept, &sources[0], Precision::Q4, 1);
        let used = keep(&kept, &sources[1], Precision::Q4, 2);
        let past = |path: &Path, seconds: u64| {
            let at = SystemTime::now() - std::time::Duration::from_secs(seconds);
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(at).unwrap();
        };
        past(&used, 200);
        past(&old, 100);
        // Found, so used now.
        let key = Kept::key(&sources[1], Precision::Q4).unwrap();
        let files = kept.find(&key).unwrap();
        assert_eq!(files.checkpoint().tensor("t").unwrap().data, [2u8; 1024]);
        let each = fs::metadata(&used).unwrap().len();
        kept.limit = 2 * each + each / 2;
        let new = keep(&kept, &sources[2], Precision::Q8, 3);
        let left: Vec<PathBuf> = kept.list().into_iter().map(|entry| entry.path).collect();
        assert_eq!(left, [used, new]);
        assert!(!old.exists());
        assert_eq!(kept.list()[1].precision.as_deref(), Some("q8"));
        kept.limit = 10;
        let error = kept.begin(
            &key,
            &sources[0],
            Precision::Q4,
            &[("t".to_owned(), GgmlType::F32, vec![256])],
        );
        assert!(error.err().unwrap().to_string().contains("more than"));
    }
}
