//! Writes the quantized tensors of one base to a new file of the cache.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use formats::atomic_file::AtomicFile;
use formats::gguf::{GgufStream, Value};

use super::marker;
use super::quant_source::{ContentHash, QuantSource, file_name};

/// A new file of the cache. If it is dropped before [`CacheWriter::finish`], nothing stays on disk.
pub struct CacheWriter<'a> {
    stream: RefCell<io::Result<GgufStream>>,
    content: RefCell<ContentHash>,
    marker: Option<PathBuf>,
    outline: String,
    file: AtomicFile,
    folder: &'a Path,
    source: QuantSource<'a>,
}

impl<'a> CacheWriter<'a> {
    /// Begins a file in `folder`; `marker` will name it.
    pub(super) fn begin(
        folder: &'a Path,
        source: QuantSource<'a>,
        marker: Option<PathBuf>,
    ) -> io::Result<CacheWriter<'a>> {
        let mut file = AtomicFile::create_private_in(folder)?;
        let path = source.path.display().to_string();
        let metadata = BTreeMap::from([
            ("lory.source".to_owned(), Value::from(path.as_str())),
            (
                "lory.precision".to_owned(),
                Value::from(source.precision.name()),
            ),
        ]);
        let stream = GgufStream::begin(file.file().try_clone()?, &metadata, source.tensors)?;
        Ok(CacheWriter {
            stream: RefCell::new(Ok(stream)),
            content: RefCell::new(ContentHash::begin(source.precision)),
            marker,
            outline: source.outline(),
            file,
            folder,
            source,
        })
    }

    /// Writes a quantized tensor and hashes the tensor that it was made from. [`CacheWriter::finish`] reports the first error,
    /// because the base can be used even if it cannot be cached.
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

    /// Moves the complete file to its name in the cache.
    ///
    /// # Errors
    /// A tensor or the file could not be written. Nothing stays on disk.
    pub fn finish(self) -> io::Result<()> {
        self.stream.into_inner()?.finish()?;
        let name = file_name(&self.outline, &self.content.into_inner().finish());
        self.file.commit(&self.folder.join(&name))?;
        if let Some(marker) = &self.marker {
            marker::write(marker, name.as_os_str().as_encoded_bytes());
        }
        Ok(())
    }
}
