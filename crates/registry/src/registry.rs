//! The registry: opening, reading the log, publishing, and all other changes. Every change is one entry of the log, written
//! with put-if-absent at the next number; a writer that loses the number reads the winner's entry and tries again. So all
//! writers on all machines agree on one order of changes, without a database.
//!
//! ```text
//! adapters/<sha256>/adapter_config.json, adapter_model.safetensors, then manifest.json
//! log/00000000000000000001.json, log/00000000000000000002.json, ...
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use formats::atomic_file;
use object_store::ObjectStore;

use crate::blob::{self, AdapterContent, AdapterRecord, BlobSource};
use crate::error::RegistryError;
use crate::leftovers;
use crate::log_entry::{self, LogEntry, RegistryChange};
use crate::persona::{AdapterRef, Persona};
use crate::personas::Personas;
use crate::settings::PersonaSettings;
use crate::spec::PersonaRef;
use crate::state::{RegistryState, Release};
use crate::store::{RegistryLocation, Store};

/// How often a change is tried while other writers come first.
const MAX_TRIES: usize = 1000;

/// An open registry. All calls block; any number of threads and processes may use it at once.
pub struct Registry {
    pub(crate) store: Arc<Store>,
    /// The folder of adapter files on this machine: the registry's own, or cached copies.
    files: PathBuf,
    remote: bool,
    state: RwLock<Arc<RegistryState>>,
    /// Held while the log is read.
    reading: Mutex<()>,
}

/// A version to publish.
pub struct Publication<'a> {
    /// The persona.
    pub name: &'a str,
    /// Its adapter; without one it is the base with these settings.
    pub content: Option<&'a AdapterContent>,
    /// Its settings; by default those of the current version, or the default settings.
    pub settings: Option<PersonaSettings>,
    /// Whether the name alone means the new version from now on.
    pub current: bool,
    /// Refuse a name that is published already.
    pub only_new: bool,
}

/// A version that was just published.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedVersion {
    /// The persona.
    pub name: String,
    /// The version.
    pub version: u32,
    /// Its adapter's content hash, if it has one.
    pub sha256: Option<String>,
    /// The number of its entry in the log.
    pub sequence: u64,
}

impl Registry {
    /// A registry at `location`; the adapters of a remote one are copied into `cache` when they are needed. Reads nothing yet.
    ///
    /// # Errors
    /// The environment does not configure the bucket.
    pub fn open(location: &RegistryLocation, cache: &Path) -> Result<Registry, RegistryError> {
        let (files, remote) = match location {
            RegistryLocation::Folder(root) => {
                leftovers::remove(root);
                (root.join(blob::FOLDER), false)
            }
            RegistryLocation::S3(_) => {
                atomic_file::remove_leftovers(cache);
                (cache.to_owned(), true)
            }
        };
        Ok(Registry::new(Store::open(location)?, files, remote))
    }

    /// A registry in any object store; `name` is its name in messages. Adapters are copied into `cache`.
    ///
    /// # Errors
    /// The system cannot create the runtime of the store.
    pub fn over(
        objects: Arc<dyn ObjectStore>,
        name: &str,
        cache: &Path,
    ) -> Result<Registry, RegistryError> {
        Ok(Registry::new(
            Store::over(objects, name)?,
            cache.to_owned(),
            true,
        ))
    }

    fn new(store: Store, files: PathBuf, remote: bool) -> Registry {
        Registry {
            store: Arc::new(store),
            files,
            remote,
            state: RwLock::default(),
            reading: Mutex::default(),
        }
    }

    /// Its name in messages: its folder or URL.
    pub fn name(&self) -> &str {
        &self.store.name
    }

    /// Checks that the folder of a local registry is still there, if it has existed.
    ///
    /// # Errors
    /// [`RegistryError::Removed`].
    pub fn check_folder(&self) -> Result<(), RegistryError> {
        self.store.check_folder()
    }

    /// The state as of the last [`Registry::refresh`].
    pub fn state(&self) -> Arc<RegistryState> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state)
    }

    /// Reads the new entries of the log.
    ///
    /// # Errors
    /// [`RegistryError::Store`], or [`RegistryError::LogEntry`] for an entry that cannot be applied; the entries before it are
    /// kept.
    pub fn refresh(&self) -> Result<Arc<RegistryState>, RegistryError> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.state();
        let mut state = RegistryState::clone(&before);
        let read = self.read_new_entries(&mut state);
        let state = Arc::new(state);
        if state.head != before.head {
            *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&state);
        }
        read.map(|()| state)
    }

    fn read_new_entries(&self, state: &mut RegistryState) -> Result<(), RegistryError> {
        if state.head == 0 {
            self.read_all_entries(state)?;
        } else if self.store.get(&log_entry::path(state.head + 1))?.is_some() {
            // Entries of another log must not be applied to this state.
            self.check_head(state)?;
        }
        // The first missing entry is the end of the log.
        loop {
            let sequence = state.head + 1;
            let path = log_entry::path(sequence);
            let Some(bytes) = self.store.get(&path)? else {
                return Ok(());
            };
            self.apply(state, &bytes, sequence)?;
        }
    }

    /// Reads the whole log, entries concurrently: over a network a round trip for each would take minutes.
    fn read_all_entries(&self, state: &mut RegistryState) -> Result<(), RegistryError> {
        let listed = self.store.list(log_entry::FOLDER)?;
        let mut sequences: Vec<u64> = listed
            .iter()
            .filter_map(|object| log_entry::sequence_of(&object.name))
            .collect();
        sequences.sort_unstable();
        if let Some((expected, _)) = (1..).zip(&sequences).find(|(n, found)| n != *found) {
            return Err(RegistryError::LogEntry {
                path: self.path_of(expected),
                message: format!(
                    "is missing, though there are later ones up to {}; restore it",
                    sequences.last().copied().unwrap_or(0)
                ),
            });
        }
        let paths: Vec<String> = sequences.iter().map(|n| log_entry::path(*n)).collect();
        for (sequence, bytes) in sequences.iter().zip(self.store.get_all(&paths)?) {
            let bytes = bytes.unwrap_or_default();
            self.apply(state, &bytes, *sequence)?;
        }
        Ok(())
    }

    fn apply(
        &self,
        state: &mut RegistryState,
        bytes: &[u8],
        sequence: u64,
    ) -> Result<(), RegistryError> {
        let path = self.path_of(sequence);
        let entry = log_entry::read(bytes, &path, sequence)?;
        state
            .apply(Arc::new(entry))
            .map_err(|error| RegistryError::LogEntry {
                path,
                message: format!("does not follow from the entries before it: {error}"),
            })
    }

    fn path_of(&self, sequence: u64) -> String {
        format!("{}/{}", self.store.name, log_entry::path(sequence))
    }

    /// Checks that the log still has the newest entry of `state`. An entry after a missing one would be lost at the next start.
    fn check_head(&self, state: &RegistryState) -> Result<(), RegistryError> {
        let Some(newest) = state.entries.last() else {
            return Ok(());
        };
        let found = self.store.get(&log_entry::path(newest.sequence))?;
        let path = self.path_of(newest.sequence);
        let same = found.is_some_and(|bytes| {
            let found = log_entry::read(&bytes, &path, newest.sequence);
            found.is_ok_and(|found| found.id == newest.id)
        });
        match same {
            true => Ok(()),
            false => Err(RegistryError::Removed {
                name: self.store.name.clone(),
            }),
        }
    }

    /// Appends the change that `make` returns for the newest state; calls it again if another writer was faster.
    fn append(
        &self,
        make: impl Fn(&RegistryState) -> Result<RegistryChange, RegistryError>,
    ) -> Result<Arc<LogEntry>, RegistryError> {
        let id = log_entry::random_id();
        for _ in 0..MAX_TRIES {
            let state = self.refresh()?;
            let change = make(&state)?;
            state.check_new(&change)?;
            self.check_head(&state)?;
            let entry = LogEntry {
                format: log_entry::FORMAT,
                sequence: state.head + 1,
                id: id.clone(),
                time: now(),
                change,
            };
            let path = log_entry::path(entry.sequence);
            let bytes = serde_json::to_vec_pretty(&entry).unwrap_or_default();
            let written = self.store.create(&path, bytes);
            if !matches!(written, Ok(true)) {
                // The number is taken, or the write failed: the entry may still be this writer's own.
                let found = match self.store.get(&path) {
                    Ok(found) => found,
                    Err(error) => return Err(written.err().unwrap_or(error)),
                };
                let Some(found) = found else {
                    return Err(written.err().unwrap_or(RegistryError::Contended));
                };
                if log_entry::read(&found, &self.path_of(entry.sequence), entry.sequence)?.id != id
                {
                    continue;
                }
            }
            if let Err(removed) = self.check_head(&state) {
                // The registry was removed since the first check. The entry is not acknowledged, and alone it would hinder the next
                // start.
                if matches!(removed, RegistryError::Removed { .. }) {
                    let _ = self.store.delete(&path);
                }
                return Err(removed);
            }
            self.refresh()?;
            return Ok(Arc::new(entry));
        }
        Err(RegistryError::Contended)
    }

    /// Publishes a new version: its adapter first, then the entry that makes it visible. If it is interrupted, the old state
    /// stays. If it fails in a folder, it leaves no files.
    ///
    /// # Errors
    /// What is wrong with the publication ([`RegistryError::Refused`], [`RegistryError::Exists`]), or with the store.
    pub fn publish(
        &self,
        publication: &Publication<'_>,
    ) -> Result<PublishedVersion, RegistryError> {
        let Publication { name, content, .. } = publication;
        let make = |state: &RegistryState| {
            if publication.only_new && state.record(name).is_ok() {
                return Err(RegistryError::Exists {
                    name: (*name).to_owned(),
                });
            }
            let current_settings = || {
                let current = state.release(name, None);
                current.map_or_else(|_| PersonaSettings::default(), |(_, r)| r.settings.clone())
            };
            Ok(RegistryChange::Publish {
                name: (*name).to_owned(),
                version: state.next_version(name),
                adapter: content.map(AdapterContent::record),
                settings: Box::new(
                    publication
                        .settings
                        .clone()
                        .unwrap_or_else(current_settings),
                ),
                current: publication.current,
            })
        };
        // Checked first, so that a refused publication uploads nothing.
        let state = self.refresh()?;
        state.check_new(&make(&state)?)?;
        self.check_head(&state)?;
        let entry = match content {
            Some(content) => self.append_with_blob(content, make)?,
            None => self.append(make)?,
        };
        let version = match &entry.change {
            RegistryChange::Publish { version, .. } => *version,
            _ => 0,
        };
        Ok(PublishedVersion {
            name: (*name).to_owned(),
            version,
            sha256: content.map(|content| content.sha256.clone()),
            sequence: entry.sequence,
        })
    }

    /// Writes the blob of `content` and then appends the change that makes it visible.
    fn append_with_blob(
        &self,
        content: &AdapterContent,
        make: impl Fn(&RegistryState) -> Result<RegistryChange, RegistryError>,
    ) -> Result<Arc<LogEntry>, RegistryError> {
        let before = match self.remote {
            // The request that failed may still take place, so nothing is removed; a garbage collection does it later.
            true => Vec::from(blob::FILES),
            false => blob::existing_files(&self.store, &content.sha256)?,
        };
        let written = blob::write(&self.store, content);
        let entry = match written.and_then(|()| self.append(make)) {
            Ok(entry) => entry,
            Err(error) => {
                self.discard_blob(content, &before);
                return Err(error);
            }
        };
        if !blob::complete(&self.store, &content.sha256)? {
            // A garbage collection that began before the entry was written has removed it, or another publication that failed.
            blob::write(&self.store, content)?;
        }
        Ok(entry)
    }

    /// Removes what a failed publication wrote of a blob that no version uses, except the files that existed `before`.
    fn discard_blob(&self, content: &AdapterContent, before: &[&str]) {
        let sha256 = content.sha256.as_str();
        let is_used = |state: Arc<RegistryState>| state.adapters().contains_key(sha256);
        if before.len() == blob::FILES.len() || self.refresh().map_or(true, is_used) {
            return;
        }
        for file in blob::FILES.iter().filter(|file| !before.contains(file)) {
            // What cannot be removed is garbage.
            let _ = self.store.delete(&blob::path(sha256, file));
        }
        self.store.remove_empty_folder(&blob::path(sha256, ""));
        // A version of the same adapter that was published meanwhile. Its publisher may have found the blob complete just before this; one
        // that appends its entry later finds the blob incomplete.
        if self.refresh().is_ok_and(is_used) {
            let _ = blob::write(&self.store, content);
        }
    }

    /// Makes another version the current one: `version`, by default the one that was current before. Returns it.
    ///
    /// # Errors
    /// The version does not exist, or no version was current before.
    pub fn rollback(&self, name: &str, version: Option<u32>) -> Result<u32, RegistryError> {
        let entry = self.append(|state| {
            state.record(name)?;
            let none_before = || RegistryError::Refused {
                message: format!("{name} had no other version before; name the version to use"),
            };
            let version = version
                .or(state.previous_version(name))
                .ok_or_else(none_before)?;
            Ok(RegistryChange::Rollback {
                name: name.to_owned(),
                version,
            })
        })?;
        match &entry.change {
            RegistryChange::Rollback { version, .. } => Ok(*version),
            _ => Ok(0),
        }
    }

    /// Removes a version, or the persona as a whole. Its adapters stay until garbage is collected.
    ///
    /// # Errors
    /// It does not exist, it is the current version, a canary or a shadow, or an alias means it.
    pub fn remove(&self, name: &str, version: Option<u32>) -> Result<(), RegistryError> {
        self.append_change(RegistryChange::Remove {
            name: name.to_owned(),
            version,
        })
    }

    /// Adds an alias of a persona, or of a version of it; an existing alias gets the new target.
    ///
    /// # Errors
    /// The target does not exist, or a persona has the name.
    pub fn alias(&self, alias: &str, target: &PersonaRef) -> Result<(), RegistryError> {
        self.append_change(RegistryChange::Alias {
            alias: alias.to_owned(),
            target: target.clone(),
        })
    }

    /// Removes an alias.
    ///
    /// # Errors
    /// The alias does not exist.
    pub fn remove_alias(&self, alias: &str) -> Result<(), RegistryError> {
        self.append_change(RegistryChange::RemoveAlias {
            alias: alias.to_owned(),
        })
    }

    /// Sends a percentage of the requests for the name alone to another version; `None` ends the canary.
    ///
    /// # Errors
    /// The version does not exist or is current, or the percentage is out of range.
    pub fn canary(&self, name: &str, split: Option<(u32, f64)>) -> Result<(), RegistryError> {
        self.append_change(RegistryChange::Canary {
            name: name.to_owned(),
            version: split.map(|(version, _)| version),
            percent: split.map_or(0.0, |(_, percent)| percent),
        })
    }

    /// Lets another version also answer a percentage of the requests, for comparison; `None` ends the shadow.
    ///
    /// # Errors
    /// As [`Registry::canary`].
    pub fn shadow(&self, name: &str, split: Option<(u32, f64)>) -> Result<(), RegistryError> {
        self.append_change(RegistryChange::Shadow {
            name: name.to_owned(),
            version: split.map(|(version, _)| version),
            percent: split.map_or(0.0, |(_, percent)| percent),
        })
    }

    fn append_change(&self, change: RegistryChange) -> Result<(), RegistryError> {
        self.append(|_| Ok(change.clone())).map(|_| ())
    }

    /// The published personas, and those of a folder whose names are not published. Also returns the names in the folder that
    /// published ones hide.
    pub fn personas(&self, state: &RegistryState, folder: &Personas) -> (Personas, Vec<String>) {
        let mut personas = Personas::default();
        let mut hidden = Vec::new();
        for name in folder.names() {
            if state.record(name).is_ok() || state.aliases.contains_key(name) {
                hidden.push(name.to_owned());
            } else {
                personas.insert(folder.versions(name).cloned(), None);
            }
        }
        for (name, record) in state.personas() {
            let versions = record.versions.iter();
            let versions = versions.map(|(version, r)| Arc::new(self.persona(name, *version, r)));
            personas.insert(versions, Some(record));
        }
        for (alias, target) in &state.aliases {
            personas.alias(alias, target.clone());
        }
        (personas, hidden)
    }

    fn persona(&self, name: &str, version: u32, release: &Release) -> Persona {
        let adapter = release.adapter.as_ref().map(|a| self.adapter(a));
        let settings = release.settings.clone();
        Persona {
            published: Some(release.time),
            ..settings.into_persona(name, version, adapter, self.store.name.clone().into())
        }
    }

    fn adapter(&self, record: &AdapterRecord) -> AdapterRef {
        AdapterRef {
            path: blob::folder(&self.files, &record.sha256),
            sha256: blob::digest(&record.sha256).unwrap_or_default(),
            // The log is not trusted: sizes of several adapters are added.
            bytes: record.bytes.min(blob::MAX_WEIGHTS),
            source: Some(BlobSource {
                store: Arc::clone(&self.store),
                remote: self.remote,
            }),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
