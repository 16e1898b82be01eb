//! Unpacks the zip archive of an adapter that a client uploads.
//!
//! An archive is untrusted. Only the two files of an adapter are extracted, each up to its limit whatever size the archive
//! declares, to names that we choose. A path that leads out of the archive, or a link, refuses the whole archive.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use formats::disk;
use formats::peft::{self, OtherFormat};
use zip::ZipArchive;
use zip::read::ZipFile;

use crate::uploads::UploadError;

/// The most files of an archive.
const MAX_ENTRIES: usize = 1000;
/// The most bytes that are read to list the files of an archive.
const MAX_DIRECTORY: u64 = 4 << 20;
/// The largest end of an archive: its end record and the longest comment.
const MAX_END: u64 = 66 << 10;
/// The most bytes of `adapter_config.json`; the limit of the weights is [`registry::blob::MAX_WEIGHTS`].
const MAX_CONFIG: u64 = 1 << 20;
/// The most names of skipped files that are returned.
const MAX_SKIPPED: usize = 20;

/// Extracts the two files of an adapter into `dir`; returns the names of the other files. Of several adapters, such as a trainer's result next to
/// its checkpoints, it is the one in the fewest folders.
///
/// # Errors
/// [`UploadError`], naming the file in the archive.
pub(crate) fn unpack(archive: &Path, dir: &Path) -> Result<Vec<String>, UploadError> {
    let mut archive = open_archive(archive)?;
    let files = list_files(&mut archive)?;
    let folder = adapter_folder(&files)?;
    let mut skipped = Vec::new();
    for listed in files {
        match listed.adapter_file {
            Some((file, limit)) if listed.folder == folder => {
                let mut entry = archive.by_index(listed.index).map_err(broken)?;
                extract(&mut entry, file, limit, dir)?;
            }
            _ => skipped.push(listed.name),
        }
    }
    skipped.truncate(MAX_SKIPPED);
    Ok(skipped)
}

/// A file of an archive.
struct ListedFile {
    index: usize,
    /// Its name for messages.
    name: String,
    folder: PathBuf,
    /// The file of an adapter that it is, and the most bytes that it may have.
    adapter_file: Option<(&'static str, u64)>,
}

/// The files of an archive, each with a path that stays in it.
fn list_files(archive: &mut ZipArchive<BoundedReader>) -> Result<Vec<ListedFile>, UploadError> {
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(broken)?;
        let (name, path) = checked_path(&entry)?;
        if !entry.is_dir() && !name.ends_with('\\') {
            files.push(ListedFile {
                index,
                name,
                folder: path.parent().unwrap_or(Path::new("")).to_owned(),
                adapter_file: adapter_file(&path),
            });
        }
    }
    Ok(files)
}

/// The folder of the adapter: of those with both files, the one at the smallest depth.
fn adapter_folder(files: &[ListedFile]) -> Result<PathBuf, UploadError> {
    let mut found: BTreeMap<&Path, BTreeSet<&str>> = BTreeMap::new();
    for listed in files {
        let Some((file, _)) = listed.adapter_file else {
            continue;
        };
        if !found.entry(&listed.folder).or_default().insert(file) {
            return Err(UploadError::Entry {
                name: listed.name.clone(),
                message: "is in it twice; send it once".to_owned(),
            });
        }
    }
    let has = |wanted: &str| {
        let mut paths = files.iter().map(|listed| inner_path(&listed.name));
        paths.any(|path| path.is_some_and(|path| path.ends_with(wanted)))
    };
    if let Some(found) = OtherFormat::of(has) {
        return Err(UploadError::OtherFormat(found));
    }
    for file in [peft::CONFIG_FILE, peft::WEIGHTS_FILE] {
        if !found.values().any(|files| files.contains(file)) {
            return Err(UploadError::Missing { file });
        }
    }
    let whole = found.iter().filter(|(_, files)| files.len() == 2);
    let whole: Vec<&Path> = whole.map(|(folder, _)| *folder).collect();
    let depth = |folder: &&Path| folder.components().count();
    let least = whole.iter().map(depth).min().ok_or(UploadError::Apart)?;
    let mut first = whole.into_iter().filter(|folder| depth(folder) == least);
    let adapter = first.next().ok_or(UploadError::Apart)?;
    let others: Vec<&Path> = first.collect();
    if others.is_empty() {
        return Ok(adapter.to_owned());
    }
    let all = [&[adapter], &others[..]].concat();
    let shown = all.iter().take(MAX_SKIPPED);
    Err(UploadError::Several {
        folders: shown.map(|folder| folder.display().to_string()).collect(),
        count: all.len(),
    })
}

/// Opens an archive and checks how many files it has, with a limit on what is read of it.
fn open_archive(archive: &Path) -> Result<ZipArchive<BoundedReader>, UploadError> {
    let mut file = File::open(archive).map_err(broken)?;
    if is_zip64(&mut file).map_err(broken)? {
        let message = format!(
            "it is a zip64 archive, for more than 65535 files; at most {MAX_ENTRIES} are allowed"
        );
        return Err(UploadError::Archive(message));
    }
    let left = Rc::new(Cell::new(MAX_DIRECTORY));
    let bounded = BoundedReader {
        file,
        left: Rc::clone(&left),
    };
    let archive = ZipArchive::new(bounded).map_err(|error| match left.get() {
        0 => UploadError::Archive(format!(
            "its list of files is larger than {MAX_DIRECTORY} bytes"
        )),
        _ => broken(error),
    })?;
    left.set(u64::MAX);
    if archive.len() > MAX_ENTRIES {
        let message = format!(
            "it has {} files; at most {MAX_ENTRIES} are allowed",
            archive.len()
        );
        return Err(UploadError::Archive(message));
    }
    Ok(archive)
}

fn broken(error: impl std::fmt::Display) -> UploadError {
    UploadError::Archive(error.to_string())
}

/// An entry's name for messages, and its path, which must stay in the archive.
fn checked_path(entry: &ZipFile<'_, BoundedReader>) -> Result<(String, PathBuf), UploadError> {
    let whole = entry.name().map_err(broken)?;
    let name: String = whole.chars().take(200).collect();
    let refused = |message: &str| UploadError::Entry {
        name: name.clone(),
        message: message.to_owned(),
    };
    let Some(path) = inner_path(&whole) else {
        return Err(refused("leads out of the archive"));
    };
    if entry.is_symlink() {
        return Err(refused("is a link; put the file itself into the archive"));
    }
    Ok((name, path))
}

/// The path that an entry's name spells; `None` if it leads out of the archive. Programs on Windows write backslashes, and others begin names with
/// `./`.
fn inner_path(name: &str) -> Option<PathBuf> {
    let name = name.replace('\\', "/");
    let mut path = PathBuf::new();
    let is_root = name.starts_with('/') || name.contains(['\0', ':']);
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => path.push(part),
        }
    }
    (!is_root).then_some(path)
}

/// The file of an adapter that `path` names, and the most bytes that it may have.
fn adapter_file(path: &Path) -> Option<(&'static str, u64)> {
    let files = [
        (peft::CONFIG_FILE, MAX_CONFIG),
        (peft::WEIGHTS_FILE, registry::blob::MAX_WEIGHTS),
    ];
    files
        .into_iter()
        // macOS adds a folder of its own with files of the same names.
        .find(|(file, _)| {
            path.file_name().is_some_and(|name| name == *file) && !path.starts_with("__MACOSX")
        })
}

/// Writes an entry to `file` in `dir`, up to `limit` bytes: the archive may declare any size.
fn extract(entry: &mut dyn Read, file: &str, limit: u64, dir: &Path) -> Result<(), UploadError> {
    let target = dir.join(file);
    let io = |source| UploadError::Io {
        path: target.clone(),
        source,
    };
    let mut out = disk::create(&target).map_err(io)?;
    let mut entry = entry.take(limit + 1);
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let count = entry.read(&mut buffer).map_err(broken)?;
        if count == 0 {
            break;
        }
        copied += count as u64;
        if copied > limit {
            return Err(UploadError::TooLarge {
                name: file.to_owned(),
                limit,
            });
        }
        out.write_all(&buffer[..count]).map_err(io)?;
    }
    out.sync_all().map_err(io)
}

/// Whether the end of the archive has a zip64 record, which may announce any number of files; memory for them is reserved first.
fn is_zip64(file: &mut File) -> std::io::Result<bool> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_END)))?;
    let mut end = Vec::new();
    Read::by_ref(file).take(MAX_END).read_to_end(&mut end)?;
    file.rewind()?;
    // The locator of the zip64 record has 20 bytes, and the end record follows.
    Ok(end
        .windows(24)
        .any(|bytes| bytes.starts_with(b"PK\x06\x07") && bytes.ends_with(b"PK\x05\x06")))
}

/// A file of which a bounded number of bytes can be read.
struct BoundedReader {
    file: File,
    left: Rc<Cell<u64>>,
}

impl Read for BoundedReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => {
                self.left.set(left);
                Ok(count)
            }
            None => {
                self.left.set(0);
                Err(std::io::Error::other("the limit of bytes is reached"))
            }
        }
    }
}

impl Seek for BoundedReader {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use tempfile::NamedTempFile;

    use super::*;

    /// Unpacks an archive of these files; returns the number of extracted files, and the skipped names.
    fn unpacked(files: &[(&str, &[u8])]) -> Result<(usize, Vec<String>), UploadError> {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.zip");
        let mut writer = ZipWriter::new(File::create(&archive).unwrap());
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        for (name, bytes) in files {
            writer.start_file(*name, options).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        let dir = folder.path().join("out");
        std::fs::create_dir(&dir).unwrap();
        let skipped = unpack(&archive, &dir)?;
        // Nothing was written elsewhere.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        Ok((std::fs::read_dir(dir).unwrap().count(), skipped))
    }

    const CONFIG: (&str, &[u8]) = ("adapter_config.json", b"{}");
    const WEIGHTS: (&str, &[u8]) = ("adapter_model.safetensors", b"w");

    #[test]
    fn the_two_files_are_extracted_from_any_folder() {
        assert_eq!(unpacked(&[CONFIG, WEIGHTS]).unwrap(), (2, Vec::new()));
        let nested = [
            ("x/y/adapter_config.json", CONFIG.1),
            ("x/y/adapter_model.safetensors", WEIGHTS.1),
            ("x/y/README.md", b"r"),
            ("__MACOSX/x/y/._adapter_config.json", b"r"),
        ];
        let (files, skipped) = unpacked(&nested).unwrap();
        assert_eq!((files, skipped.len()), (2, 2));
    }

    #[test]
    fn adapter_in_another_format_is_named() {
        for (weights, expected) in [
            ("adapter_model.bin", "a pickle, which is not read"),
            ("adapters.safetensors", "an MLX adapter, which are not read"),
        ] {
            let name = format!("x/{weights}");
            let files = [("x/adapter_config.json", CONFIG.1), (&name, b"w")];
            let message = unpacked(&files).unwrap_err().to_string();
            assert!(
                message.contains(weights) && message.contains(expected),
                "{message}"
            );
        }
    }

    #[test]
    fn archives_of_other_systems_are_read() {
        for names in [
            [
                "x\\adapter_config.json",
                "x\\adapter_model.safetensors",
                "x\\sub\\",
            ],
            ["./adapter_config.json", "adapter_model.safetensors", "./"],
            [
                "x/./adapter_config.json",
                "x\\adapter_model.safetensors",
                "x/notes..txt",
            ],
            [
                "x/adapter_config.json",
                "x/adapter_model.safetensors",
                "__MACOSX/x/adapter_config.json",
            ],
        ] {
            let files = names.map(|name| (name, &b"w"[..]));
            let (files, _) = unpacked(&files).unwrap_or_else(|error| panic!("{names:?}: {error}"));
            assert_eq!(files, 2, "{names:?}");
        }
    }

    #[test]
    fn adapter_of_a_trainers_folder_is_found_next_to_its_checkpoints() {
        let (files, skipped) = unpacked(&[
            ("run/checkpoint-10/adapter_config.json", b"{}"),
            ("run/checkpoint-10/adapter_model.safetensors", b"old"),
            ("run/adapter_config.json", b"{}"),
            ("run/adapter_model.safetensors", b"new"),
            ("run/checkpoint-20/adapter_config.json", b"{}"),
            ("adapter_config.json", b"of nothing"),
        ])
        .unwrap();
        assert_eq!((files, skipped.len()), (2, 4));
        assert!(
            skipped.iter().all(|name| !name.starts_with("run/adapter")),
            "{skipped:?}"
        );
    }

    #[test]
    fn unsafe_paths_large_files_and_other_archives_are_refused() {
        let refused = |files: &[(&str, &[u8])]| unpacked(files).unwrap_err().to_string();
        for path in [
            "../adapter_config.json",
            "/etc/adapter_config.json",
            "a/../../adapter_config.json",
            "..\\adapter_config.json",
            "\\adapter_config.json",
            "C:\\adapter_config.json",
            "a\\..\\adapter_config.json",
        ] {
            let message = refused(&[(path, b"{}"), WEIGHTS]);
            assert!(
                message.contains("leads out of the archive"),
                "{path}: {message}"
            );
        }
        let zeros = vec![0; MAX_CONFIG as usize + 1];
        let message = refused(&[(CONFIG.0, &zeros), WEIGHTS]);
        assert!(message.contains("larger than 1048576 bytes"), "{message}");
        assert!(refused(&[CONFIG]).contains("has no adapter_model.safetensors"));
        assert!(refused(&[WEIGHTS]).contains("has no adapter_config.json"));
        let twice = refused(&[CONFIG, WEIGHTS, ("./adapter_config.json", b"{}")]);
        assert!(twice.contains("is in it twice"), "{twice}");
        let apart = refused(&[CONFIG, ("b/adapter_model.safetensors", b"w")]);
        assert!(apart.contains("in different folders"), "{apart}");
        let two = refused(&[
            ("run/a/adapter_config.json", b"{}"),
            ("run/a/adapter_model.safetensors", b"w"),
            ("run/b/adapter_config.json", b"{}"),
            ("run/b/adapter_model.safetensors", b"w"),
        ]);
        assert!(two.contains("2 adapters: run/a, run/b; send one"), "{two}");
        let names: Vec<String> = (0..=MAX_ENTRIES).map(|n| format!("f{n}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(refused(&many).contains("at most 1000"));
        let empty = NamedTempFile::new().unwrap();
        let message = unpack(empty.path(), Path::new("nowhere"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("not a readable zip archive"), "{message}");
    }

    #[test]
    fn list_of_files_is_bounded_before_it_is_read() {
        let long: Vec<String> = (0..80).map(|n| format!("{n:060000}")).collect();
        let long: Vec<(&str, &[u8])> = long.iter().map(|name| (name.as_str(), &b""[..])).collect();
        let message = unpacked(&long).unwrap_err().to_string();
        assert!(message.contains("larger than 4194304 bytes"), "{message}");
        // The end of an archive that announces 2^40 files.
        let announced = (1u64 << 40).to_le_bytes();
        let record = [
            b"PK\x06\x06".as_slice(),
            &44u64.to_le_bytes(),
            &[45, 0, 45, 0],
            &[0; 8],
        ];
        let record = [record.concat(), announced.to_vec(), announced.to_vec()].concat();
        let record = [record, (46u64 << 40).to_le_bytes().to_vec(), vec![0; 8]].concat();
        let locator = [b"PK\x06\x07".as_slice(), &[0; 12], &[1, 0, 0, 0]].concat();
        let end = [b"PK\x05\x06".as_slice(), &[0; 4], &[0xff; 12], &[0; 2]].concat();
        let mut archive = NamedTempFile::new().unwrap();
        archive.write_all(&[record, locator, end].concat()).unwrap();
        let refused = unpack(archive.path(), Path::new("nowhere")).unwrap_err();
        assert!(refused.to_string().contains("zip64"), "{refused}");
    }
}
