//! What a cached file is made from, and the name that follows from it.
//!
//! The name is two hashes. The outline covers what can be read quickly: the precision, the version of the quantizer, and the name,
//! type, dimensions and first bytes of each converted tensor. The content covers the same tensors completely. So a base that was
//! never cached is quantized without reading it for its name first, and a base that was moved or copied is read once and found.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use base16ct::lower::encode_string;
use formats::checkpoint::Checkpoint;
use formats::gguf::{GgmlType, TensorView};
use model::{Precision, QUANTIZER};
use sha2::{Digest as _, Sha256};

use super::marker::GGUF;
use crate::files::all_files;

/// How many bytes of each tensor the outline covers.
const HEAD: usize = 4 << 10;

/// A base, and the precision to which it is quantized.
#[derive(Clone, Copy)]
pub struct QuantSource<'a> {
    /// The GGUF file, or the folder.
    pub path: &'a Path,
    /// Its tensors.
    pub checkpoint: &'a dyn Checkpoint,
    /// The precision of the quantized tensors.
    pub precision: Precision,
    /// The tensors that are converted, in order, as `Model::converted` returns them: name, type and dimensions.
    pub tensors: &'a [(String, GgmlType, Vec<u64>)],
    /// Releases the memory of bytes in the mapped files.
    pub release: &'a (dyn Fn(&[u8]) + Sync),
}

impl QuantSource<'_> {
    /// The first 64 bits of the outline hash, in hex.
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

    /// The content hash, in hex. Reads all converted tensors with `threads` threads.
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
        let mut content = ContentHash::begin(self.precision);
        for (i, hash) in hashes {
            let name = &self.tensors[i].0;
            let tensor = self.checkpoint.tensor(name);
            add(&mut content.0, name, tensor.as_ref(), |_| hash.to_vec());
        }
        content.finish()
    }

    /// The hash of the list of files and of the precision, in hex. If it has not changed, the content has not changed either.
    ///
    /// # Errors
    /// A file of the base cannot be examined.
    pub(super) fn identity(&self) -> io::Result<String> {
        let mut hasher = begin(self.precision);
        hasher.update(listing(self.path)?);
        Ok(encode_string(&hasher.finalize()))
    }
}

/// The files of a base, one per line: path, length, modification time, and on Unix the inode and its change time.
///
/// # Errors
/// A file cannot be examined.
pub(super) fn listing(base: &Path) -> io::Result<String> {
    let mut lines = String::new();
    for file in all_files(base).map_err(io::Error::other)? {
        let file = file.canonicalize()?;
        let meta = std::fs::metadata(&file)?;
        let changed = meta.modified()?.duration_since(UNIX_EPOCH);
        let changed = changed.unwrap_or_default().as_nanos();
        lines += &format!("{} {} {changed}", file.display(), meta.len());
        // Programs can set the modification time back, but not the change time of the inode.
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

/// The content hash, built tensor by tensor, in order.
pub(super) struct ContentHash(Sha256);

impl ContentHash {
    pub(super) fn begin(precision: Precision) -> ContentHash {
        ContentHash(begin(precision))
    }

    pub(super) fn add(&mut self, name: &str, tensor: Option<&TensorView<'_>>) {
        let hash = |data: &[u8]| Sha256::digest(data).to_vec();
        add(&mut self.0, name, tensor, hash);
    }

    pub(super) fn finish(self) -> String {
        encode_string(&self.0.finalize())
    }
}

/// The name of a cached file.
pub(super) fn file_name(outline: &str, content: &str) -> PathBuf {
    PathBuf::from(format!("{outline}-{content}.{GGUF}"))
}

fn begin(precision: Precision) -> Sha256 {
    Sha256::new_with_prefix(format!("lory {QUANTIZER} {precision}\n"))
}

/// Adds a tensor under its GGUF name. Names hold no line feeds, so two different lists never hash the same text.
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
