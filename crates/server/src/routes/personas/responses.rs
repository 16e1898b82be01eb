//! What the routes about personas return, and `lory persona ... --json` prints.

use std::collections::BTreeMap;

use registry::{
    AdapterRecord, CollectedGarbage, LogEntry, Persona, PersonaRecord, PersonaRef, PersonaSettings,
    Personas, RegistryChange, RegistryError, RegistryState, Release, TrafficSplit, VerifiedAdapter,
};
use serde::Serialize;
use service::Catalog;
use utoipa::ToSchema;

use super::settings_schema::SettingsShape;

/// Every persona, and the aliases.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonaList {
    /// `list`.
    object: &'static str,
    /// The personas, by name.
    pub data: Vec<PersonaCard>,
    /// What each alias means: a name, or `name@version`.
    pub aliases: BTreeMap<String, String>,
}

/// A persona as it is now.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonaCard {
    /// `persona`.
    object: &'static str,
    /// Its name.
    pub name: String,
    /// `registry` or `folder`.
    pub source: &'static str,
    /// The version that the name alone means.
    pub version: u32,
    /// Every version.
    pub versions: Vec<u32>,
    /// One line for people; may be empty.
    pub description: String,
    /// Its adapter, if it has one.
    #[schema(required)]
    pub adapter: Option<Adapter>,
    /// A Unix time; none for a persona in a folder.
    #[schema(required)]
    pub published: Option<u64>,
    #[schema(required)]
    canary: Option<Split>,
    #[schema(required)]
    shadow: Option<Split>,
}

/// An adapter in the registry.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AdapterShown)]
pub struct Adapter {
    /// The content hash.
    pub sha256: String,
    /// Bytes of its weights file.
    pub bytes: u64,
    /// The base that it was trained on, if it records one.
    #[schema(required)]
    pub base_sha256: Option<String>,
}

impl From<&AdapterRecord> for Adapter {
    fn from(adapter: &AdapterRecord) -> Adapter {
        Adapter {
            sha256: adapter.sha256.clone(),
            bytes: adapter.bytes,
            base_sha256: adapter.base_sha256.clone(),
        }
    }
}

/// A percentage of the requests, and the version that answers them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SplitShown)]
pub struct Split {
    /// The version.
    pub version: u32,
    /// The percentage of requests.
    pub percent: f64,
}

impl From<TrafficSplit> for Split {
    fn from(split: TrafficSplit) -> Split {
        Split {
            version: split.version,
            percent: split.percent,
        }
    }
}

/// One version of a persona.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonaVersion {
    /// `persona.version`.
    object: &'static str,
    /// The persona's name.
    pub name: String,
    /// `registry` or `folder`.
    pub source: &'static str,
    /// The version.
    pub version: u32,
    /// Whether the name alone means it.
    pub current: bool,
    /// A Unix time; none for a persona in a folder.
    #[schema(required)]
    pub published: Option<u64>,
    /// Its adapter, if it has one.
    #[schema(required)]
    pub adapter: Option<Adapter>,
    /// Everything except the adapter.
    #[schema(value_type = SettingsShape)]
    pub settings: PersonaSettings,
    /// The requests that it answers as a canary.
    #[schema(required)]
    pub canary: Option<Split>,
    /// The requests that it also answers, for comparison.
    #[schema(required)]
    pub shadow: Option<Split>,
    /// The aliases that mean it.
    pub aliases: Vec<String>,
}

/// The versions of a persona, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionList {
    /// `list`.
    object: &'static str,
    data: Vec<PersonaVersion>,
}

/// Entries of the log, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct History {
    /// `list`.
    object: &'static str,
    /// The entries.
    pub data: Vec<HistoryEntry>,
}

/// An entry of the log.
#[derive(Debug, Serialize, ToSchema)]
pub struct HistoryEntry {
    /// Its place in the log, from 1.
    pub sequence: u64,
    /// A Unix time.
    pub time: u64,
    /// The change in words.
    pub summary: String,
    /// The change as it is in the log: `op` is its kind.
    #[schema(value_type = serde_json::Value)]
    pub change: RegistryChange,
}

/// What was removed.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonaRemoved {
    /// `persona.removed`.
    object: &'static str,
    name: String,
    /// None if every version was removed.
    #[schema(required)]
    version: Option<u32>,
    /// True.
    removed: bool,
}

/// Another name.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AliasShown)]
pub struct Alias {
    /// `persona.alias`.
    object: &'static str,
    alias: String,
    /// `name`, or `name@version`.
    target: String,
}

/// A removed alias.
#[derive(Debug, Serialize, ToSchema)]
pub struct AliasRemoved {
    /// `persona.alias.removed`.
    object: &'static str,
    alias: String,
    /// True.
    removed: bool,
}

/// The result of a verification.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerifiedList {
    /// `list`.
    object: &'static str,
    data: Vec<Verified>,
    /// How many adapters are damaged.
    pub broken: u64,
}

/// The result of verifying one adapter.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VerifiedAdapter)]
pub struct Verified {
    sha256: String,
    /// The versions that use it, each as `name@version`.
    used_by: Vec<String>,
    ok: bool,
    /// What is wrong with it.
    #[schema(required)]
    problem: Option<String>,
}

/// What a garbage collection removed, or would remove.
#[derive(Debug, Serialize, ToSchema)]
pub struct Garbage {
    /// `registry.gc`.
    object: &'static str,
    dry_run: bool,
    /// Hashes of removed adapters, or of those that would be removed.
    removed: Vec<String>,
    /// Hashes of unused adapters that are too young to be removed.
    too_young: Vec<String>,
    /// How many adapters are in use.
    used: u64,
}

impl PersonaList {
    /// The personas of a catalog with their current versions.
    pub fn new(catalog: &Catalog) -> PersonaList {
        let state = catalog.registry().map(|registry| registry.state());
        let personas = catalog.personas();
        let card = |name: &str| {
            let record = state.as_ref().and_then(|state| state.record(name).ok());
            match record {
                Some(record) => Some(PersonaCard::published(name, record)),
                None => personas.get(name).map(PersonaCard::in_folder),
            }
        };
        PersonaList {
            object: "list",
            data: personas.names().into_iter().filter_map(card).collect(),
            aliases: aliases_of(&personas),
        }
    }
}

fn aliases_of(personas: &Personas) -> BTreeMap<String, String> {
    let aliases = personas.aliases();
    aliases
        .map(|(alias, target)| (alias.to_owned(), target.to_string()))
        .collect()
}

impl PersonaCard {
    fn published(name: &str, record: &PersonaRecord) -> PersonaCard {
        let current = record.versions.get(&record.current);
        let adapter = current.and_then(|release| release.adapter.as_ref());
        PersonaCard {
            object: "persona",
            name: name.to_owned(),
            source: "registry",
            version: record.current,
            versions: record.versions.keys().copied().collect(),
            description: current
                .map_or_else(String::new, |release| release.settings.description.clone()),
            adapter: adapter.map(Adapter::from),
            published: current.map(|release| release.time),
            canary: record.canary.map(Split::from),
            shadow: record.shadow.map(Split::from),
        }
    }

    fn in_folder(persona: &Persona) -> PersonaCard {
        PersonaCard {
            object: "persona",
            name: persona.name.clone(),
            source: "folder",
            version: persona.version,
            versions: vec![persona.version],
            description: persona.description.clone(),
            adapter: folder_adapter(persona),
            published: None,
            canary: None,
            shadow: None,
        }
    }
}

fn folder_adapter(persona: &Persona) -> Option<Adapter> {
    persona.adapter.as_ref().map(|adapter| Adapter {
        sha256: adapter.sha256_hex(),
        bytes: adapter.bytes,
        base_sha256: None,
    })
}

impl PersonaVersion {
    /// A version of a published persona; by default the current one.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::NoVersion`].
    pub fn published(
        state: &RegistryState,
        name: &str,
        version: Option<u32>,
    ) -> Result<PersonaVersion, RegistryError> {
        let record = state.record(name)?;
        let (version, release) = state.release(name, version)?;
        let Release {
            adapter,
            settings,
            time,
        } = release;
        let current = version == record.current;
        let of_version = |split: &TrafficSplit| split.version == version;
        Ok(PersonaVersion {
            object: "persona.version",
            name: name.to_owned(),
            source: "registry",
            version,
            current,
            published: Some(*time),
            adapter: adapter.as_ref().map(Adapter::from),
            settings: settings.clone(),
            canary: record.canary.filter(of_version).map(Split::from),
            shadow: record.shadow.filter(of_version).map(Split::from),
            aliases: aliases_of_version(state, name, current, version),
        })
    }

    /// The only version of a persona in a folder.
    pub fn in_folder(persona: &Persona) -> PersonaVersion {
        PersonaVersion {
            object: "persona.version",
            name: persona.name.clone(),
            source: "folder",
            version: persona.version,
            current: true,
            published: None,
            adapter: folder_adapter(persona),
            settings: PersonaSettings::of(persona),
            canary: None,
            shadow: None,
            aliases: Vec::new(),
        }
    }
}

fn aliases_of_version(
    state: &RegistryState,
    name: &str,
    current: bool,
    version: u32,
) -> Vec<String> {
    let means_it = |(_, target): &(&String, &PersonaRef)| {
        target.name == name && target.version.map_or(current, |pinned| pinned == version)
    };
    let aliases = state.aliases.iter().filter(means_it);
    aliases.map(|(alias, _)| alias.clone()).collect()
}

impl VersionList {
    /// Every version of a published persona.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn published(state: &RegistryState, name: &str) -> Result<VersionList, RegistryError> {
        let record = state.record(name)?;
        let versions = record.versions.keys().rev();
        let data: Result<_, _> = versions
            .map(|version| PersonaVersion::published(state, name, Some(*version)))
            .collect();
        Ok(VersionList {
            object: "list",
            data: data?,
        })
    }

    /// The only version of a persona in a folder.
    pub fn in_folder(persona: &Persona) -> VersionList {
        VersionList {
            object: "list",
            data: vec![PersonaVersion::in_folder(persona)],
        }
    }
}

impl History {
    /// The log entries of one persona, or all of them.
    pub fn new(state: &RegistryState, name: Option<&str>) -> History {
        let concerns = |entry: &&LogEntry| name.is_none_or(|name| entry.concerns(name));
        let entries = state.entries.iter().map(AsRef::as_ref).filter(concerns);
        let data = entries.map(|entry: &LogEntry| HistoryEntry {
            sequence: entry.sequence,
            time: entry.time,
            summary: entry.change.to_string(),
            change: entry.change.clone(),
        });
        History {
            object: "list",
            data: data.collect(),
        }
    }
}

impl PersonaRemoved {
    pub(crate) fn new(name: String, version: Option<u32>) -> PersonaRemoved {
        PersonaRemoved {
            object: "persona.removed",
            name,
            version,
            removed: true,
        }
    }
}

impl Alias {
    pub(crate) fn new(alias: &str, target: &PersonaRef) -> Alias {
        Alias {
            object: "persona.alias",
            alias: alias.to_owned(),
            target: target.to_string(),
        }
    }
}

impl AliasRemoved {
    pub(crate) fn new(alias: &str) -> AliasRemoved {
        AliasRemoved {
            object: "persona.alias.removed",
            alias: alias.to_owned(),
            removed: true,
        }
    }
}

impl VerifiedList {
    /// From the registry's result.
    pub fn new(verified: &[VerifiedAdapter]) -> VerifiedList {
        let one = |adapter: &VerifiedAdapter| Verified {
            sha256: adapter.sha256.clone(),
            used_by: adapter.used_by.iter().map(ToString::to_string).collect(),
            ok: adapter.problem.is_none(),
            problem: adapter.problem.clone(),
        };
        VerifiedList {
            object: "list",
            data: verified.iter().map(one).collect(),
            broken: verified.iter().filter(|one| one.problem.is_some()).count() as u64,
        }
    }
}

impl Garbage {
    /// From the registry's result.
    pub fn new(collected: CollectedGarbage, dry_run: bool) -> Garbage {
        Garbage {
            object: "registry.gc",
            dry_run,
            removed: collected.removed,
            too_young: collected.too_young,
            used: collected.used as u64,
        }
    }
}
