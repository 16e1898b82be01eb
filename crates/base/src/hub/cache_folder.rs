//! The cache folder of one base: the lock to fetch into it, the check of the file there, and storing a checked file.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use formats::atomic_file::{self, AtomicFile, AtomicFolder};
use formats::disk;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::known_bases::KnownBase;
use crate::progress::Progress;

/// The lock to fetch into a folder: one process at a time has it. Released when it is dropped, or when the process ends.
pub(super) struct FolderLock {
    folder: PathBuf,
    #[expect(dead_code, reason = "held for its lock")]
    lock: File,
}

impl FolderLock {
    /// Waits for the lock.
    pub fn wait(folder: &Path, progress: &Progress) -> io::Result<Self> {
        let lock = File::create(folder.join(".lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.say("another process is fetching the same file; waiting for it");
                lock.lock()?;
            }
            // A file system without locks: both processes fetch, and the last one replaces the file by an equal one.
            Err(TryLockError::Error(_)) => {
                return Ok(Self {
                    folder: folder.to_owned(),
                    lock,
                });
            }
        }
        atomic_file::remove_leftovers(folder);
        Ok(Self {
            folder: folder.to_owned(),
            lock,
        })
    }

    /// A temporary folder in the cache folder.
    pub fn folder(&self) -> io::Result<AtomicFolder> {
        AtomicFolder::create_in(&self.folder)
    }

    /// Copies `reader` to a new file, checks its length and hash, and moves it to `path`.
    pub fn store(
        &self,
        base: &KnownBase,
        reader: &mut dyn Read,
        path: &Path,
        progress: &Progress,
    ) -> Result<(), String> {
        let io = |error: io::Error| format!("{}: {error}", self.folder.display());
        let mut file = AtomicFile::create_in(&self.folder).map_err(io)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut length = 0u64;
        loop {
            let count = reader
                .read(&mut buffer)
                .map_err(|error| format!("reading failed: {error}"))?;
            if count == 0 {
                break;
            }
            length += count as u64;
            if length > base.bytes {
                return Err(format!(
                    "the file is longer than the {} bytes that {} has",
                    base.bytes, base.id
                ));
            }
            hasher.update(&buffer[..count]);
            file.file().write_all(&buffer[..count]).map_err(io)?;
            progress.add(count as u64);
        }
        check_content(
            base,
            length,
            &base16ct::lower::encode_string(&hasher.finalize()),
        )?;
        make_readable(file.file()).map_err(io)?;
        let file = file.commit(path).map_err(io)?;
        // If the stamp is missing, the next start hashes the file again.
        let _ = file
            .metadata()
            .and_then(|meta| write_stamp(&meta, base.sha256, path));
        Ok(())
    }
}

/// Checks that length and hash are those of `base`.
fn check_content(base: &KnownBase, length: u64, sha256: &str) -> Result<(), String> {
    if length != base.bytes {
        return Err(format!(
            "the file has {length} bytes, {} has {}",
            base.id, base.bytes
        ));
    }
    if sha256 != base.sha256 {
        return Err(format!(
            "the file's sha256 is {sha256}, that of {} is {}",
            base.id, base.sha256
        ));
    }
    Ok(())
}

/// Makes a file readable for all users, whatever the umask is: a cache may be shared.
fn make_readable(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    let _ = file;
    Ok(())
}

/// The state of a file when it was hashed, written next to it.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Stamp {
    bytes: u64,
    modified_ns: u64,
    sha256: String,
}

fn stamp(meta: &std::fs::Metadata, sha256: &str) -> io::Result<Stamp> {
    let since = meta
        .modified()?
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(Stamp {
        bytes: meta.len(),
        modified_ns: since.as_nanos() as u64,
        sha256: sha256.to_owned(),
    })
}

fn stamp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".checked");
    PathBuf::from(name)
}

fn write_stamp(meta: &std::fs::Metadata, sha256: &str, path: &Path) -> io::Result<()> {
    let text = serde_json::to_string(&stamp(meta, sha256)?)?;
    atomic_file::replace(&stamp_path(path), |file| {
        file.write_all(text.as_bytes())?;
        make_readable(file)
    })
}

/// Whether `path` is the complete file of `base`: by the stamp of an earlier check, or else by its hash. `Ok(false)` if there is
/// no file.
pub(super) fn check(base: &KnownBase, path: &Path) -> Result<bool, String> {
    let io = |error: io::Error| format!("{}: {error}", path.display());
    let meta = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        meta => meta.map_err(io)?,
    };
    let wrong = |why: String| format!("{}: {why}", path.display());
    if meta.len() != base.bytes {
        return check_content(base, meta.len(), "")
            .map(|()| false)
            .map_err(wrong);
    }
    let stored = disk::read(&stamp_path(path), 4 << 10).ok();
    let stored = stored.and_then(|text| serde_json::from_slice::<Stamp>(&text).ok());
    if stored.is_some_and(|stored| stamp(&meta, base.sha256).is_ok_and(|now| now == stored)) {
        return Ok(true);
    }
    check_content(base, meta.len(), &hash_file(path).map_err(io)?).map_err(wrong)?;
    let _ = write_stamp(&meta, base.sha256, path);
    Ok(true)
}

/// The sha256 of a file, in hex.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(base16ct::lower::encode_string(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::disk::faults::for_each_fault;

    use super::*;

    const TINY: KnownBase = KnownBase {
        id: "tiny",
        file: "tiny.gguf",
        bytes: 6,
        // printf abcdef | sha256sum
        sha256: "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721",
        upstream: "none",
        package: None,
        hub: ("none/none", "none"),
    };

    #[test]
    fn only_a_file_with_the_known_length_and_hash_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TINY.file);
        std::fs::write(
            folder.path().join(format!("{}old", atomic_file::MARK)),
            "left",
        )
        .unwrap();
        let lock = FolderLock::wait(folder.path(), &Progress::hidden()).unwrap();
        let store = |bytes: &[u8]| lock.store(&TINY, &mut &bytes[..], &path, &Progress::hidden());
        assert!(
            store(b"abcde")
                .unwrap_err()
                .contains("has 5 bytes, tiny has 6")
        );
        assert!(store(b"abcdeg").unwrap_err().contains("sha256 is"));
        assert!(
            store(b"abcdefg")
                .unwrap_err()
                .contains("longer than the 6 bytes")
        );
        assert_eq!(check(&TINY, &path), Ok(false));
        store(b"abcdef").unwrap();
        assert_eq!(check(&TINY, &path), Ok(true));
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [".lock", "tiny.gguf", "tiny.gguf.checked"]);
    }

    #[test]
    fn a_file_that_changed_after_its_stamp_is_hashed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TINY.file);
        std::fs::write(&path, "abcdef").unwrap();
        assert_eq!(check(&TINY, &path), Ok(true));
        assert!(stamp_path(&path).exists());
        // The same length, and another modification time.
        std::fs::write(&path, "abcdeX").unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert!(check(&TINY, &path).unwrap_err().contains("sha256 is"));
        std::fs::write(&path, "abc").unwrap();
        assert!(check(&TINY, &path).unwrap_err().contains("has 3 bytes"));
    }

    #[test]
    fn concurrent_fetches_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TINY.file);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let lock = FolderLock::wait(folder.path(), &Progress::hidden()).unwrap();
                    if check(&TINY, &path) != Ok(true) {
                        lock.store(&TINY, &mut &b"abcdef"[..], &path, &Progress::hidden())
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(check(&TINY, &path), Ok(true));
    }

    #[test]
    fn base_is_complete_or_missing_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(TINY.file);
            let store = || {
                let lock = FolderLock::wait(folder.path(), &Progress::hidden())
                    .map_err(|error| error.to_string())?;
                lock.store(&TINY, &mut &b"abcdef"[..], &path, &Progress::hidden())
            };
            let stored = injection.run(store);
            match check(&TINY, &path) {
                Ok(found) => assert!(found || stored.is_err(), "{injection:?}"),
                Err(why) => panic!("{injection:?}: {why}"),
            }
            store().unwrap();
            assert_eq!(check(&TINY, &path), Ok(true));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        });
    }
}
