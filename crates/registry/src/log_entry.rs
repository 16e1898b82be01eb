//! One entry of the publish log, and its file `log/<20 digits>.json`.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use serde::{Deserialize, Serialize};

use crate::blob::AdapterRecord;
use crate::error::RegistryError;
use crate::settings::PersonaSettings;
use crate::spec::PersonaRef;

/// The format version that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// A change with its place in the order of all changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// [`FORMAT`].
    pub format: u32,
    /// Its sequence number, from 1.
    pub sequence: u64,
    /// Random, so that a writer whose request failed can recognize its own entry.
    pub id: String,
    /// When it was written, in seconds since 1970, by the writer's clock.
    pub time: u64,
    /// The change.
    pub change: RegistryChange,
}

/// A change of the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum RegistryChange {
    /// A new version.
    Publish {
        /// The persona.
        name: String,
        /// Its version: the highest number so far plus 1.
        version: u32,
        /// Its adapter; without one it is the base with these settings.
        adapter: Option<AdapterRecord>,
        /// Everything except the adapter.
        settings: Box<PersonaSettings>,
        /// Whether the name alone means this version from now on.
        current: bool,
    },
    /// Makes another version the current one.
    Rollback {
        /// The persona.
        name: String,
        /// A version that exists.
        version: u32,
    },
    /// Removes a version, or the persona with all versions.
    Remove {
        /// The persona.
        name: String,
        /// The version; without one, all of them.
        version: Option<u32>,
    },
    /// Another name for a persona, or for a version of it.
    Alias {
        /// The alias.
        alias: String,
        /// What it means.
        target: PersonaRef,
    },
    /// Removes an alias.
    RemoveAlias {
        /// The alias.
        alias: String,
    },
    /// Sends a percentage of the requests for the name alone to this version.
    Canary {
        /// The persona.
        name: String,
        /// The version; without one, the canary ends.
        version: Option<u32>,
        /// The percentage of requests; 0 when it ends.
        percent: f64,
    },
    /// Lets this version also answer a percentage of the requests for the name alone, for comparison only.
    Shadow {
        /// The persona.
        name: String,
        /// The version; without one, the shadow ends.
        version: Option<u32>,
        /// The percentage of requests; 0 when it ends.
        percent: f64,
    },
}

impl LogEntry {
    /// Whether it changes this name: a persona, an alias, or what an alias means.
    #[must_use]
    pub fn concerns(&self, name: &str) -> bool {
        let target = match &self.change {
            RegistryChange::Alias { target, .. } => Some(&target.name),
            _ => None,
        };
        self.change.name() == name || target.is_some_and(|target| target == name)
    }
}

impl RegistryChange {
    /// The name that it changes.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            RegistryChange::Publish { name, .. }
            | RegistryChange::Rollback { name, .. }
            | RegistryChange::Remove { name, .. }
            | RegistryChange::Canary { name, .. }
            | RegistryChange::Shadow { name, .. } => name,
            RegistryChange::Alias { alias, .. } | RegistryChange::RemoveAlias { alias } => alias,
        }
    }

    /// Its `op` in the log.
    #[must_use]
    pub fn op(&self) -> &'static str {
        match self {
            RegistryChange::Publish { .. } => "publish",
            RegistryChange::Rollback { .. } => "rollback",
            RegistryChange::Remove { .. } => "remove",
            RegistryChange::Alias { .. } => "alias",
            RegistryChange::RemoveAlias { .. } => "remove_alias",
            RegistryChange::Canary { .. } => "canary",
            RegistryChange::Shadow { .. } => "shadow",
        }
    }
}

impl fmt::Display for RegistryChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryChange::Publish {
                name,
                version,
                adapter,
                current,
                ..
            } => {
                let adapter = adapter.as_ref().map_or("no adapter", |a| &a.sha256[..12]);
                let kept = if *current { "" } else { ", not current" };
                write!(f, "{name}@{version} published ({adapter}{kept})")
            }
            RegistryChange::Rollback { name, version } => write!(f, "{name} is version {version}"),
            RegistryChange::Remove { name, version } => match version {
                Some(version) => write!(f, "{name}@{version} removed"),
                None => write!(f, "{name} removed"),
            },
            RegistryChange::Alias { alias, target } => write!(f, "{alias} is an alias of {target}"),
            RegistryChange::RemoveAlias { alias } => write!(f, "alias {alias} removed"),
            RegistryChange::Canary {
                name,
                version,
                percent,
            } => split(f, "canary", name, *version, *percent),
            RegistryChange::Shadow {
                name,
                version,
                percent,
            } => split(f, "shadow", name, *version, *percent),
        }
    }
}

fn split(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    name: &str,
    version: Option<u32>,
    percent: f64,
) -> fmt::Result {
    match version {
        Some(version) => write!(f, "{what} of {name}: version {version} at {percent} %"),
        None => write!(f, "{what} of {name} ended"),
    }
}

/// The path of an entry: 20 digits, so that names sort like numbers.
pub(crate) fn path(sequence: u64) -> String {
    format!("{FOLDER}/{sequence:020}.json")
}

/// The folder of the log.
pub(crate) const FOLDER: &str = "log";

/// The sequence number in a file's name, if it is the name of an entry.
pub(crate) fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    let all = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all)
}

/// Reads the entry at `path`, which must have the number `sequence`.
pub(crate) fn read(bytes: &[u8], path: &str, sequence: u64) -> Result<LogEntry, RegistryError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let invalid = |message: String| RegistryError::LogEntry {
        path: path.to_owned(),
        message,
    };
    let format: Format = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    if format.format > FORMAT {
        return Err(invalid(format!(
            "written in format {}; this version reads up to format {FORMAT}; use a newer lory",
            format.format
        )));
    }
    let entry: LogEntry = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    if entry.sequence != sequence {
        return Err(invalid(format!(
            "has the sequence number {} inside",
            entry.sequence
        )));
    }
    if let RegistryChange::Publish {
        adapter: Some(adapter),
        ..
    } = &entry.change
        && crate::blob::digest(&adapter.sha256).is_none()
    {
        return Err(invalid(format!("{:?} is not a sha256", adapter.sha256)));
    }
    Ok(entry)
}

/// 128 random bits in hex.
pub(crate) fn random_id() -> String {
    // Each state is seeded from the system's randomness.
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}
