//! What the log adds up to. Pure: entries in, state out; knows no store.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use formats::persona_name::{MAX_PERSONA_NAME, is_persona_name};
use serde::{Deserialize, Serialize};

use crate::entry::{AdapterRecord, Change, Entry};
use crate::error::RegistryError;
use crate::settings::PersonaSettings;

/// The most versions of one persona; what is older can be removed.
pub const MAX_VERSIONS: usize = 10_000;

/// Everything that is published, after `head` entries.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The number of the last entry; 0 before the first.
    pub head: u64,
    /// The entries, in order.
    pub entries: Vec<Arc<Entry>>,
    /// Personas by name; one without versions was removed.
    records: BTreeMap<String, Record>,
    /// Other names.
    pub aliases: BTreeMap<String, Target>,
    /// When an adapter was last in use, by hash; only those that are not now.
    released: BTreeMap<String, u64>,
}

/// One persona.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Its versions.
    pub versions: BTreeMap<u32, Release>,
    /// The one that the name alone means.
    pub current: u32,
    /// The part of requests that another version answers.
    pub canary: Option<Split>,
    /// The part of requests that another version answers too.
    pub shadow: Option<Split>,
    /// The highest number that was ever given: none is given twice.
    last: u32,
    /// What was current before, the latest last.
    before: Vec<u32>,
}

/// One version of a persona.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// Its adapter.
    pub adapter: Option<AdapterRecord>,
    /// Everything else.
    pub settings: PersonaSettings,
    /// When it was published, in seconds since 1970.
    pub time: u64,
}

/// A part of a persona's requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Split {
    /// The version that it is about.
    pub version: u32,
    /// How many of a hundred requests, above 0, to 100.
    pub percent: f64,
}

/// What an alias stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The persona.
    pub name: String,
    /// Its version; without, the current one.
    pub version: Option<u32>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl State {
    /// The personas that are there, by name.
    pub fn personas(&self) -> impl Iterator<Item = (&str, &Record)> {
        let there = |(_, record): &(&String, &Record)| !record.versions.is_empty();
        let records = self.records.iter().filter(there);
        records.map(|(name, record)| (name.as_str(), record))
    }

    /// A persona.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn record(&self, name: &str) -> Result<&Record, RegistryError> {
        let record = self.records.get(name);
        record
            .filter(|record| !record.versions.is_empty())
            .ok_or_else(|| RegistryError::Unknown {
                name: name.to_owned(),
                alias: self.aliases.get(name).map(Target::to_string),
            })
    }

    /// A version of a persona; the current one without a number.
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
                there: record.versions.keys().copied().collect(),
            })
    }

    /// The number of a persona's next version.
    #[must_use]
    pub fn next_version(&self, name: &str) -> u32 {
        self.records.get(name).map_or(0, |record| record.last) + 1
    }

    /// What was current before the version that is, and is still there.
    #[must_use]
    pub fn previous(&self, name: &str) -> Option<u32> {
        let record = self.records.get(name)?;
        record.before.last().copied()
    }

    /// The adapters in use, each with the personas and versions that use it.
    #[must_use]
    pub fn adapters(&self) -> BTreeMap<&str, Vec<Target>> {
        let mut adapters: BTreeMap<&str, Vec<Target>> = BTreeMap::new();
        for (name, record) in &self.records {
            for (version, release) in &record.versions {
                if let Some(adapter) = &release.adapter {
                    adapters.entry(&adapter.sha256).or_default().push(Target {
                        name: name.clone(),
                        version: Some(*version),
                    });
                }
            }
        }
        adapters
    }

    /// When an adapter that is in use no more was released; none if it never was in use.
    #[must_use]
    pub fn released(&self, sha256: &str) -> Option<u64> {
        self.released.get(sha256).copied()
    }

    /// Whether the change makes sense here.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn check(&self, change: &Change) -> Result<(), RegistryError> {
        let refused = |message: String| Err(RegistryError::Refused { message });
        match change {
            Change::Publish {
                name,
                version,
                settings,
                current,
                ..
            } => {
                check_name(name)?;
                if let Some(target) = self.aliases.get(name) {
                    return refused(format!(
                        "{name} is an alias of {target}; remove the alias first, or publish under another name"
                    ));
                }
                if *version != self.next_version(name) {
                    return refused(format!(
                        "{name}: the next version is {}, not {version}",
                        self.next_version(name)
                    ));
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
            Change::Rollback { name, version } => {
                self.release(name, Some(*version))?;
                if self.record(name)?.current == *version {
                    return refused(format!("{name} is version {version} already"));
                }
                Ok(())
            }
            Change::Remove { name, version } => {
                let record = self.record(name)?;
                if let Some(version) = version {
                    self.release(name, Some(*version))?;
                    if record.current == *version {
                        return refused(format!(
                            "{name}@{version} is the current version; roll back to another one first, or remove {name} \
                             as a whole"
                        ));
                    }
                    for (what, split) in [("canary", record.canary), ("shadow", record.shadow)] {
                        if split.is_some_and(|split| split.version == *version) {
                            return refused(format!(
                                "{name}@{version} is the {what} of {name}; end the {what} first"
                            ));
                        }
                    }
                }
                let points = |target: &&Target| {
                    target.name == *name && (version.is_none() || target.version == *version)
                };
                match self.aliases.iter().find(|(_, target)| points(target)) {
                    Some((alias, target)) => refused(format!(
                        "the alias {alias} stands for {target}; remove the alias first"
                    )),
                    None => Ok(()),
                }
            }
            Change::Alias { alias, target } => {
                check_name(alias)?;
                if self.record(alias).is_ok() {
                    return refused(format!(
                        "{alias} is a persona; an alias needs a name of its own"
                    ));
                }
                self.release(&target.name, target.version).map(|_| ())
            }
            Change::RemoveAlias { alias } => match self.aliases.contains_key(alias) {
                true => Ok(()),
                false => refused(format!("there is no alias {alias}")),
            },
            Change::Canary {
                name,
                version,
                percent,
            } => self.check_split("canary", name, *version, *percent),
            Change::Shadow {
                name,
                version,
                percent,
            } => self.check_split("shadow", name, *version, *percent),
        }
    }

    fn check_split(
        &self,
        what: &str,
        name: &str,
        version: Option<u32>,
        percent: f64,
    ) -> Result<(), RegistryError> {
        let refused = |message: String| Err(RegistryError::Refused { message });
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
                "{name} is version {version} already; a {what} is another one"
            ));
        }
        if !(percent > 0.0 && percent <= 100.0) {
            return refused(format!("percent must be above 0, to 100, not {percent}"));
        }
        Ok(())
    }

    /// Adds an entry, which must be the next one.
    ///
    /// # Errors
    /// As [`State::check`].
    pub fn apply(&mut self, entry: Arc<Entry>) -> Result<(), RegistryError> {
        self.check(&entry.change)?;
        match entry.change.clone() {
            Change::Publish {
                name,
                version,
                adapter,
                settings,
                current,
            } => {
                if let Some(adapter) = &adapter {
                    self.released.remove(&adapter.sha256);
                }
                let record = self.records.entry(name).or_default();
                let release = Release {
                    adapter,
                    settings: *settings,
                    time: entry.time,
                };
                record.versions.insert(version, release);
                record.last = version;
                if current {
                    record.make_current(version);
                }
            }
            Change::Rollback { name, version } => {
                if let Some(record) = self.records.get_mut(&name) {
                    record.make_current(version);
                }
            }
            Change::Remove { name, version } => self.remove(&name, version, entry.time),
            Change::Alias { alias, target } => {
                self.aliases.insert(alias, target);
            }
            Change::RemoveAlias { alias } => {
                self.aliases.remove(&alias);
            }
            Change::Canary {
                name,
                version,
                percent,
            } => {
                if let Some(record) = self.records.get_mut(&name) {
                    record.canary = version.map(|version| Split { version, percent });
                }
            }
            Change::Shadow {
                name,
                version,
                percent,
            } => {
                if let Some(record) = self.records.get_mut(&name) {
                    record.shadow = version.map(|version| Split { version, percent });
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
        let mut gone = Vec::new();
        match version {
            Some(version) => {
                gone.extend(record.versions.remove(&version));
                record.before.retain(|other| *other != version);
            }
            None => {
                gone.extend(std::mem::take(&mut record.versions).into_values());
                *record = Record {
                    last: record.last,
                    ..Record::default()
                };
            }
        }
        let gone: Vec<String> = gone
            .into_iter()
            .filter_map(|release| release.adapter)
            .map(|adapter| adapter.sha256)
            .collect();
        let used = self.adapters();
        let released: Vec<String> = gone
            .into_iter()
            .filter(|sha256| !used.contains_key(sha256.as_str()))
            .collect();
        for sha256 in released {
            self.released.insert(sha256, time);
        }
    }
}

impl Record {
    /// The name alone means `version` from now on; a canary or shadow of it has come to its end.
    fn make_current(&mut self, version: u32) {
        if self.current != 0 {
            self.before.retain(|other| *other != self.current);
            self.before.push(self.current);
        }
        self.before.retain(|other| *other != version);
        self.current = version;
        for split in [&mut self.canary, &mut self.shadow] {
            if split.is_some_and(|split| split.version == version) {
                *split = None;
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    match is_persona_name(name) {
        true => Ok(()),
        false => Err(RegistryError::Refused {
            message: format!(
                "{name:?} is no persona's name; a name has 1 to {} of a-z, 0-9, - and _, and begins with a letter or a \
                 digit",
                MAX_PERSONA_NAME
            ),
        }),
    }
}
