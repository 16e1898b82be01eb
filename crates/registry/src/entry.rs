//! One entry of the publish log, as it lies in `log/<20 digits>.json`.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use serde::{Deserialize, Serialize};

use crate::error::RegistryError;
use crate::settings::PersonaSettings;
use crate::state::Target;

/// The format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// A change with its place in the order of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// [`FORMAT`].
    pub format: u32,
    /// Its place, from 1.
    pub sequence: u64,
    /// Random, so that a writer who was cut off can tell its own entry from another's.
    pub id: String,
    /// When it was written, in seconds since 1970, by the writer's clock.
    pub time: u64,
    /// What it changes.
    pub change: Change,
}

/// What an entry changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// A new version.
    Publish {
        /// The persona.
        name: String,
        /// Its version, one above every one that there ever was.
        version: u32,
        /// Its adapter; without, it speaks through its settings alone.
        adapter: Option<AdapterRecord>,
        /// Everything else.
        settings: Box<PersonaSettings>,
        /// Whether the name alone means this version from now on.
        current: bool,
    },
    /// The name alone means this version from now on.
    Rollback {
        /// The persona.
        name: String,
        /// A version that is there.
        version: u32,
    },
    /// A version is gone, or all of them.
    Remove {
        /// The persona.
        name: String,
        /// The version; without, all of them.
        version: Option<u32>,
    },
    /// Another name for a persona, or for a version of it.
    Alias {
        /// The other name.
        alias: String,
        /// What it stands for.
        target: Target,
    },
    /// The other name is gone.
    RemoveAlias {
        /// The other name.
        alias: String,
    },
    /// A part of the requests for the name alone gets this version.
    Canary {
        /// The persona.
        name: String,
        /// The version; without, the canary ends.
        version: Option<u32>,
        /// How many of a hundred requests; 0 where it ends.
        percent: f64,
    },
    /// A part of the requests for the name alone is answered by this version too, for comparison only.
    Shadow {
        /// The persona.
        name: String,
        /// The version; without, the shadow ends.
        version: Option<u32>,
        /// How many of a hundred requests; 0 where it ends.
        percent: f64,
    },
}

/// An adapter as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecord {
    /// Its content hash (see [`formats::peft::content_hash`]), 64 hexadecimal digits.
    pub sha256: String,
    /// Bytes of its weights' file.
    pub bytes: u64,
    /// The sha256 of the base that it was trained on, where it records one.
    pub base_sha256: Option<String>,
}

impl Entry {
    /// Whether it is about this name, as a persona, an alias, or what an alias stands for.
    #[must_use]
    pub fn concerns(&self, name: &str) -> bool {
        let target = match &self.change {
            Change::Alias { target, .. } => Some(&target.name),
            _ => None,
        };
        self.change.name() == name || target.is_some_and(|target| target == name)
    }
}

impl Change {
    /// The name that it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Change::Publish { name, .. }
            | Change::Rollback { name, .. }
            | Change::Remove { name, .. }
            | Change::Canary { name, .. }
            | Change::Shadow { name, .. } => name,
            Change::Alias { alias, .. } | Change::RemoveAlias { alias } => alias,
        }
    }

    /// The word for it, as in the log.
    #[must_use]
    pub fn op(&self) -> &'static str {
        match self {
            Change::Publish { .. } => "publish",
            Change::Rollback { .. } => "rollback",
            Change::Remove { .. } => "remove",
            Change::Alias { .. } => "alias",
            Change::RemoveAlias { .. } => "remove_alias",
            Change::Canary { .. } => "canary",
            Change::Shadow { .. } => "shadow",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Publish {
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
            Change::Rollback { name, version } => write!(f, "{name} is version {version}"),
            Change::Remove { name, version } => match version {
                Some(version) => write!(f, "{name}@{version} removed"),
                None => write!(f, "{name} removed"),
            },
            Change::Alias { alias, target } => write!(f, "{alias} stands for {target}"),
            Change::RemoveAlias { alias } => write!(f, "alias {alias} removed"),
            Change::Canary {
                name,
                version,
                percent,
            } => split(f, "canary", name, *version, *percent),
            Change::Shadow {
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

/// Where the entry lies: 20 digits, so that names sort as numbers do.
pub(crate) fn path(sequence: u64) -> String {
    format!("{FOLDER}/{sequence:020}.json")
}

/// The folder of the log.
pub(crate) const FOLDER: &str = "log";

/// The number in a file's name, if it is an entry's.
pub(crate) fn sequence(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    let all = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all)
}

/// Reads an entry that lies at `path` in place `sequence`.
pub(crate) fn read(bytes: &[u8], path: &str, sequence: u64) -> Result<Entry, RegistryError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let broken = |message: String| RegistryError::Entry {
        path: path.to_owned(),
        message,
    };
    let format: Format = serde_json::from_slice(bytes).map_err(|e| broken(e.to_string()))?;
    if format.format > FORMAT {
        return Err(broken(format!(
            "written in format {}, and this program knows {FORMAT}; use a newer lory",
            format.format
        )));
    }
    let entry: Entry = serde_json::from_slice(bytes).map_err(|e| broken(e.to_string()))?;
    if entry.sequence != sequence {
        return Err(broken(format!("says that it is number {}", entry.sequence)));
    }
    if let Change::Publish {
        adapter: Some(adapter),
        ..
    } = &entry.change
        && crate::blob::digest(&adapter.sha256).is_none()
    {
        return Err(broken(format!("{:?} is no sha256", adapter.sha256)));
    }
    Ok(entry)
}

/// 128 random bits in hex.
pub(crate) fn random_id() -> String {
    // Each state is seeded from the system's randomness.
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}
