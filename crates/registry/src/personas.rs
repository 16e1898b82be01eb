//! The set of personas, from a folder of `<name>/persona.toml` and `<name>/adapter/` or from the registry, and the lookup of
//! a spec in it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;

use formats::persona_name::{MAX_PERSONA_NAME, is_persona_name};
use sha2::{Digest as _, Sha256};

use crate::error::{LookupError, PersonaError};
use crate::persona::{AdapterRef, Persona};
use crate::persona_file;
use crate::spec::{self, BlendPart, PersonaRef};
use crate::state::{PersonaRecord, TrafficSplit};

/// The folder of a persona's adapter.
pub const ADAPTER: &str = "adapter";
/// The most personas in a folder.
const MAX_PERSONAS: usize = 100_000;
/// Folders that file systems and programs make.
const NOT_PERSONAS: [&str; 2] = ["lost+found", "__pycache__"];

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
    /// Reads every persona in `dir`, which may be empty. Files, hidden folders and those of file systems and programs (`lost+found`,
    /// `__pycache__`) are ignored. A persona has the name of its folder, in lower case and with `-` for what a name may not have. A PEFT folder without a `persona.toml` is a persona. Adapters are hashed, not parsed.
    ///
    /// # Errors
    /// [`PersonaError`] for the first folder, by name, that is not a valid persona.
    pub fn open(dir: &Path) -> Result<Self, PersonaError> {
        let (personas, broken) = Personas::open_valid(dir)?;
        match broken.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(personas),
        }
    }

    /// [`Personas::open`], leaving out the folders that are not valid personas: returns their errors, by name.
    ///
    /// # Errors
    /// [`PersonaError::Io`]: `dir` cannot be read.
    pub fn open_valid(dir: &Path) -> Result<(Self, Vec<PersonaError>), PersonaError> {
        let io = |source| PersonaError::Io {
            path: dir.to_owned(),
            source,
        };
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let is_other = name.as_encoded_bytes().starts_with(b".")
                || NOT_PERSONAS.iter().any(|other| name == *other);
            if !is_other && entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
        if folders.len() > MAX_PERSONAS {
            let message = format!(
                "{} folders; at most {MAX_PERSONAS} personas are read",
                folders.len()
            );
            return Err(io(std::io::Error::other(message)));
        }
        // A folder that has a persona's name comes before those whose names are only similar.
        folders.sort_unstable_by_key(|dir| (!is_persona_name(&folder_name(dir)), dir.clone()));
        // In parallel: hashing takes most of the time, and a thousand adapters are ten gigabytes.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = folders.len().div_ceil(threads).max(1);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let shares: Vec<_> = folders
                .chunks(share)
                .map(|share| scope.spawn(|| share.iter().map(|dir| open_one(dir)).collect()))
                .collect();
            let joined = shares.into_iter().map(|share| share.join());
            joined
                .map(
                    |share: std::thread::Result<Vec<Result<Persona, PersonaError>>>| {
                        share.unwrap_or_else(|e| resume_unwind(e))
                    },
                )
                .collect()
        });
        let (mut personas, mut broken) = (BTreeMap::new(), Vec::new());
        for opened in opened.into_iter().flatten() {
            match opened.and_then(|persona| not_taken(persona, &personas)) {
                Ok(persona) => {
                    personas.insert(persona.name.clone(), persona);
                }
                Err(error) => broken.push(error),
            }
        }
        Ok((Personas::new(personas.into_values()), broken))
    }

    /// The adapter in the PEFT folder `dir`, or in its folder `adapter`, as a persona. Its name is the folder's, as far as a name may have the
    /// characters. A `persona.toml` in `dir` has its settings.
    ///
    /// # Errors
    /// [`PersonaError`]: there is no adapter, or it is not a valid persona.
    pub fn of_adapter(dir: &Path) -> Result<Persona, PersonaError> {
        let whole = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Personas::of_adapter_named(dir, &folder_name(&whole))
    }

    /// [`Personas::of_adapter`] with another name than the folder's.
    ///
    /// # Errors
    /// As [`Personas::of_adapter`].
    pub fn of_adapter_named(dir: &Path, name: &str) -> Result<Persona, PersonaError> {
        let name = persona_name(name).unwrap_or_else(|| ADAPTER.to_owned());
        let path = dir.to_owned();
        if !dir.exists() {
            return Err(PersonaError::NoFolder { path });
        }
        if !dir.is_dir() {
            return Err(PersonaError::NotFolder { path });
        }
        match read_folder(dir, &name) {
            Ok(persona) if persona.adapter.is_some() => Ok(persona),
            Ok(_) | Err(PersonaError::NoFile { .. }) => Err(PersonaError::NoAdapter { path }),
            Err(error) => Err(error),
        }
    }

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

fn open_one(dir: &Path) -> Result<Persona, PersonaError> {
    let name = persona_name(&folder_name(dir)).ok_or_else(|| PersonaError::Name {
        path: dir.to_owned(),
    })?;
    read_folder(dir, &name)
}

fn folder_name(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The name of the persona in a folder of this name, which is the same if it is valid; `None` if nothing of it is.
fn persona_name(folder: &str) -> Option<String> {
    let allowed = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() || c == '_' => c,
        _ => '-',
    };
    let name: String = folder.chars().map(allowed).collect();
    let name = name.trim_start_matches(['-', '_']);
    let name: String = name.chars().take(MAX_PERSONA_NAME).collect();
    (!name.is_empty()).then_some(name)
}

/// The persona, if none of `others` has its name.
fn not_taken(
    persona: Persona,
    others: &BTreeMap<String, Persona>,
) -> Result<Persona, PersonaError> {
    match others.get(&persona.name) {
        None => Ok(persona),
        Some(other) => Err(PersonaError::SameName {
            path: persona.dir,
            name: persona.name,
            other: other.dir.clone(),
        }),
    }
}

/// The persona in `dir` under this name.
fn read_folder(dir: &Path, name: &str) -> Result<Persona, PersonaError> {
    let path = dir.join(persona_file::FILE);
    // The adapter may be the folder itself, as other programs write it.
    let adapter = match AdapterRef::in_folder(&dir.join(ADAPTER))? {
        None => AdapterRef::in_folder(dir)?,
        found => found,
    };
    let settings = match path.exists() {
        true => persona_file::read(&path)?,
        false if adapter.is_some() => persona_file::parse("", &path)?,
        false => {
            return Err(PersonaError::NoFile {
                path: dir.to_owned(),
            });
        }
    };
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
        adapter,
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

    #[test]
    fn path_without_an_adapter_is_reported_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        std::fs::create_dir(path("empty")).unwrap();
        for (name, expected) in [
            ("gone", "gone: no such folder"),
            (
                "file",
                "file: is a file; name the folder that has adapter_config.json",
            ),
            ("empty", "empty: has no adapter"),
        ] {
            let message = Personas::of_adapter(&path(name)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn bare_adapter_is_a_persona_named_after_its_folder() {
        let dir = folder(&[("toml", "version = 3")]);
        for name in ["bare", "toml"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(peft::CONFIG_FILE), "abc").unwrap();
            std::fs::write(path.join(peft::WEIGHTS_FILE), "def").unwrap();
        }
        let personas = Personas::open(dir.path()).unwrap();
        for (name, version) in [("bare", 1), ("toml", 3)] {
            let persona = personas.get(name).unwrap();
            assert_eq!((persona.version, persona.scale), (version, 1.0));
            let adapter = persona.adapter.as_ref().unwrap();
            assert_eq!(adapter.path, dir.path().join(name));
        }
    }

    #[test]
    fn any_adapter_is_a_persona_under_a_valid_name() {
        let parent = tempfile::tempdir().unwrap();
        for (folder, inner, name) in [
            ("pirate", "", "pirate"),
            ("My Pirate v2.1", "", "my-pirate-v2-1"),
            ("_x", "adapter", "x"),
            ("é", "", "adapter"),
        ] {
            let dir = parent.path().join(folder);
            let inside = dir.join(inner);
            std::fs::create_dir_all(&inside).unwrap();
            let missing = Personas::of_adapter(&dir).unwrap_err().to_string();
            assert!(
                missing.contains("has no adapter") || missing.contains("has no persona.toml"),
                "{missing}"
            );
            std::fs::write(inside.join(peft::CONFIG_FILE), "abc").unwrap();
            std::fs::write(inside.join(peft::WEIGHTS_FILE), "def").unwrap();
            let persona = Personas::of_adapter(&dir).unwrap();
            assert_eq!(persona.name, name);
            assert!(is_persona_name(&persona.name) && persona.adapter.is_some());
        }
    }

    #[test]
    fn broken_personas_do_not_hide_the_others() {
        let dir = folder(&[("a", ""), ("b", "x = 1"), ("c", ""), ("é", "")]);
        for name in ["lost+found", "__pycache__", ".git", "empty"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (personas, broken) = Personas::open_valid(dir.path()).unwrap();
        assert_eq!(personas.names(), ["a", "c"]);
        let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
        assert_eq!(broken.len(), 3, "{broken:?}");
        for (message, expected) in broken.iter().zip([
            "b/persona.toml:1: unknown field",
            "empty: has no persona.toml",
            "é: a persona's name has",
        ]) {
            assert!(message.contains(expected), "{message}");
        }
        assert!(Personas::open(dir.path()).is_err());
    }

    #[test]
    fn folder_with_another_name_is_a_persona_with_a_similar_one() {
        let dir = folder(&[
            ("My Persona", "scale = 0.5"),
            ("Qwen2.5-LoRA", ""),
            ("Warm", "scale = 0.25"),
            ("warm", "scale = 0.75"),
        ]);
        let (personas, broken) = Personas::open_valid(dir.path()).unwrap();
        assert_eq!(personas.names(), ["my-persona", "qwen2-5-lora", "warm"]);
        let found = personas.get("my-persona").unwrap();
        assert_eq!(
            (found.scale, &found.dir),
            (0.5, &dir.path().join("My Persona"))
        );
        // The folder with the persona's own name wins, and the other one is reported.
        assert_eq!(personas.get("warm").unwrap().scale, 0.75);
        assert_eq!(broken.len(), 1);
        let message = broken[0].to_string();
        assert!(
            message.contains("Warm: would be the persona warm, as") && message.contains("rename"),
            "{message}"
        );
    }

    #[test]
    fn invalid_persona_folder_is_rejected_by_path() {
        let error = |dir: &tempfile::TempDir| Personas::open(dir.path()).unwrap_err().to_string();
        assert!(error(&folder(&[("é", "")])).contains("é: a persona's name has"));
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
