//! What a kept file is made of, and what it is called for that.
//!
//! Its name is two hashes. The outline is of what can be seen at a glance: precision, quantizer's version, and of each converted tensor
//! the name, type, dimensions and first bytes. The content is of the same tensors whole. So a base that nothing like it was kept of
//! is not read for its name, only quantized, and one that was moved or copied is read once and found.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use base16ct::lower::encode_string;
use formats::checkpoint::Checkpoint;
use formats::gguf::{GgmlType, TensorView};
use model::{Precision, QUANTIZER};
use sha2::{Digest as _, Sha256};

use super::SUFFIX;
use crate::files::all_files;

/// How much of each tensor the outline has.
const HEAD: usize = 4 << 10;

/// A base in a precision.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The GGUF file, or the folder.
    pub path: &'a Path,
    /// Its tensors.
    pub checkpoint: &'a dyn Checkpoint,
    /// What they become.
    pub precision: Precision,
    /// Those that are converted, in their order: what `Model::converted` says.
    pub tensors: &'a [(String, GgmlType, Vec<u64>)],
    /// Gives back the memory of bytes of the mapped files.
    pub release: &'a (dyn Fn(&[u8]) + Sync),
}

impl Source<'_> {
    /// The hash of what can be seen at a glance, in hex; 64 bits of it.
    pub(super) fn outline(&self) -> String {
        let mut hasher = begin(self.precision);
        for (name, ..) in self.tensors {
            let tensor = self.checkpoint.tensor(name);
            add(&mut hasher, name, tensor.as_ref(), |data| {
                data[..data.len().min(HEAD)].to_vec()
            });
        }
        let mut text = encode_string(&hasher.finalize());
        text.truncate(16);
        text
    }

    /// The hash of all that is converted, in hex. Reads all of it, shared out to `threads` threads.
    pub(super) fn content(&self, threads: usize) -> String {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some((name, ..)) = self.tensors.get(i) else {
                    return done;
                };
                if let Some(tensor) = self.checkpoint.tensor(name) {
                    done.push((i, Sha256::digest(tensor.data)));
                    (self.release)(tensor.data);
                }
            }
        };
        let mut hashes: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            let ended = running.into_iter().map(|thread| thread.join());
            ended.flat_map(Result::unwrap_or_default).collect()
        });
        hashes.sort_unstable_by_key(|(i, _)| *i);
        let mut content = Content::begin(self.precision);
        for (i, hash) in hashes {
            let name = &self.tensors[i].0;
            let tensor = self.checkpoint.tensor(name);
            add(&mut content.0, name, tensor.as_ref(), |_| hash.to_vec());
        }
        content.finish()
    }

    /// The hash of which files these are, and of the precision, in hex. Where it is the same as before, the content is taken to be.
    ///
    /// # Errors
    /// A file of the base cannot be looked at.
    pub(super) fn identity(&self) -> io::Result<String> {
        let mut hasher = begin(self.precision);
        hasher.update(listing(self.path)?);
        Ok(encode_string(&hasher.finalize()))
    }
}

/// Which files a base has on the disk, a line each: place, length, times of change, and number on the disk.
///
/// # Errors
/// A file cannot be looked at.
pub(super) fn listing(base: &Path) -> io::Result<String> {
    let mut lines = String::new();
    for file in all_files(base).map_err(io::Error::other)? {
        let file = file.canonicalize()?;
        let meta = std::fs::metadata(&file)?;
        let changed = meta.modified()?.duration_since(UNIX_EPOCH);
        let changed = changed.unwrap_or_default().as_nanos();
        lines += &format!("{} {} {changed}", file.display(), meta.len());
        // The time of the last change of any kind cannot be set back, as the other can.
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let (ino, s, ns) = (meta.ino(), meta.ctime(), meta.ctime_nsec());
            lines += &format!(" {ino} {s}.{ns}");
        }
        lines.push('\n');
    }
    Ok(lines)
}

/// The hash of the content, tensor by tensor in their order.
pub(super) struct Content(Sha256);

impl Content {
    pub(super) fn begin(precision: Precision) -> Content {
        Content(begin(precision))
    }

    pub(super) fn add(&mut self, name: &str, tensor: Option<&TensorView<'_>>) {
        let hash = |data: &[u8]| Sha256::digest(data).to_vec();
        add(&mut self.0, name, tensor, hash);
    }

    pub(super) fn finish(self) -> String {
        encode_string(&self.0.finalize())
    }
}

/// A file's name.
pub(super) fn file_name(outline: &str, content: &str) -> PathBuf {
    PathBuf::from(format!("{outline}-{content}.{SUFFIX}"))
}

fn begin(precision: Precision) -> Sha256 {
    Sha256::new_with_prefix(format!("lory {QUANTIZER} {precision}\n"))
}

/// Adds a tensor under GGUF's name. Names hold no line feeds, so no two lists of tensors read the same.
fn add(
    hasher: &mut Sha256,
    name: &str,
    tensor: Option<&TensorView<'_>>,
    of_data: impl Fn(&[u8]) -> Vec<u8>,
) {
    if let Some(tensor) = tensor {
        let (dtype, dims, bytes) = (tensor.dtype, tensor.dims, tensor.data.len());
        hasher.update(format!("{name} {dtype} {dims:?} {bytes}\n"));
        hasher.update(of_data(tensor.data));
    }
}
