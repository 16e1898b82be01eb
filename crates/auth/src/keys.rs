//! The keys in force. A file of keys is reloaded when it changes; if the new file has an error, the old keys stay in force.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use crate::error::{AuthError, KeysError};
use crate::key::Key;
use crate::key_entry::KeyEntry;
use crate::secret::{MAX_CHARACTERS, SecretHash};
use crate::{key_file, key_variable};

/// The environment variable that may hold keys.
pub const VARIABLE: &str = "LORY_API_KEYS";

/// All keys.
#[derive(Debug)]
pub struct Keys {
    file: Option<PathBuf>,
    /// The keys of the environment variable, which never change.
    fixed: Vec<KeyEntry>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    keys: Arc<Vec<Arc<Key>>>,
    version: Option<FileVersion>,
}

/// The modification time and length of a file; at least one differs after a change.
type FileVersion = (Option<SystemTime>, u64);

impl Keys {
    /// The keys of a file and of the variable's text; none if neither is given.
    ///
    /// # Errors
    /// [`KeysError`], also if the file does not exist.
    pub fn open(file: Option<&Path>, variable: Option<&str>) -> Result<Option<Keys>, KeysError> {
        let variable = variable.filter(|text| !text.trim().is_empty());
        if file.is_none() && variable.is_none() {
            return Ok(None);
        }
        let keys = Keys {
            file: file.map(Path::to_owned),
            fixed: match variable {
                Some(text) => key_variable::parse_variable(VARIABLE, text)?,
                None => Vec::new(),
            },
            state: RwLock::new(State {
                keys: Arc::default(),
                version: None,
            }),
        };
        keys.reload()?;
        Ok(Some(keys))
    }

    /// The number of keys.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// The key with this secret. All keys are compared, each in constant time, so that the time does not depend on the secret.
    ///
    /// # Errors
    /// [`AuthError::InvalidKey`].
    pub fn find(&self, secret: &str) -> Result<Arc<Key>, AuthError> {
        if secret.len() > 4 * MAX_CHARACTERS {
            return Err(AuthError::InvalidKey);
        }
        let digest = SecretHash::of(secret);
        let keys = self.all();
        let mut found = None;
        for key in keys.iter() {
            if key.sha256().matches(&digest) {
                found = Some(key);
            }
        }
        found.cloned().ok_or(AuthError::InvalidKey)
    }

    /// Reloads the file if it changed since it was last examined. Returns whether it did.
    ///
    /// # Errors
    /// As [`Keys::reload`]. The next call does not try again unless the file changes once more.
    pub fn reload_if_changed(&self) -> Result<bool, KeysError> {
        let Some(path) = &self.file else {
            return Ok(false);
        };
        let version = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .version;
        if file_version(path) == version {
            return Ok(false);
        }
        self.reload().map(|()| true)
    }

    /// Reloads the file.
    ///
    /// # Errors
    /// [`KeysError`]; the old keys then stay in force.
    pub fn reload(&self) -> Result<(), KeysError> {
        let mut entries = self.fixed.clone();
        if let Some(path) = &self.file {
            // Examined before it is read: a change made meanwhile is then noticed the next time.
            let version = file_version(path);
            self.state
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .version = version;
            let text = key_file::read_text(path)?.ok_or_else(|| KeysError::Io {
                path: path.clone(),
                source: std::io::Error::other("no such file; `lory key new` makes one"),
            })?;
            let place = path.display().to_string();
            let fixed: HashSet<&str> = self.fixed.iter().map(|entry| &*entry.name).collect();
            let read = key_file::parse(&place, &text)?;
            if let Some(twice) = read.iter().find(|entry| fixed.contains(&*entry.name)) {
                let name = &twice.name;
                let message = format!("key {name} is in {VARIABLE} too; rename one of them");
                return Err(KeysError::Invalid { place, message });
            }
            entries.extend(read);
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let before: HashMap<&str, &Key> =
            state.keys.iter().map(|key| (key.name(), &**key)).collect();
        let keys = entries
            .into_iter()
            .map(|entry| {
                let old = before.get(&*entry.name).copied();
                Arc::new(Key::new(entry, old))
            })
            .collect();
        state.keys = Arc::new(keys);
        Ok(())
    }

    fn all(&self) -> Arc<Vec<Arc<Key>>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.keys)
    }
}

fn file_version(path: &Path) -> Option<FileVersion> {
    let metadata = path.metadata().ok()?;
    Some((metadata.modified().ok(), metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> (tempfile::TempDir, PathBuf, Keys) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        std::fs::write(&path, text).unwrap();
        let keys = Keys::open(Some(&path), None).unwrap().unwrap();
        (folder, path, keys)
    }

    fn table(name: &str, secret: &str, more: &str) -> String {
        let sha256 = SecretHash::of(secret);
        format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\n{more}\n")
    }

    #[test]
    fn key_is_found_by_its_secret_alone() {
        let (_folder, _, keys) = keys(&(table("a", "secret a", "") + &table("b", "secret b", "")));
        assert_eq!(keys.find("secret b").unwrap().name(), "b");
        for wrong in [
            "",
            "secret",
            "secret a ",
            &"x".repeat(100_000),
            &SecretHash::of("secret a").to_string(),
        ] {
            assert_eq!(keys.find(wrong).unwrap_err(), AuthError::InvalidKey);
        }
    }

    #[test]
    fn changed_file_is_reloaded_and_a_broken_one_is_ignored() {
        let (_folder, path, keys) = keys(&table("a", "a", "requests_per_minute = 1"));
        keys.find("a").unwrap().count_request().unwrap();
        assert!(!keys.reload_if_changed().unwrap());
        let more = table("a", "a", "requests_per_minute = 1") + &table("b", "b", "");
        std::fs::write(&path, &more).unwrap();
        assert!(keys.reload_if_changed().unwrap());
        assert_eq!((keys.count(), keys.find("b").is_ok()), (2, true));
        // Reloading does not refill the limits.
        assert!(keys.find("a").unwrap().count_request().is_err());
        std::fs::write(&path, more + "[[key]]").unwrap();
        assert!(
            keys.reload_if_changed()
                .unwrap_err()
                .to_string()
                .contains("keys.toml:")
        );
        assert!(!keys.reload_if_changed().unwrap());
        assert!(keys.find("b").is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(keys.reload_if_changed().is_err());
        assert!(keys.find("b").is_ok());
        std::fs::write(&path, table("b", "b", "")).unwrap();
        assert!(keys.reload_if_changed().unwrap());
        assert!(keys.find("a").is_err());
    }

    #[test]
    fn keys_come_from_the_file_the_variable_or_both() {
        assert!(Keys::open(None, None).unwrap().is_none());
        assert!(Keys::open(None, Some(" ")).unwrap().is_none());
        let secret = "s".repeat(40);
        let variable = format!("env={secret}");
        let (_folder, path, _) = keys(&table("a", "a", ""));
        let both = Keys::open(Some(&path), Some(&variable)).unwrap().unwrap();
        assert!(both.find("a").is_ok() && both.find(&secret).is_ok());
        let twice = Keys::open(Some(&path), Some(&format!("a={secret}"))).unwrap_err();
        assert!(twice.to_string().contains("is in LORY_API_KEYS too"));
        let missing = Keys::open(Some(Path::new("/nowhere/keys")), None).unwrap_err();
        assert!(missing.to_string().contains("lory key new"), "{missing}");
    }
}
