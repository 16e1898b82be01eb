//! The keys in force. A file of keys is read again when it changes; one that is broken then leaves those in force that were.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use crate::error::{Denied, KeysError};
use crate::file::{self, Entry};
use crate::rate::Bucket;
use crate::secret::{Digest, MAX_CHARACTERS};

/// The environment variable that may hold keys.
pub const VARIABLE: &str = "LORY_API_KEYS";

/// One key: what it may use, and what of it is left this minute.
#[derive(Debug)]
pub struct Key {
    entry: Entry,
    requests: Option<Arc<Bucket>>,
    tokens: Option<Arc<Bucket>>,
}

impl Key {
    fn new(entry: Entry, before: Option<&Key>) -> Key {
        // What was used up stays used up when the file is read again.
        let bucket = |limit: Option<u32>, before: Option<&Arc<Bucket>>| {
            let limit = limit?;
            let same = before.filter(|bucket| bucket.per_minute() == limit);
            Some(
                same.cloned()
                    .unwrap_or_else(|| Arc::new(Bucket::new(limit))),
            )
        };
        Key {
            requests: bucket(
                entry.requests_per_minute,
                before.and_then(|key| key.requests.as_ref()),
            ),
            tokens: bucket(
                entry.tokens_per_minute,
                before.and_then(|key| key.tokens.as_ref()),
            ),
            entry,
        }
    }

    /// Its weight where requests wait.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.entry.share
    }

    /// What logs call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Whether it may use the persona of this name.
    #[must_use]
    pub fn may_use(&self, persona: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => persona.starts_with(beginning),
            None => persona == pattern,
        };
        self.entry
            .personas
            .as_ref()
            .is_none_or(|patterns| patterns.iter().any(matches))
    }

    /// # Errors
    /// [`Denied::Persona`].
    pub fn check_persona(&self, persona: &str) -> Result<(), Denied> {
        if self.may_use(persona) {
            return Ok(());
        }
        Err(self.no_persona(persona))
    }

    /// Whether it may ask the base, which is called `name`.
    ///
    /// # Errors
    /// [`Denied::Persona`].
    pub fn check_base(&self, name: &str) -> Result<(), Denied> {
        if self.entry.base {
            return Ok(());
        }
        Err(self.no_persona(name))
    }

    fn no_persona(&self, asked: &str) -> Denied {
        let mut may: Vec<&str> = match &self.entry.personas {
            Some(personas) => personas.iter().map(String::as_str).collect(),
            None => vec!["every persona"],
        };
        if self.entry.base {
            may.push("the base");
        }
        Denied::Persona {
            key: self.entry.name.clone(),
            asked: asked.chars().take(file::MAX_NAME).collect(),
            may: match may.is_empty() {
                true => "nothing".to_owned(),
                false => may.join(", "),
            },
        }
    }

    /// # Errors
    /// [`Denied::NotAdmin`].
    pub fn check_admin(&self) -> Result<(), Denied> {
        if self.entry.admin {
            return Ok(());
        }
        let key = self.entry.name.clone();
        Err(Denied::NotAdmin { key })
    }

    /// # Errors
    /// [`Denied::NoTraining`].
    pub fn check_train(&self) -> Result<(), Denied> {
        if self.entry.train || self.entry.admin {
            return Ok(());
        }
        let key = self.entry.name.clone();
        Err(Denied::NoTraining { key })
    }

    /// # Errors
    /// [`Denied::Priority`] for one that goes before others' 0.
    pub fn check_priority(&self, priority: i32) -> Result<(), Denied> {
        if priority >= 0 || self.entry.admin {
            return Ok(());
        }
        let key = self.entry.name.clone();
        Err(Denied::Priority { key })
    }

    /// Counts a request.
    ///
    /// # Errors
    /// [`Denied::Requests`].
    pub fn count_request(&self) -> Result<(), Denied> {
        let Some(bucket) = &self.requests else {
            return Ok(());
        };
        bucket
            .take(1, Instant::now())
            .map_err(|retry_after| Denied::Requests {
                key: self.entry.name.clone(),
                limit: bucket.per_minute(),
                retry_after,
            })
    }

    /// Takes so many tokens of this minute's; those that turn out not to be needed go back.
    ///
    /// # Errors
    /// [`Denied::Tokens`].
    pub fn hold_tokens(&self, wanted: u64) -> Result<Hold, Denied> {
        let Some(bucket) = &self.tokens else {
            return Ok(Hold::default());
        };
        bucket
            .take(wanted, Instant::now())
            .map_err(|retry_after| Denied::Tokens {
                key: self.entry.name.clone(),
                limit: bucket.per_minute(),
                wanted,
                retry_after,
            })?;
        Ok(Hold {
            bucket: Some(Arc::clone(bucket)),
            tokens: wanted,
        })
    }
}

/// Tokens that a request may take. Dropped, they go back but for those that were used.
#[derive(Debug, Default)]
#[must_use = "dropping the hold gives the tokens back"]
pub struct Hold {
    bucket: Option<Arc<Bucket>>,
    tokens: u64,
}

impl Hold {
    /// So many of them were used.
    pub fn used(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_sub(tokens);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(bucket) = &self.bucket {
            bucket.give_back(self.tokens);
        }
    }
}

/// All keys.
#[derive(Debug)]
pub struct Keys {
    file: Option<PathBuf>,
    /// Those of the environment, which never change.
    fixed: Vec<Entry>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    keys: Arc<Vec<Arc<Key>>>,
    seen: Option<Stamp>,
}

/// What a file shows of itself when it changes.
type Stamp = (Option<SystemTime>, u64);

impl Keys {
    /// Those of a file and those of the variable's text; none if there is neither.
    ///
    /// # Errors
    /// [`KeysError`]; a file that is not there is one.
    pub fn open(file: Option<&Path>, variable: Option<&str>) -> Result<Option<Keys>, KeysError> {
        let variable = variable.filter(|text| !text.trim().is_empty());
        if file.is_none() && variable.is_none() {
            return Ok(None);
        }
        let keys = Keys {
            file: file.map(Path::to_owned),
            fixed: match variable {
                Some(text) => file::parse_variable(VARIABLE, text)?,
                None => Vec::new(),
            },
            state: RwLock::new(State {
                keys: Arc::default(),
                seen: None,
            }),
        };
        keys.read_again()?;
        Ok(Some(keys))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Whose secret this is. Every key is compared, and each in the same time, so the time tells nothing.
    ///
    /// # Errors
    /// [`Denied::UnknownKey`].
    pub fn find(&self, secret: &str) -> Result<Arc<Key>, Denied> {
        if secret.len() > 4 * MAX_CHARACTERS {
            return Err(Denied::UnknownKey);
        }
        let digest = Digest::of(secret);
        let keys = self.all();
        let mut found = None;
        for key in keys.iter() {
            if key.entry.sha256.is(&digest) {
                found = Some(key);
            }
        }
        found.cloned().ok_or(Denied::UnknownKey)
    }

    /// Reads the file again if it is not what it was when it was last looked at.
    ///
    /// # Errors
    /// As [`Keys::read_again`]; the next call does not repeat it unless the file changes once more.
    pub fn read_if_changed(&self) -> Result<bool, KeysError> {
        let Some(path) = &self.file else {
            return Ok(false);
        };
        let seen = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .seen;
        if stamp(path) == seen {
            return Ok(false);
        }
        self.read_again().map(|()| true)
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// [`KeysError`]; the keys then stay as they were.
    pub fn read_again(&self) -> Result<(), KeysError> {
        let mut entries = self.fixed.clone();
        if let Some(path) = &self.file {
            // Looked at before it is read: what is written meanwhile is then seen as new the next time.
            let seen = stamp(path);
            self.state
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .seen = seen;
            let text = file::text(path)?.ok_or_else(|| KeysError::Io {
                path: path.clone(),
                source: std::io::Error::other("no such file; `lory key new` makes one"),
            })?;
            let place = path.display().to_string();
            let fixed: HashSet<&str> = self.fixed.iter().map(|entry| &*entry.name).collect();
            let read = file::parse(&place, &text)?;
            if let Some(twice) = read.iter().find(|entry| fixed.contains(&*entry.name)) {
                let name = &twice.name;
                let message = format!("key {name} stands in {VARIABLE} too; rename one of them");
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

fn stamp(path: &Path) -> Option<Stamp> {
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
        let sha256 = Digest::of(secret);
        format!("[[key]]\nname = '{name}'\nsha256 = '{sha256}'\n{more}\n")
    }

    #[test]
    fn a_key_is_found_by_its_secret_alone() {
        let (_folder, _, keys) = keys(&(table("a", "secret a", "") + &table("b", "secret b", "")));
        assert_eq!(keys.find("secret b").unwrap().name(), "b");
        for wrong in [
            "",
            "secret",
            "secret a ",
            &"x".repeat(100_000),
            &Digest::of("secret a").to_string(),
        ] {
            assert_eq!(keys.find(wrong).unwrap_err(), Denied::UnknownKey);
        }
    }

    #[test]
    fn a_key_may_use_what_it_names() {
        let text =
            table("a", "a", "personas = ['customer', 'acme-*']") + &table("b", "b", "base = false");
        let (_folder, _, keys) = keys(&text);
        let (a, b) = (keys.find("a").unwrap(), keys.find("b").unwrap());
        for (persona, may) in [
            ("customer", true),
            ("acme-warm", true),
            ("acme", false),
            ("customers", false),
        ] {
            assert_eq!(a.may_use(persona), may, "{persona}");
            assert!(b.may_use(persona));
        }
        let denied = a.check_base("tiny").unwrap_err().to_string();
        assert_eq!(
            denied,
            "key a may not use \"tiny\"; it may use customer, acme-*"
        );
        assert!(b.check_base("tiny").is_err() && b.check_admin().is_err());
        assert!(a.check_priority(0).is_ok() && a.check_priority(-1).is_err());
    }

    #[test]
    fn tokens_that_were_not_used_go_back() {
        let (_folder, _, keys) = keys(&table("a", "a", "tokens_per_minute = 600"));
        let key = keys.find("a").unwrap();
        let mut hold = key.hold_tokens(600).unwrap();
        assert!(key.hold_tokens(200).is_err());
        hold.used(350);
        drop(hold);
        assert!(key.hold_tokens(260).is_err());
        let _hold = key.hold_tokens(200).unwrap();
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_a_broken_one_changes_nothing() {
        let (_folder, path, keys) = keys(&table("a", "a", "requests_per_minute = 1"));
        keys.find("a").unwrap().count_request().unwrap();
        assert!(!keys.read_if_changed().unwrap());
        let more = table("a", "a", "requests_per_minute = 1") + &table("b", "b", "");
        std::fs::write(&path, &more).unwrap();
        assert!(keys.read_if_changed().unwrap());
        assert_eq!((keys.count(), keys.find("b").is_ok()), (2, true));
        // Reading it again is no way to a fresh minute.
        assert!(keys.find("a").unwrap().count_request().is_err());
        std::fs::write(&path, more + "[[key]]").unwrap();
        assert!(
            keys.read_if_changed()
                .unwrap_err()
                .to_string()
                .contains("keys.toml:")
        );
        assert!(!keys.read_if_changed().unwrap());
        assert!(keys.find("b").is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(keys.read_if_changed().is_err());
        assert!(keys.find("b").is_ok());
        std::fs::write(&path, table("b", "b", "")).unwrap();
        assert!(keys.read_if_changed().unwrap());
        assert!(keys.find("a").is_err());
    }

    #[test]
    fn keys_come_from_both_places_and_from_none() {
        assert!(Keys::open(None, None).unwrap().is_none());
        assert!(Keys::open(None, Some(" ")).unwrap().is_none());
        let secret = "s".repeat(40);
        let variable = format!("env={secret}");
        let (_folder, path, _) = keys(&table("a", "a", ""));
        let both = Keys::open(Some(&path), Some(&variable)).unwrap().unwrap();
        assert!(both.find("a").is_ok() && both.find(&secret).is_ok());
        let twice = Keys::open(Some(&path), Some(&format!("a={secret}"))).unwrap_err();
        assert!(twice.to_string().contains("stands in LORY_API_KEYS too"));
        let missing = Keys::open(Some(Path::new("/nowhere/keys")), None).unwrap_err();
        assert!(missing.to_string().contains("lory key new"), "{missing}");
    }
}
