//! Everyone who can be asked, from a folder of `<name>/persona.toml` and `<name>/adapter/` or from the registry, and
//! looking one up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;

use formats::persona_name::is_persona_name;
use sha2::{Digest as _, Sha256};

use crate::error::{LookupError, PersonaError};
use crate::file;
use crate::persona::{AdapterRef, Persona};
use crate::spec::{self, Part};
use crate::state::{Record, Split, Target};

/// The folder of a persona's adapter.
pub const ADAPTER: &str = "adapter";
/// Most personas of a folder.
const MAX_PERSONAS: usize = 100_000;

/// The personas that there are, by name.
#[derive(Debug, Clone, Default)]
pub struct Personas {
    /// By name and version.
    all: Vec<Arc<Persona>>,
    named: BTreeMap<String, Named>,
    aliases: BTreeMap<String, Target>,
}

/// The versions of one name in [`Personas::all`].
#[derive(Debug, Clone)]
struct Named {
    versions: Range<usize>,
    /// The version that the name alone means.
    current: u32,
    canary: Option<Split>,
    shadow: Option<Split>,
}

/// One persona of a blend, with the scale that its adapter runs at.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// The persona.
    pub persona: &'a Persona,
    /// The weight asked for (1 if none) times the persona's own scale.
    pub scale: f32,
    /// Another version that is to answer too, for comparison.
    pub shadow: Option<&'a Persona>,
}

impl Personas {
    /// Reads every persona in `dir`, which may be empty. Files and hidden folders are passed over. Adapters are hashed,
    /// not read.
    ///
    /// # Errors
    /// [`PersonaError`] for the first folder, by name, that is no persona.
    pub fn open(dir: &Path) -> Result<Self, PersonaError> {
        let io = |source| PersonaError::Io {
            path: dir.to_owned(),
            source,
        };
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !hidden && entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
        if folders.len() > MAX_PERSONAS {
            let said = format!(
                "{} folders; at most {MAX_PERSONAS} personas are read",
                folders.len()
            );
            return Err(io(std::io::Error::other(said)));
        }
        folders.sort_unstable();
        // Hashing is most of it, and a thousand adapters are ten gigabytes.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = folders.len().div_ceil(threads).max(1);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let shares: Vec<_> = folders
                .chunks(share)
                .map(|share| scope.spawn(|| share.iter().map(|dir| open_one(dir)).collect()))
                .collect();
            let joined = shares.into_iter().map(|share| share.join());
            joined
                .map(|share: std::thread::Result<Vec<_>>| {
                    share.unwrap_or_else(|e| resume_unwind(e))
                })
                .collect()
        });
        let opened: Result<Vec<Persona>, _> = opened.into_iter().flatten().collect();
        opened.map(Personas::new)
    }

    /// Personas that come from elsewhere; of two with the same name and version the later one is kept.
    #[must_use]
    pub fn new(personas: impl IntoIterator<Item = Persona>) -> Self {
        let mut by_name: BTreeMap<String, BTreeMap<u32, Arc<Persona>>> = BTreeMap::new();
        for persona in personas {
            let versions = by_name.entry(persona.name.clone()).or_default();
            versions.insert(persona.version, Arc::new(persona));
        }
        let mut all = Personas::default();
        for versions in by_name.into_values() {
            all.insert(versions.into_values(), None);
        }
        all
    }

    /// Adds the versions, rising, of a name that is not there yet; the newest is current where no record says otherwise.
    pub(crate) fn insert(
        &mut self,
        versions: impl IntoIterator<Item = Arc<Persona>>,
        record: Option<&Record>,
    ) {
        let start = self.all.len();
        self.all.extend(versions);
        let Some(newest) = self.all[start..].last() else {
            return;
        };
        let named = Named {
            versions: start..self.all.len(),
            current: record.map_or(newest.version, |record| record.current),
            canary: record.and_then(|record| record.canary),
            shadow: record.and_then(|record| record.shadow),
        };
        self.named.insert(newest.name.clone(), named);
    }

    pub(crate) fn alias(&mut self, alias: &str, target: Target) {
        self.aliases.insert(alias.to_owned(), target);
    }

    /// The names, each once, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.named.keys().map(String::as_str).collect()
    }

    /// The aliases and what they stand for.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.aliases
            .iter()
            .map(|(alias, target)| (alias.as_str(), target))
    }

    /// The persona that the name alone means.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Persona> {
        let named = self.named.get(name)?;
        self.version(named, named.current)
    }

    /// The versions of a name, rising.
    pub fn versions(&self, name: &str) -> impl Iterator<Item = &Arc<Persona>> {
        let named = self.named.get(name);
        let versions = named.map_or(&[][..], |named| &self.all[named.versions.clone()]);
        versions.iter()
    }

    /// All personas, each in all its versions.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Persona> {
        self.all.iter().map(|persona| &**persona)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn version(&self, named: &Named, version: u32) -> Option<&Persona> {
        let versions = &self.all[named.versions.clone()];
        let index = versions.binary_search_by_key(&version, |persona| persona.version);
        index.ok().map(|index| &*versions[index])
    }

    /// The persona that `part` names, in its version.
    ///
    /// # Errors
    /// [`LookupError::Unknown`] with the names that there are, [`LookupError::NoVersion`] with the versions,
    /// [`LookupError::VersionOfAlias`].
    pub fn find(&self, part: &Part) -> Result<&Persona, LookupError> {
        let (named, version) = self.named(part)?;
        self.found(named, version.unwrap_or(named.current))
    }

    /// Where the versions of the part's name are, and which of them it asks for.
    fn named(&self, part: &Part) -> Result<(&Named, Option<u32>), LookupError> {
        let target = self.aliases.get(&part.name);
        if let (Some(target), Some(_)) = (target, part.version) {
            return Err(LookupError::VersionOfAlias {
                alias: part.name.clone(),
                target: target.name.clone(),
            });
        }
        let (name, version) = match target {
            Some(target) => (&target.name, target.version),
            None => (&part.name, part.version),
        };
        let unknown = || LookupError::Unknown {
            name: part.name.clone(),
            known: self.named.keys().cloned().collect(),
        };
        let named = self.named.get(name).ok_or_else(unknown)?;
        Ok((named, version))
    }

    fn found(&self, named: &Named, version: u32) -> Result<&Persona, LookupError> {
        let versions = &self.all[named.versions.clone()];
        self.version(named, version)
            .ok_or_else(|| LookupError::NoVersion {
                name: versions
                    .first()
                    .map_or_else(String::new, |p| p.name.clone()),
                version,
                there: versions.iter().map(|persona| persona.version).collect(),
            })
    }

    /// Reads a spec such as `customer@3*0.7+partner*0.3` and finds its personas, the current version of each that has none
    /// in the spec.
    ///
    /// # Errors
    /// [`LookupError`]: what is wrong with the text, or who is not there.
    pub fn resolve(&self, text: &str) -> Result<Vec<Chosen<'_>>, LookupError> {
        let choose = |part: &Part| {
            let persona = self.find(part)?;
            Ok(Chosen::new(persona, part))
        };
        spec::parse(text)?.iter().map(choose).collect()
    }

    /// [`Personas::resolve`] for one request of many: a name alone may lead to its canary, and bring its shadow. `draw` is
    /// the request's own number, evenly drawn; equal numbers give equal answers. A canary of 10 % takes the same requests at
    /// 20 % and more.
    ///
    /// # Errors
    /// As [`Personas::resolve`].
    pub fn resolve_for(&self, text: &str, draw: u64) -> Result<Vec<Chosen<'_>>, LookupError> {
        let choose = |part: &Part| {
            let (named, version) = self.named(part)?;
            if version.is_some() {
                return Ok(Chosen::new(self.found(named, version.unwrap_or(0))?, part));
            }
            // The two draws must not be one, or a shadow would see only what the canary takes.
            let canary = named.canary.filter(|split| split.takes(draw, "canary"));
            let version = canary.map_or(named.current, |split| split.version);
            let shadow = named
                .shadow
                .filter(|split| split.version != version && split.takes(draw, "shadow"));
            let shadow = shadow.and_then(|split| self.version(named, split.version));
            Ok(Chosen {
                shadow,
                ..Chosen::new(self.found(named, version)?, part)
            })
        };
        spec::parse(text)?.iter().map(choose).collect()
    }
}

impl<'a> Chosen<'a> {
    fn new(persona: &'a Persona, part: &Part) -> Self {
        Chosen {
            persona,
            scale: part.scale.unwrap_or(1.0) * persona.scale,
            shadow: None,
        }
    }
}

impl Split {
    /// Whether it takes the request with this number.
    fn takes(&self, draw: u64, what: &str) -> bool {
        let mut hasher = Sha256::new();
        hasher.update(draw.to_le_bytes());
        hasher.update(what);
        let hash = hasher.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        let share = u64::from_le_bytes(first) as f64 / 2f64.powi(64);
        share * 100.0 < self.percent
    }
}

fn open_one(dir: &Path) -> Result<Persona, PersonaError> {
    let name = dir
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| is_persona_name(name));
    let name = name.ok_or_else(|| PersonaError::Name {
        path: dir.to_owned(),
    })?;
    let path = dir.join(file::FILE);
    if !path.exists() {
        return Err(PersonaError::NoFile {
            path: dir.to_owned(),
        });
    }
    let settings = file::read(&path)?;
    Ok(Persona {
        name: name.to_owned(),
        version: settings.version,
        description: settings.description,
        system_prompt: settings.system_prompt,
        variables: settings.variables,
        sampling: settings.sampling,
        max_new_tokens: settings.max_new_tokens,
        stop: settings.stop,
        scale: settings.scale,
        adapter: AdapterRef::in_folder(&dir.join(ADAPTER))?,
        train: settings.train,
        eval: settings.eval,
        dir: dir.to_owned(),
        published: None,
    })
}

#[cfg(test)]
mod tests {
    use formats::peft;

    use super::*;

    fn folder(personas: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in personas {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join(file::FILE), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_is_read_and_asked() {
        let dir = folder(&[
            ("partner", "version = 2\nscale = 0.5"),
            ("customer", "description = 'warm'"),
        ]);
        std::fs::write(dir.path().join("README.md"), "not a persona").unwrap();
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        let adapter = dir.path().join("customer/adapter");
        std::fs::create_dir(&adapter).unwrap();
        std::fs::write(adapter.join("loss.svg"), "").unwrap();
        let personas = Personas::open(dir.path()).unwrap();
        assert_eq!(personas.names(), ["customer", "partner"]);
        assert_eq!(personas.get("customer").unwrap().description, "warm");
        // A folder in which training has not written its last file yet holds no adapter.
        assert!(personas.get("customer").unwrap().adapter.is_none());

        std::fs::write(adapter.join(peft::CONFIG_FILE), "abc").unwrap();
        std::fs::write(adapter.join(peft::WEIGHTS_FILE), "def").unwrap();
        let personas = Personas::open(dir.path()).unwrap();
        let found = personas.get("customer").unwrap().adapter.as_ref().unwrap();
        // printf abcdef | sha256sum
        let expected = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";
        assert_eq!(found.sha256_hex(), expected);

        let chosen = personas.resolve("customer*0.5+partner@2*0.5").unwrap();
        let scales: Vec<_> = chosen
            .iter()
            .map(|c| (c.persona.name.as_str(), c.scale))
            .collect();
        assert_eq!(scales, [("customer", 0.5), ("partner", 0.25)]);
    }

    #[test]
    fn who_is_not_there_is_answered_with_who_is() {
        let dir = folder(&[("a", ""), ("b", "version = 4")]);
        let personas = Personas::open(dir.path()).unwrap();
        let error = |text: &str| personas.resolve(text).unwrap_err().to_string();
        assert_eq!(error("c"), "unknown persona `c`; the personas are a, b");
        assert_eq!(
            error("b@3"),
            "persona `b` has no version 3; there is only version 4"
        );
        assert_eq!(
            error("a*9"),
            "persona spec at character 3: the weight 9 is out of range; it must lie from -4 to 4"
        );
        let none = Personas::default().resolve("c").unwrap_err().to_string();
        assert_eq!(none, "unknown persona `c`; there are none");
    }

    #[test]
    fn several_versions_are_kept_apart() {
        let dir = folder(&[("a", "version = 2")]);
        let folder = Personas::open(dir.path()).unwrap();
        let two = folder.get("a").unwrap().clone();
        let one = Persona {
            version: 1,
            ..two.clone()
        };
        let personas = Personas::new([two.clone(), one, two]);
        assert_eq!(personas.iter().len(), 2);
        assert_eq!(personas.names(), ["a"]);
        assert_eq!(personas.get("a").unwrap().version, 2);
        let find = |version| {
            personas.find(&Part {
                name: "a".to_owned(),
                version,
                scale: None,
            })
        };
        assert_eq!(find(Some(1)).unwrap().version, 1);
        let error = find(Some(3)).unwrap_err().to_string();
        assert_eq!(error, "persona `a` has no version 3; there are 1, 2");
    }

    #[test]
    fn what_is_no_persona_is_refused_by_its_path() {
        let error = |dir: &tempfile::TempDir| Personas::open(dir.path()).unwrap_err().to_string();
        assert!(error(&folder(&[("Upper", "")])).contains("Upper: a persona's name has"));
        assert!(error(&folder(&[("a", "x = 1")])).contains("persona.toml:1: unknown field"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bare")).unwrap();
        assert!(error(&dir).contains("bare: has no persona.toml"));
        let missing = Personas::open(&dir.path().join("none"))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("none: "), "{missing}");
        assert!(
            Personas::open(tempfile::tempdir().unwrap().path())
                .unwrap()
                .is_empty()
        );

        let dir = folder(&[("a", "")]);
        std::fs::create_dir(dir.path().join("a/adapter")).unwrap();
        std::fs::write(dir.path().join("a/adapter/adapter_config.json"), "{}").unwrap();
        assert!(error(&dir).contains("adapter_model.safetensors"));
    }
}
