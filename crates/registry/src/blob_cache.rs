//! The cache of a remote store's blobs in a folder of this machine, `<sha256>/` each. A fetch removes the copies that were used
//! longest ago to stay within a bound. A copy that is missing is fetched again. Folders with other names are left alone.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use formats::{atomic_file, disk, peft};

/// The most bytes of all copies together; the copy that was fetched last always stays.
pub const MAX_BYTES: u64 = 8 << 30;
/// The age at which an incomplete copy of an earlier version counts as abandoned.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// Marks a copy as used now.
pub(crate) fn touch(dir: &Path) {
    // If the time cannot be set, the copy is only removed earlier.
    if let Ok(file) = File::options()
        .write(true)
        .open(dir.join(peft::CONFIG_FILE))
    {
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
    }
}

fn is_sha256(name: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.len() == 64 && name.bytes().all(hex)
}

/// Whether an earlier version made the name for a copy that it fetched or removed.
fn is_unfinished_copy(name: &str) -> bool {
    let fetched = name.strip_prefix(".fetch-");
    let fetched = fetched.is_some_and(|rest| {
        rest.len() == 6 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    let removed = name.strip_prefix(".leaving-");
    fetched || removed.is_some_and(is_sha256)
}

struct CachedCopy {
    dir: PathBuf,
    used: SystemTime,
    bytes: u64,
}

/// Removes the copies that were used longest ago, except `keep`, until all of them take at most `limit` bytes. A copy that cannot
/// be removed stays until the next fetch.
pub(crate) fn prune(cache: &Path, keep: &Path, limit: u64) {
    let mut copies = Vec::new();
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let dir = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_unfinished_copy(&name) {
            let age = entry.metadata().and_then(|data| data.modified());
            let age = age.ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > ABANDONED) {
                let _ = disk::remove_folder(&dir);
            }
        }
        if !is_sha256(&name) {
            continue;
        }
        let Ok(config) = dir.join(peft::CONFIG_FILE).metadata() else {
            continue;
        };
        let weights = dir.join(peft::WEIGHTS_FILE).metadata();
        copies.push(CachedCopy {
            used: config.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            bytes: config.len() + weights.map_or(0, |weights| weights.len()),
            dir,
        });
    }
    copies.sort_by_key(|copy| copy.used);
    let mut bytes: u64 = copies.iter().map(|copy| copy.bytes).sum();
    for copy in copies {
        if bytes <= limit {
            return;
        }
        if copy.dir == keep {
            continue;
        }
        // It disappears in one step, so that no reader finds half a copy.
        if atomic_file::remove_folder(&copy.dir).is_ok() {
            bytes -= copy.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_copy_is_removed_first() {
        let cache = tempfile::tempdir().unwrap();
        let copy = |name: &str, hours: u64| {
            let dir = cache.path().join(name.repeat(64));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(peft::CONFIG_FILE), [0; 20]).unwrap();
            fs::write(dir.join(peft::WEIGHTS_FILE), [0; 80]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(hours * 3600);
            let file = File::options()
                .write(true)
                .open(dir.join(peft::CONFIG_FILE))
                .unwrap();
            file.set_times(FileTimes::new().set_modified(then)).unwrap();
            dir
        };
        let (old, older, oldest, new) = (copy("b", 2), copy("c", 3), copy("d", 4), copy("a", 0));
        let unfinished = cache.path().join(".fetch-Ab12Cd");
        fs::create_dir(&unfinished).unwrap();
        prune(cache.path(), &new, 400);
        assert!(oldest.exists());
        prune(cache.path(), &new, 399);
        assert!(!oldest.exists() && older.exists());
        touch(&older);
        prune(cache.path(), &new, 200);
        assert!(older.exists() && !old.exists());
        // The copy that was just fetched stays, even if it is larger than the limit.
        prune(cache.path(), &new, 10);
        assert!(new.exists() && !older.exists() && unfinished.exists());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 2);
    }

    #[test]
    fn adapters_of_someone_else_are_never_removed() {
        let cache = tempfile::tempdir().unwrap();
        for name in ["mine", ".fetch-mine", ".leaving-mine"] {
            let dir = cache.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(peft::CONFIG_FILE), [0; 20]).unwrap();
            fs::write(dir.join(peft::WEIGHTS_FILE), [0; 80]).unwrap();
            let old = SystemTime::now() - ABANDONED * 2;
            File::open(&dir).unwrap().set_modified(old).unwrap();
        }
        prune(cache.path(), &cache.path().join("new"), 0);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 3);
    }
}
