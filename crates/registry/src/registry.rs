//! The registry: publishing, rolling back, removing, and looking after what is stored. Every change is one entry of the log,
//! written with put-if-absent at the next number; whoever comes second reads what the first one wrote and tries again. So
//! there is one order of all changes, whoever makes them from wherever, and no database.
//!
//! ```text
//! adapters/<sha256>/adapter_config.json, adapter_model.safetensors, then manifest.json
//! log/00000000000000000001.json, log/00000000000000000002.json, ...
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::ObjectStore;

use crate::blob::{self, Content, Source};
use crate::entry::{self, AdapterRecord, Change, Entry};
use crate::error::RegistryError;
use crate::persona::{AdapterRef, Persona};
use crate::personas::Personas;
use crate::settings::PersonaSettings;
use crate::state::{Release, State, Target};
use crate::store::{Location, Store};

/// How often a change is tried while others come first.
const MAX_TRIES: usize = 1000;

/// A registry, open. All calls block; any number of threads and processes may use it at once.
pub struct Registry {
    store: Arc<Store>,
    /// Where adapters' files lie on this machine: the registry's own, or copies.
    files: PathBuf,
    remote: bool,
    state: RwLock<Arc<State>>,
    /// Held by whoever reads the log on.
    reading: Mutex<()>,
}

/// What is to be published.
pub struct Publication<'a> {
    /// The persona.
    pub name: &'a str,
    /// Its adapter; without, it speaks through its settings alone.
    pub content: Option<&'a Content>,
    /// Its settings; without, those of the version that is current, or the defaults.
    pub settings: Option<PersonaSettings>,
    /// Whether the name alone means the new version from now on.
    pub current: bool,
    /// Refuse a name that is there.
    pub only_new: bool,
}

/// A version that was just published.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The persona.
    pub name: String,
    /// The version.
    pub version: u32,
    /// Its adapter's content hash, if it has one.
    pub sha256: Option<String>,
    /// The number of its entry in the log.
    pub sequence: u64,
}

/// One adapter that was verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Its content hash.
    pub sha256: String,
    /// Who uses it.
    pub used_by: Vec<Target>,
    /// What is wrong with it; none if it is whole.
    pub problem: Option<String>,
}

/// What a collection of garbage found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Collected {
    /// Adapters that were removed, or would be.
    pub removed: Vec<String>,
    /// Adapters that nothing uses and that are too young.
    pub too_young: Vec<String>,
    /// Adapters in use.
    pub used: usize,
}

impl Registry {
    /// A registry at `location`; adapters that lie elsewhere than on this machine are copied into `cache` when they are needed.
    /// Nothing is read yet.
    ///
    /// # Errors
    /// A bucket that the environment does not describe.
    pub fn open(location: &Location, cache: &Path) -> Result<Registry, RegistryError> {
        let (files, remote) = match location {
            Location::Folder(root) => (root.join(blob::FOLDER), false),
            Location::S3(_) => (cache.to_owned(), true),
        };
        Ok(Registry::new(Store::open(location)?, files, remote))
    }

    /// A registry over any object store, under the name that messages give it; adapters are copied into `cache`.
    ///
    /// # Errors
    /// The system gives no thread's resources.
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

    /// What messages call it: its folder or URL.
    pub fn name(&self) -> &str {
        &self.store.name
    }

    /// What was published, as far as it was read.
    pub fn state(&self) -> Arc<State> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state)
    }

    /// Reads the log on to its end.
    ///
    /// # Errors
    /// [`RegistryError::Store`], or [`RegistryError::Entry`] for an entry that cannot be followed; what was read before it
    /// stays.
    pub fn refresh(&self) -> Result<Arc<State>, RegistryError> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.state();
        let mut state = State::clone(&before);
        let read = self.read_on(&mut state);
        let state = Arc::new(state);
        if state.head != before.head {
            *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&state);
        }
        read.map(|()| state)
    }

    fn read_on(&self, state: &mut State) -> Result<(), RegistryError> {
        if state.head == 0 {
            self.read_from_the_start(state)?;
        }
        // One more than there are: what comes after the last is what is asked for next time.
        loop {
            let sequence = state.head + 1;
            let path = entry::path(sequence);
            let Some(bytes) = self.store.get(&path)? else {
                return Ok(());
            };
            self.follow(state, &bytes, sequence)?;
        }
    }

    /// Many entries side by side; over a network a round trip each would take minutes.
    fn read_from_the_start(&self, state: &mut State) -> Result<(), RegistryError> {
        let listed = self.store.list(entry::FOLDER)?;
        let mut there: Vec<u64> = listed
            .iter()
            .filter_map(|object| entry::sequence(&object.name))
            .collect();
        there.sort_unstable();
        if let Some((expected, _)) = (1..).zip(&there).find(|(n, found)| n != *found) {
            return Err(RegistryError::Entry {
                path: self.path_of(expected),
                message: format!(
                    "is missing, though there are later ones up to {}; restore it",
                    there.last().copied().unwrap_or(0)
                ),
            });
        }
        let paths: Vec<String> = there.iter().map(|n| entry::path(*n)).collect();
        for (sequence, bytes) in there.iter().zip(self.store.get_all(&paths)?) {
            let bytes = bytes.unwrap_or_default();
            self.follow(state, &bytes, *sequence)?;
        }
        Ok(())
    }

    fn follow(&self, state: &mut State, bytes: &[u8], sequence: u64) -> Result<(), RegistryError> {
        let path = self.path_of(sequence);
        let entry = entry::read(bytes, &path, sequence)?;
        state
            .apply(Arc::new(entry))
            .map_err(|error| RegistryError::Entry {
                path,
                message: format!("does not follow from the entries before it: {error}"),
            })
    }

    fn path_of(&self, sequence: u64) -> String {
        format!("{}/{}", self.store.name, entry::path(sequence))
    }

    /// Appends the change that `make` finds right for the newest state; it is asked again where somebody else was faster.
    fn append(
        &self,
        make: impl Fn(&State) -> Result<Change, RegistryError>,
    ) -> Result<Arc<Entry>, RegistryError> {
        let id = entry::random_id();
        for _ in 0..MAX_TRIES {
            let state = self.refresh()?;
            let change = make(&state)?;
            state.check(&change)?;
            let entry = Entry {
                format: entry::FORMAT,
                sequence: state.head + 1,
                id: id.clone(),
                time: now(),
                change,
            };
            let path = entry::path(entry.sequence);
            let bytes = serde_json::to_vec_pretty(&entry).unwrap_or_default();
            let written = self.store.create(&path, bytes);
            if !matches!(written, Ok(true)) {
                // Refused, or an error on the way back: it may be this very entry that is there.
                let there = match self.store.get(&path) {
                    Ok(there) => there,
                    Err(error) => return Err(written.err().unwrap_or(error)),
                };
                let Some(there) = there else {
                    return Err(written.err().unwrap_or(RegistryError::Contended));
                };
                if entry::read(&there, &self.path_of(entry.sequence), entry.sequence)?.id != id {
                    continue;
                }
            }
            self.refresh()?;
            return Ok(Arc::new(entry));
        }
        Err(RegistryError::Contended)
    }

    /// Publishes a new version: its adapter first, then the entry that makes it visible. Cut off anywhere, it leaves what was.
    ///
    /// # Errors
    /// What is wrong with the publication ([`RegistryError::Refused`], [`RegistryError::Exists`]), or with the store.
    pub fn publish(&self, publication: &Publication<'_>) -> Result<Published, RegistryError> {
        let Publication { name, content, .. } = publication;
        let make = |state: &State| {
            if publication.only_new && state.record(name).is_ok() {
                return Err(RegistryError::Exists {
                    name: (*name).to_owned(),
                });
            }
            let kept = || {
                let current = state.release(name, None);
                current.map_or_else(|_| PersonaSettings::default(), |(_, r)| r.settings.clone())
            };
            Ok(Change::Publish {
                name: (*name).to_owned(),
                version: state.next_version(name),
                adapter: content.map(Content::record),
                settings: Box::new(publication.settings.clone().unwrap_or_else(kept)),
                current: publication.current,
            })
        };
        // What will be refused should not upload anything.
        let state = self.refresh()?;
        state.check(&make(&state)?)?;
        if let Some(content) = content {
            blob::write(&self.store, content)?;
        }
        let entry = self.append(make)?;
        if let Some(content) = content
            && !blob::complete(&self.store, &content.sha256)?
        {
            // A collection of garbage that began before the entry was there.
            blob::write(&self.store, content)?;
        }
        let version = match &entry.change {
            Change::Publish { version, .. } => *version,
            _ => 0,
        };
        Ok(Published {
            name: (*name).to_owned(),
            version,
            sha256: content.map(|content| content.sha256.clone()),
            sequence: entry.sequence,
        })
    }

    /// Makes another version the current one: `version`, or the one that was current before. Returns it.
    ///
    /// # Errors
    /// There is no such version, or none before.
    pub fn rollback(&self, name: &str, version: Option<u32>) -> Result<u32, RegistryError> {
        let entry = self.append(|state| {
            state.record(name)?;
            let before = || RegistryError::Refused {
                message: format!("{name} had no other version before; say which one to take"),
            };
            let version = version.or(state.previous(name)).ok_or_else(before)?;
            Ok(Change::Rollback {
                name: name.to_owned(),
                version,
            })
        })?;
        match &entry.change {
            Change::Rollback { version, .. } => Ok(*version),
            _ => Ok(0),
        }
    }

    /// Removes a version, or the persona as a whole. Its adapters stay until garbage is collected.
    ///
    /// # Errors
    /// It is not there, it is the current version, or an alias stands for it.
    pub fn remove(&self, name: &str, version: Option<u32>) -> Result<(), RegistryError> {
        self.append_this(Change::Remove {
            name: name.to_owned(),
            version,
        })
    }

    /// Gives a persona, or a version of it, another name; one that is an alias already stands for the new one.
    ///
    /// # Errors
    /// The target is not there, or the name is a persona's.
    pub fn alias(&self, alias: &str, target: &Target) -> Result<(), RegistryError> {
        self.append_this(Change::Alias {
            alias: alias.to_owned(),
            target: target.clone(),
        })
    }

    /// Takes an alias away.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_alias(&self, alias: &str) -> Result<(), RegistryError> {
        self.append_this(Change::RemoveAlias {
            alias: alias.to_owned(),
        })
    }

    /// Sends `percent` of a hundred requests for the name alone to another version; none ends it.
    ///
    /// # Errors
    /// The version is not there, or current already; a percentage out of range.
    pub fn canary(&self, name: &str, split: Option<(u32, f64)>) -> Result<(), RegistryError> {
        self.append_this(Change::Canary {
            name: name.to_owned(),
            version: split.map(|(version, _)| version),
            percent: split.map_or(0.0, |(_, percent)| percent),
        })
    }

    /// Lets another version answer `percent` of a hundred requests too, for comparison; none ends it.
    ///
    /// # Errors
    /// As [`Registry::canary`].
    pub fn shadow(&self, name: &str, split: Option<(u32, f64)>) -> Result<(), RegistryError> {
        self.append_this(Change::Shadow {
            name: name.to_owned(),
            version: split.map(|(version, _)| version),
            percent: split.map_or(0.0, |(_, percent)| percent),
        })
    }

    fn append_this(&self, change: Change) -> Result<(), RegistryError> {
        self.append(|_| Ok(change.clone())).map(|_| ())
    }

    /// Reads every adapter in use and holds it to its hash.
    ///
    /// # Errors
    /// [`RegistryError::Store`]; what is wrong with an adapter is in the list.
    pub fn verify(&self) -> Result<Vec<Verified>, RegistryError> {
        let state = self.refresh()?;
        let verify = |(sha256, used_by): (&str, Vec<Target>)| {
            let problem = match blob::read(&self.store, sha256) {
                Ok(Some(_)) => None,
                Ok(None) => Some("is missing".to_owned()),
                Err(RegistryError::Corrupt { found, .. }) => {
                    Some(format!("is corrupt: its content has the hash {found}"))
                }
                Err(error) => return Err(error),
            };
            Ok(Verified {
                sha256: sha256.to_owned(),
                used_by,
                problem,
            })
        };
        state.adapters().into_iter().map(verify).collect()
    }

    /// Removes the adapters that no version uses and that were written, and last used, longer ago than `older_than`: who
    /// publishes now may have stored one and not yet its entry.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub fn collect_garbage(
        &self,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<Collected, RegistryError> {
        let mut ages: BTreeMap<String, u64> = BTreeMap::new();
        for sha256 in self.store.folders(blob::FOLDER)? {
            if blob::digest(&sha256).is_some() {
                let written = self.written(&sha256)?;
                ages.insert(sha256, written);
            }
        }
        // After the list, so that what was published meanwhile counts as used.
        let state = self.refresh()?;
        let used = state.adapters();
        let mut collected = Collected {
            used: used.len(),
            ..Collected::default()
        };
        let before = now().saturating_sub(older_than.as_secs());
        for (sha256, written) in ages {
            if used.contains_key(sha256.as_str()) {
                continue;
            }
            if written.max(state.released(&sha256).unwrap_or(0)) > before {
                collected.too_young.push(sha256);
                continue;
            }
            if !dry_run {
                // Somebody may publish it again this moment.
                let again = self.refresh()?.adapters().contains_key(sha256.as_str());
                if again || self.written(&sha256)? != written {
                    collected.too_young.push(sha256);
                    continue;
                }
                // Without its manifest it is not there, however far this comes.
                self.store.delete(&blob::path(&sha256, blob::MANIFEST))?;
                for file in self.store.list(&format!("{}/{sha256}", blob::FOLDER))? {
                    self.store.delete(&blob::path(&sha256, &file.name))?;
                }
            }
            collected.removed.push(sha256);
        }
        Ok(collected)
    }

    /// When the newest of a blob's files was written.
    fn written(&self, sha256: &str) -> Result<u64, RegistryError> {
        let files = self.store.list(&format!("{}/{sha256}", blob::FOLDER))?;
        Ok(files.iter().map(|file| file.modified).max().unwrap_or(0))
    }

    /// Everyone who can be asked: what is published, and the personas of a folder whose names nobody published. The names
    /// that are in both come too.
    pub fn personas(&self, state: &State, folder: &Personas) -> (Personas, Vec<String>) {
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
            bytes: record.bytes,
            source: Some(Source {
                store: Arc::clone(&self.store),
                remote: self.remote,
            }),
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
