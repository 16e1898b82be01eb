//! Reads personas from folders: `<name>/persona.toml` and `<name>/adapter/`, or a PEFT folder.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::Path;

use formats::persona_name::{MAX_PERSONA_NAME, is_persona_name};

use crate::error::PersonaError;
use crate::persona::{AdapterRef, Persona};
use crate::persona_file;
use crate::personas::Personas;

/// The folder of a persona's adapter.
pub const ADAPTER: &str = "adapter";
/// The most personas in a folder.
const MAX_PERSONAS: usize = 100_000;
/// Folders that file systems and programs make.
const NOT_PERSONAS: [&str; 2] = ["lost+found", "__pycache__"];

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
