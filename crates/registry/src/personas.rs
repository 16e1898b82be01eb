//! The set of personas, from a folder (`persona_folder`) or from the registry, and the lookup of a spec in it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::error::LookupError;
use crate::persona::Persona;
use crate::spec::{self, BlendPart, PersonaRef};
use crate::state::{PersonaRecord, TrafficSplit};

/// A set of personas, by name and version.
#[derive(Debug, Clone, Default)]
pub struct Personas {
    /// Sorted by name and version, so the versions of a name are contiguous.
    all: Vec<Arc<Persona>>,
    named: BTreeMap<String, NamedVersions>,
    aliases: BTreeMap<String, PersonaRef>,
}

/// The versions of one name in [`Personas::all`].
#[derive(Debug, Clone)]
struct NamedVersions {
    versions: Range<usize>,
    /// The version that the name alone means.
    current: u32,
    canary: Option<TrafficSplit>,
    shadow: Option<TrafficSplit>,
}

/// One persona of a blend, with the scale of its adapter.
#[derive(Debug, Clone, Copy)]
pub struct ScaledPersona<'a> {
    /// The persona.
    pub persona: &'a Persona,
    /// The requested weight (by default 1) times the persona's own scale.
    pub scale: f32,
    /// Another version that answers too, for comparison.
    pub shadow: Option<&'a Persona>,
}

impl Personas {
    /// A set of these personas; of two with the same name and version the later one is kept.
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

    /// Adds the versions of a new name, in ascending order. Without a record the newest is current.
    pub(crate) fn insert(
        &mut self,
        versions: impl IntoIterator<Item = Arc<Persona>>,
        record: Option<&PersonaRecord>,
    ) {
        let start = self.all.len();
        self.all.extend(versions);
        let Some(newest) = self.all[start..].last() else {
            return;
        };
        let named = NamedVersions {
            versions: start..self.all.len(),
            current: record.map_or(newest.version, |record| record.current),
            canary: record.and_then(|record| record.canary),
            shadow: record.and_then(|record| record.shadow),
        };
        self.named.insert(newest.name.clone(), named);
    }

    pub(crate) fn alias(&mut self, alias: &str, target: PersonaRef) {
        self.aliases.insert(alias.to_owned(), target);
    }

    /// The names, each once, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.named.keys().map(String::as_str).collect()
    }

    /// The aliases and what they mean.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &PersonaRef)> {
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

    /// The versions of a name, in ascending order.
    pub fn versions(&self, name: &str) -> impl Iterator<Item = &Arc<Persona>> {
        let named = self.named.get(name);
        let versions = named.map_or(&[][..], |named| &self.all[named.versions.clone()]);
        versions.iter()
    }

    /// All versions of all personas.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Persona> {
        self.all.iter().map(|persona| &**persona)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn version(&self, named: &NamedVersions, version: u32) -> Option<&Persona> {
        let versions = &self.all[named.versions.clone()];
        let index = versions.binary_search_by_key(&version, |persona| persona.version);
        index.ok().map(|index| &*versions[index])
    }

    /// The persona and version that `part` names.
    ///
    /// # Errors
    /// [`LookupError::Unknown`] with the existing names, [`LookupError::NoVersion`] with the existing versions,
    /// [`LookupError::VersionOfAlias`].
    pub fn find(&self, part: &BlendPart) -> Result<&Persona, LookupError> {
        let (named, version) = self.named_by(part)?;
        self.require(named, version.unwrap_or(named.current))
    }

    /// The versions of the part's name, and the version that it requests.
    fn named_by(&self, part: &BlendPart) -> Result<(&NamedVersions, Option<u32>), LookupError> {
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
            available: self.named.keys().cloned().collect(),
        };
        let named = self.named.get(name).ok_or_else(unknown)?;
        Ok((named, version))
    }

    fn require(&self, named: &NamedVersions, version: u32) -> Result<&Persona, LookupError> {
        let versions = &self.all[named.versions.clone()];
        self.version(named, version)
            .ok_or_else(|| LookupError::NoVersion {
                name: versions
                    .first()
                    .map_or_else(String::new, |p| p.name.clone()),
                version,
                available: versions.iter().map(|persona| persona.version).collect(),
            })
    }

    /// Parses a spec such as `customer@3*0.7+partner*0.3` and finds its personas; a part without a version means the current
    /// one.
    ///
    /// # Errors
    /// [`LookupError`]: the text is not a valid spec, or a persona does not exist.
    pub fn resolve(&self, text: &str) -> Result<Vec<ScaledPersona<'_>>, LookupError> {
        let resolve = |part: &BlendPart| {
            let persona = self.find(part)?;
            Ok(ScaledPersona::new(persona, part))
        };
        spec::parse(text)?.iter().map(resolve).collect()
    }

    /// [`Personas::resolve`] for one of many requests: a name alone may resolve to its canary, and come with its shadow. `draw`
    /// is the request's random number, uniformly distributed; equal numbers resolve equally. The requests of a canary at 10 %
    /// are among those of the same canary at 20 %.
    ///
    /// # Errors
    /// As [`Personas::resolve`].
    pub fn resolve_for(
        &self,
        text: &str,
        draw: u64,
    ) -> Result<Vec<ScaledPersona<'_>>, LookupError> {
        let resolve = |part: &BlendPart| {
            let (named, version) = self.named_by(part)?;
            if version.is_some() {
                return Ok(ScaledPersona::new(
                    self.require(named, version.unwrap_or(0))?,
                    part,
                ));
            }
            // The two splits are independent: otherwise a shadow would see only requests that the canary takes.
            let canary = named.canary.filter(|split| split.takes(draw, "canary"));
            let version = canary.map_or(named.current, |split| split.version);
            let shadow = named
                .shadow
                .filter(|split| split.version != version && split.takes(draw, "shadow"));
            let shadow = shadow.and_then(|split| self.version(named, split.version));
            Ok(ScaledPersona {
                shadow,
                ..ScaledPersona::new(self.require(named, version)?, part)
            })
        };
        spec::parse(text)?.iter().map(resolve).collect()
    }
}

impl<'a> ScaledPersona<'a> {
    fn new(persona: &'a Persona, part: &BlendPart) -> Self {
        ScaledPersona {
            persona,
            scale: part.scale.unwrap_or(1.0) * persona.scale,
            shadow: None,
        }
    }
}

impl TrafficSplit {
    /// Whether the request with this number is in the split.
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

#[cfg(test)]
mod tests {
    use formats::peft;

    use super::*;
    use crate::persona_file;

    fn folder(personas: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in personas {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join(persona_file::FILE), text).unwrap();
        }
        dir
    }

    #[test]
    fn folder_is_read_and_specs_are_resolved() {
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
        // Training has not written its last file yet, so the folder has no adapter.
        assert!(personas.get("customer").unwrap().adapter.is_none());

        std::fs::write(adapter.join(peft::CONFIG_FILE), "abc").unwrap();
        std::fs::write(adapter.join(peft::WEIGHTS_FILE), "def").unwrap();
        let personas = Personas::open(dir.path()).unwrap();
        let found = personas.get("customer").unwrap().adapter.as_ref().unwrap();
        // printf abcdef | sha256sum
        let expected = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721";
        assert_eq!(found.sha256_hex(), expected);

        let blend = personas.resolve("customer*0.5+partner@2*0.5").unwrap();
        let scales: Vec<_> = blend
            .iter()
            .map(|p| (p.persona.name.as_str(), p.scale))
            .collect();
        assert_eq!(scales, [("customer", 0.5), ("partner", 0.25)]);
    }

    #[test]
    fn unknown_persona_or_version_is_rejected_with_the_existing_ones() {
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
            "persona spec at character 3: the weight 9 is out of range; it must be from -4 to 4"
        );
        let none = Personas::default().resolve("c").unwrap_err().to_string();
        assert_eq!(none, "unknown persona `c`; there are none");
    }

    #[test]
    fn versions_of_a_name_are_kept_apart() {
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
            personas.find(&BlendPart {
                name: "a".to_owned(),
                version,
                scale: None,
            })
        };
        assert_eq!(find(Some(1)).unwrap().version, 1);
        let error = find(Some(3)).unwrap_err().to_string();
        assert_eq!(error, "persona `a` has no version 3; there are 1, 2");
    }
}
