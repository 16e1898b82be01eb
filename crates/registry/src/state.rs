//! The state of the registry that the entries of the log add up to. Pure: entries in, state out; does not know the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use formats::persona_name::{BASE, MAX_PERSONA_NAME, is_persona_name};
use serde::Serialize;

use crate::blob::AdapterRecord;
use crate::error::RegistryError;
use crate::log_entry::{LogEntry, RegistryChange};
use crate::settings::PersonaSettings;
use crate::spec::PersonaRef;

/// The most versions of one persona; old ones can be removed.
pub const MAX_VERSIONS: usize = 10_000;

/// Everything that is published, after `head` entries of the log.
#[derive(Debug, Clone, Default)]
pub struct RegistryState {
    /// The sequence number of the last entry; 0 before the first.
    pub head: u64,
    /// The entries, in order.
    pub entries: Vec<Arc<LogEntry>>,
    /// Personas by name; a record without versions is a removed persona.
    records: BTreeMap<String, PersonaRecord>,
    /// Aliases by name.
    pub aliases: BTreeMap<String, PersonaRef>,
    /// When adapters that are no longer in use were last in use, by hash.
    last_used: BTreeMap<String, u64>,
}

/// A published persona.
#[derive(Debug, Clone, Default)]
pub struct PersonaRecord {
    /// Its versions.
    pub versions: BTreeMap<u32, Release>,
    /// The version that the name alone means.
    pub current: u32,
    /// The requests that another version answers.
    pub canary: Option<TrafficSplit>,
    /// The requests that another version answers in addition.
    pub shadow: Option<TrafficSplit>,
    /// The highest version number so far: a number is never used again.
    last_version: u32,
    /// The versions that were current before, the latest last.
    previous: Vec<u32>,
}

/// One version of a persona.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// Its adapter.
    pub adapter: Option<AdapterRecord>,
    /// Everything except the adapter.
    pub settings: PersonaSettings,
    /// When it was published, in seconds since 1970.
    pub time: u64,
}

/// A percentage of a persona's requests, and the version that answers them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrafficSplit {
    /// The version.
    pub version: u32,
    /// The percentage of requests: above 0, to 100.
    pub percent: f64,
}

impl RegistryState {
    /// The published personas, by name.
    pub fn personas(&self) -> impl Iterator<Item = (&str, &PersonaRecord)> {
        let published = |(_, record): &(&String, &PersonaRecord)| !record.versions.is_empty();
        let records = self.records.iter().filter(published);
        records.map(|(name, record)| (name.as_str(), record))
    }

    /// A persona.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn record(&self, name: &str) -> Result<&PersonaRecord, RegistryError> {
        let record = self.records.get(name);
        record
            .filter(|record| !record.versions.is_empty())
            .ok_or_else(|| RegistryError::Unknown {
                name: name.to_owned(),
                alias: self.aliases.get(name).map(PersonaRef::to_string),
            })
    }

    /// A version of a persona; by default the current one.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::NoVersion`].
    pub fn release(
        &self,
        name: &str,
        version: Option<u32>,
    ) -> Result<(u32, &Release), RegistryError> {
        let record = self.record(name)?;
        let version = version.unwrap_or(record.current);
        let release = record.versions.get(&version);
        release
            .map(|release| (version, release))
            .ok_or_else(|| RegistryError::NoVersion {
                name: name.to_owned(),
                version,
                available: record.versions.keys().copied().collect(),
            })
    }

    /// The number of a persona's next version.
    #[must_use]
    pub fn next_version(&self, name: &str) -> u32 {
        self.records
            .get(name)
            .map_or(0, |record| record.last_version)
            + 1
    }

    /// The version that was current before the current one, without those that were removed.
    #[must_use]
    pub fn previous_version(&self, name: &str) -> Option<u32> {
        let record = self.records.get(name)?;
        record.previous.last().copied()
    }

    /// The adapters in use, each with the personas and versions that use it.
    #[must_use]
    pub fn adapters(&self) -> BTreeMap<&str, Vec<PersonaRef>> {
        let mut adapters: BTreeMap<&str, Vec<PersonaRef>> = BTreeMap::new();
        for (name, record) in &self.records {
            for (version, release) in &record.versions {
                if let Some(adapter) = &release.adapter {
                    adapters
                        .entry(&adapter.sha256)
                        .or_default()
                        .push(PersonaRef {
                            name: name.clone(),
                            version: Some(*version),
                        });
                }
            }
        }
        adapters
    }

    /// When an adapter was last in use; none if it is in use or never was.
    #[must_use]
    pub fn last_used(&self, sha256: &str) -> Option<u64> {
        self.last_used.get(sha256).copied()
    }

    /// Whether a new change is allowed: as [`RegistryState::check`], and it takes no reserved name. Entries from before the name was
    /// reserved stay readable.
    ///
    /// # Errors
    /// As [`RegistryState::check`].
    pub fn check_new(&self, change: &RegistryChange) -> Result<(), RegistryError> {
        let (RegistryChange::Publish { name, .. } | RegistryChange::Alias { alias: name, .. }) =
            change
        else {
            return self.check(change);
        };
        if name == BASE {
            return refused(format!(
                "{BASE:?} always means the base without a persona; use another name"
            ));
        }
        self.check(change)
    }

    /// Whether the change is allowed in this state.
    ///
    /// # Errors
    /// Why it is not, and what to do instead.
    pub fn check(&self, change: &RegistryChange) -> Result<(), RegistryError> {
        match change {
            RegistryChange::Publish {
                name,
                version,
                settings,
                current,
                ..
            } => self.check_publish(name, *version, settings, *current),
            RegistryChange::Rollback { name, version } => {
                self.release(name, Some(*version))?;
                if self.record(name)?.current == *version {
                    return refused(format!("{name} is version {version} already"));
                }
                Ok(())
            }
            RegistryChange::Remove { name, version } => self.check_remove(name, *version),
            RegistryChange::Alias { alias, target } => {
                check_name(alias)?;
                if self.record(alias).is_ok() {
                    return refused(format!(
                        "{alias} is a persona; choose another name for the alias"
                    ));
                }
                self.release(&target.name, target.version).map(|_| ())
            }
            RegistryChange::RemoveAlias { alias } => match self.aliases.contains_key(alias) {
                true => Ok(()),
                false => refused(format!("alias {alias} does not exist")),
            },
            RegistryChange::Canary {
                name,
                version,
                percent,
            } => self.check_split("canary", name, *version, *percent),
            RegistryChange::Shadow {
                name,
                version,
                percent,
            } => self.check_split("shadow", name, *version, *percent),
        }
    }

    fn check_publish(
        &self,
        name: &str,
        version: u32,
        settings: &PersonaSettings,
        current: bool,
    ) -> Result<(), RegistryError> {
        check_name(name)?;
        if let Some(target) = self.aliases.get(name) {
            return refused(format!(
                "{name} is an alias of {target}; remove the alias first, or publish under another name"
            ));
        }
        let next = self.next_version(name);
        if version != next {
            return refused(format!("{name}: the next version is {next}, not {version}"));
        }
        let record = self.records.get(name);
        if record.is_some_and(|record| record.versions.len() >= MAX_VERSIONS) {
            return refused(format!(
                "{name} has {MAX_VERSIONS} versions; remove old ones first"
            ));
        }
        if !current && self.record(name).is_err() {
            return refused(format!(
                "{name} has no version yet, so its first one must be current"
            ));
        }
        settings
            .check()
            .or_else(|message| refused(format!("{name}: {message}")))
    }

    fn check_remove(&self, name: &str, version: Option<u32>) -> Result<(), RegistryError> {
        let record = self.record(name)?;
        if let Some(version) = version {
            self.release(name, Some(version))?;
            if record.current == version {
                return refused(format!(
                    "{name}@{version} is the current version; roll back to another one first, or remove {name} as a whole"
                ));
            }
            for (what, split) in [("canary", record.canary), ("shadow", record.shadow)] {
                if split.is_some_and(|split| split.version == version) {
                    return refused(format!(
                        "{name}@{version} is the {what} of {name}; end the {what} first"
                    ));
                }
            }
        }
        let is_target = |target: &&PersonaRef| {
            target.name == name && (version.is_none() || target.version == version)
        };
        match self.aliases.iter().find(|(_, target)| is_target(target)) {
            Some((alias, target)) => refused(format!(
                "the alias {alias} means {target}; remove the alias first"
            )),
            None => Ok(()),
        }
    }

    fn check_split(
        &self,
        what: &str,
        name: &str,
        version: Option<u32>,
        percent: f64,
    ) -> Result<(), RegistryError> {
        let record = self.record(name)?;
        let Some(version) = version else {
            let running = if what == "canary" {
                record.canary
            } else {
                record.shadow
            };
            return match running {
                Some(_) => Ok(()),
                None => refused(format!("{name} has no {what}")),
            };
        };
        self.release(name, Some(version))?;
        if record.current == version {
            return refused(format!(
                "{name} is version {version} already; choose another version for the {what}"
            ));
        }
        if !(percent > 0.0 && percent <= 100.0) {
            return refused(format!("percent must be above 0, to 100, not {percent}"));
        }
        Ok(())
    }

    /// Applies an entry, which must be the next one.
    ///
    /// # Errors
    /// As [`RegistryState::check`].
    pub fn apply(&mut self, entry: Arc<LogEntry>) -> Result<(), RegistryError> {
        self.check(&entry.change)?;
        match entry.change.clone() {
            RegistryChange::Publish {
                name,
                version,
                adapter,
                settings,
                current,
            } => {
                if let Some(adapter) = &adapter {
                    self.last_used.remove(&adapter.sha256);
                }
                let record = self.records.entry(name).or_default();
                let release = Release {
                    adapter,
                    settings: *settings,
                    time: entry.time,
                };
                record.versions.insert(version, release);
                record.last_version = version;
                if current {
                    record.make_current(version);
                }
            }
            RegistryChange::Rollback { name, version } => {
                if let Some(record) = self.records.get_mut(&name) {
                    record.make_current(version);
                }
            }
            RegistryChange::Remove { name, version } => self.remove(&name, version, entry.time),
            RegistryChange::Alias { alias, target } => {
                self.aliases.insert(alias, target);
            }
            RegistryChange::RemoveAlias { alias } => {
                self.aliases.remove(&alias);
            }
            RegistryChange::Canary {
                name,
                version,
                percent,
            } => {
                if let Some(record) = self.records.get_mut(&name) {
                    record.canary = version.map(|version| TrafficSplit { version, percent });
                }
            }
            RegistryChange::Shadow {
                name,
                version,
                percent,
            } => {
                if let Some(record) = self.records.get_mut(&name) {
                    record.shadow = version.map(|version| TrafficSplit { version, percent });
                }
            }
        }
        self.head = entry.sequence;
        self.entries.push(entry);
        Ok(())
    }

    fn remove(&mut self, name: &str, version: Option<u32>, time: u64) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let mut removed = Vec::new();
        match version {
            Some(version) => {
                removed.extend(record.versions.remove(&version));
                record.previous.retain(|other| *other != version);
            }
            None => {
                removed.extend(std::mem::take(&mut record.versions).into_values());
                *record = PersonaRecord {
                    last_version: record.last_version,
                    ..PersonaRecord::default()
                };
            }
        }
        let removed: Vec<String> = removed
            .into_iter()
            .filter_map(|release| release.adapter)
            .map(|adapter| adapter.sha256)
            .collect();
        let used = self.adapters();
        let unused: Vec<String> = removed
            .into_iter()
            .filter(|sha256| !used.contains_key(sha256.as_str()))
            .collect();
        for sha256 in unused {
            self.last_used.insert(sha256, time);
        }
    }
}

impl PersonaRecord {
    /// Makes `version` the one that the name alone means; ends a canary or shadow of that version.
    fn make_current(&mut self, version: u32) {
        if self.current != 0 {
            self.previous.retain(|other| *other != self.current);
            self.previous.push(self.current);
        }
        self.previous.retain(|other| *other != version);
        self.current = version;
        for split in [&mut self.canary, &mut self.shadow] {
            if split.is_some_and(|split| split.version == version) {
                *split = None;
            }
        }
    }
}

fn refused(message: String) -> Result<(), RegistryError> {
    Err(RegistryError::Refused { message })
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    match is_persona_name(name) {
        true => Ok(()),
        false => Err(RegistryError::Refused {
            message: format!(
                "{name:?} is not a valid persona name; a name has 1 to {} of a-z, 0-9, - and _, and begins with a letter or a \
                 digit",
                MAX_PERSONA_NAME
            ),
        }),
    }
}
