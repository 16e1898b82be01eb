//! Opens data files: a file or a folder of files, plain or compressed with gzip or Zstandard.
//!
//! What is compressed is read as a stream, so a small file that decompresses to a large one takes time up to the limit on content, and no
//! memory.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use formats::disk;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};

use super::layout::{Layout, is_object_on_several_lines, layout};
use super::other_format::other_format;
use super::{DataFileError, Unusable};

/// Largest window of a Zstandard file, in bytes: the memory that reading it takes. The format's standard recommends to support this much.
pub const MAX_ZSTD_WINDOW: u64 = 8 << 20;
/// Size of the pieces in which files are read, in bytes.
const BUFFER: usize = 1 << 16;
/// The format's name in messages.
const ZSTANDARD: &str = "Zstandard";
/// Bytes at the beginning of a file that show its format.
const BEGINNING: usize = 1 << 14;

/// The content of a file after decompression, and how its rows are written.
pub struct DataFile<'r> {
    /// Its bytes, without a byte order mark.
    pub content: Counted<Box<dyn BufRead + 'r>>,
    /// How its rows are written.
    pub layout: Layout,
}

impl<'r> DataFile<'r> {
    /// Opens the file at `path`. Its content, after decompression, has at most `most` bytes: reading more fails with [`ContentTooLarge`].
    ///
    /// # Errors
    /// [`DataFileError::Read`], or [`DataFileError::Unusable`] for a file in UTF-16.
    pub fn open(path: &Path, most: u64) -> Result<DataFile<'static>, DataFileError> {
        let opened = disk::open(path);
        let file = opened.map_err(|source| DataFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let file = BufReader::with_capacity(BUFFER, file);
        DataFile::of(file, &path.display().to_string(), most)
    }

    /// The content of `reader`, a file called `name`, as [`DataFile::open`].
    ///
    /// # Errors
    /// As [`DataFile::open`].
    pub fn of(
        mut reader: impl BufRead + 'r,
        name: &str,
        most: u64,
    ) -> Result<DataFile<'r>, DataFileError> {
        let read = |source| DataFileError::Read {
            path: name.into(),
            source,
        };
        let beginning = beginning(&mut reader, 4).map_err(read)?;
        let magic = beginning.clone();
        let reader = io::Cursor::new(beginning).chain(reader);
        let mut plain: Box<dyn BufRead + 'r> = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(BUFFER, Gzip::new(reader))),
            // The second is a frame of other data, which some tools write before the first frame of content.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                Box::new(BufReader::with_capacity(BUFFER, Zstd::new(reader)))
            }
            _ => Box::new(reader),
        };
        let start = self::beginning(&mut plain, BEGINNING).map_err(read)?;
        if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
            return Err(DataFileError::Unusable {
                file: name.to_owned(),
                reason: Unusable::Utf16,
            });
        }
        if let Some(reason) = other_format(&start, name) {
            let file = name.to_owned();
            return Err(DataFileError::Unusable { file, reason });
        }
        let has_mark = start.starts_with(b"\xef\xbb\xbf");
        let text = &start[if has_mark { 3 } else { 0 }..];
        let layout = layout(text, name);
        if layout == Layout::Lines && is_object_on_several_lines(text) {
            return Err(DataFileError::Unusable {
                file: name.to_owned(),
                reason: Unusable::SeveralLines,
            });
        }
        let plain: Box<dyn BufRead + 'r> = Box::new(io::Cursor::new(start).chain(plain));
        let mut content = Counted::new(plain, most);
        if has_mark {
            // A byte order mark counts, but is not part of the first row.
            let mut mark = [0; 3];
            content.read_exact(&mut mark).map_err(read)?;
        }
        Ok(DataFile { content, layout })
    }
}

/// Up to `most` bytes at the beginning of `reader`.
fn beginning(reader: &mut impl BufRead, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The error of content with more bytes than its limit.
#[derive(Debug, thiserror::Error)]
#[error("the content of the file is larger than {0} bytes; split it")]
pub struct ContentTooLarge(u64);

/// Counts and hashes what is read, up to a limit.
pub struct Counted<R> {
    reader: R,
    hasher: Option<Sha256>,
    read: u64,
    most: u64,
}

impl<R: BufRead> Counted<R> {
    /// What `reader` has, up to `most` bytes.
    pub fn new(reader: R, most: u64) -> Self {
        Self {
            reader,
            hasher: Some(Sha256::new()),
            read: 0,
            most,
        }
    }

    /// As this reader, without a hash.
    #[must_use]
    pub fn without_hash(mut self) -> Self {
        self.hasher = None;
        self
    }

    /// How many bytes were read.
    pub fn read_bytes(&self) -> u64 {
        self.read
    }

    /// The hash of what was read, in hex.
    #[must_use]
    pub fn hash(self) -> String {
        base16ct::lower::encode_string(&self.hasher.unwrap_or_default().finalize())
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.read > self.most {
            return Err(io::Error::other(ContentTooLarge(self.most)));
        }
        self.reader.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if let Some(hasher) = &mut self.hasher
            && count > 0
            // What was filled is still there, so this reads nothing.
            && let Ok(filled) = self.reader.fill_buf()
        {
            hasher.update(&filled[..count.min(filled.len())]);
        }
        self.read += count as u64;
        self.reader.consume(count);
    }
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let filled = self.fill_buf()?;
        let count = filled.len().min(into.len());
        into[..count].copy_from_slice(&filled[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The error of a compressed file that ends too early.
fn cut_off(format: &str) -> io::Error {
    let message = format!("the file ends before its {format} data does; is it cut off?");
    io::Error::new(io::ErrorKind::UnexpectedEof, message)
}

/// The error of a compressed file that is damaged.
fn damaged(format: &str) -> io::Error {
    let message = format!("its {format} data is damaged; compress the file again");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The error of a compressed file that goes on with something else.
fn followed_by_others(format: &str) -> io::Error {
    let message = format!(
        "the file has other bytes after its {format} data; remove them, or compress the file again"
    );
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Decompresses the members of a gzip file, one after the other. Zeros after them are padding, as for gzip itself.
struct Gzip<R> {
    /// The member that is read; `None` after the last one.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gzip<R> {
    fn new(reader: R) -> Self {
        Self {
            member: Some(GzDecoder::new(reader)),
        }
    }

    /// Whether `reader`, which is after a member, is at another one.
    fn is_at_member(reader: &mut R) -> io::Result<bool> {
        loop {
            let bytes = reader.fill_buf()?;
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            match bytes.get(zeros) {
                // The first byte of a member; its header is checked when it is read.
                Some(0x1f) if zeros == 0 => return Ok(true),
                Some(_) => return Err(followed_by_others("gzip")),
                None if zeros == 0 => return Ok(false),
                None => reader.consume(zeros),
            }
        }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(into).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => cut_off("gzip"),
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => damaged("gzip"),
                // The disk's.
                _ => error,
            })?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            let ended = self.member.take();
            if let Some(mut reader) = ended.map(GzDecoder::into_inner)
                && Self::is_at_member(&mut reader)?
            {
                self.member = Some(GzDecoder::new(reader));
            }
        }
        Ok(0)
    }
}

/// Decompresses the frames of a Zstandard file, one after the other.
struct Zstd<R> {
    reader: R,
    decoder: FrameDecoder,
    in_frame: bool,
    /// Whether a frame of content was read to its end.
    has_content: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(reader: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW);
        Self {
            reader,
            decoder,
            in_frame: false,
            has_content: false,
        }
    }

    /// Begins the next frame; false at the end of the file.
    fn begin_frame(&mut self) -> io::Result<bool> {
        while let Some(first) = self.reader.fill_buf()?.first() {
            if self.has_content && !matches!(first, 0x28 | 0x50..=0x5f) {
                return Err(followed_by_others(ZSTANDARD));
            }
            match self.decoder.init(&mut self.reader) {
                Ok(()) => return Ok(true),
                // A frame of other data, which is not content.
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let mut skipped = (&mut self.reader).take(length);
                    if io::copy(&mut skipped, &mut io::sink())? < length {
                        return Err(cut_off(ZSTANDARD));
                    }
                }
                Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
                    let message = format!(
                        "its Zstandard window has {requested} bytes, more than {MAX_ZSTD_WINDOW}; compress it without --long and --ultra"
                    );
                    return Err(io::Error::other(message));
                }
                Err(FrameDecoderError::DictNotProvided { .. }) => {
                    let message = "its Zstandard data needs a dictionary; compress it without one";
                    return Err(io::Error::other(message));
                }
                Err(FrameDecoderError::ReadFrameHeaderError(
                    ReadFrameHeaderError::BadMagicNumber(_),
                )) if self.has_content => return Err(followed_by_others(ZSTANDARD)),
                Err(error) => return Err(zstandard_error(&error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                if !self.begin_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            let count = self.decoder.read(into)?;
            if count > 0 {
                return Ok(count);
            }
            if self.decoder.is_finished() {
                // A frame may have no checksum.
                let written = self.decoder.get_checksum_from_data();
                if written.is_some() && written != self.decoder.get_calculated_checksum() {
                    return Err(damaged(ZSTANDARD));
                }
                self.in_frame = false;
                self.has_content = true;
                continue;
            }
            let block = BlockDecodingStrategy::UptoBlocks(1);
            let decoded = self.decoder.decode_blocks(&mut self.reader, block);
            decoded.map_err(|error| zstandard_error(&error))?;
        }
    }
}

/// The error of a Zstandard file, in plain words: the cause is the system's error if there is one.
fn zstandard_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    match causes.find_map(|cause| cause.downcast_ref::<io::Error>()) {
        None => damaged(ZSTANDARD),
        Some(system) if system.kind() == io::ErrorKind::UnexpectedEof => cut_off(ZSTANDARD),
        Some(system) => io::Error::new(system.kind(), system.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Zstandard frame with one raw block of these bytes and this checksum.
    fn frame(content: &[u8], checksum: [u8; 4]) -> Vec<u8> {
        let size = u8::try_from(content.len()).unwrap();
        let block = u32::from(size) << 3 | 1;
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x24, size];
        frame.extend(&block.to_le_bytes()[..3]);
        frame.extend(content);
        frame.extend(checksum);
        frame
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Zstd::new(bytes).read_to_end(&mut content)?;
        Ok(content)
    }

    fn gunzipped(bytes: &[u8]) -> io::Result<Vec<u8>> {
        // Pieces of one byte are the hardest to look ahead in.
        let reader = BufReader::with_capacity(1, bytes);
        let mut content = Vec::new();
        Gzip::new(reader).read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn bytes_after_compressed_data_are_named() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, b"hello\n").unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = frame(b"hello\n", [0x53, 0x88, 0xbd, 0x91]);
        let twice = b"hello\nhello\n";
        assert_eq!(gunzipped(&gzip.repeat(2)).unwrap(), twice);
        assert_eq!(
            gunzipped(&[&gzip[..], &[0; 3000]].concat()).unwrap(),
            b"hello\n"
        );
        for garbage in [
            &b"x"[..],
            b"xyz",
            b"more text that is not compressed",
            b"(",
            b"\0x",
        ] {
            let expected = |format: &str| {
                format!(
                    "the file has other bytes after its {format} data; remove them, or compress the file again"
                )
            };
            let error = gunzipped(&[&gzip[..], garbage].concat()).unwrap_err();
            assert_eq!(error.to_string(), expected("gzip"), "{garbage:?}");
            // The first byte of a frame may be one that is cut off.
            if garbage != b"(" {
                let error = read(&[&zstd[..], garbage].concat()).unwrap_err();
                assert_eq!(error.to_string(), expected(ZSTANDARD), "{garbage:?}");
            }
        }
        for cut in 1..gzip.len() {
            let error = gunzipped(&[&gzip[..], &gzip[..cut]].concat()).unwrap_err();
            assert_eq!(error.to_string(), cut_off("gzip").to_string(), "{cut}");
        }
    }

    #[test]
    fn zstandard_content_that_differs_from_its_checksum_is_damaged() {
        // The last bytes of what `zstd --check` writes for `hello` and a line break.
        let hello = frame(b"hello\n", [0x53, 0x88, 0xbd, 0x91]);
        let changed = frame(b"hallo\n", [0x53, 0x88, 0xbd, 0x91]);
        assert_eq!(read(&hello).unwrap(), b"hello\n");
        assert_eq!(read(&hello.repeat(2)).unwrap(), b"hello\nhello\n");
        for bytes in [&changed, &[&hello[..], &changed, &hello].concat()] {
            let error = read(bytes).unwrap_err().to_string();
            assert_eq!(
                error,
                "its Zstandard data is damaged; compress the file again"
            );
        }
    }
}
