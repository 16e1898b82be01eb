//! `--personas`: the folder of personas, and the places that are searched for it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use registry::{Persona, PersonaError, Personas};

use crate::cli::exit::UsageError;
use base::home::Home;
use base::hub::{self, RepositoryId, RepositoryKind};

/// `--personas`, for every command that needs personas.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PersonasArgs {
    /// The folder of personas [default: ./personas, else the one next to the program, else the one in LORY_HOME]
    #[arg(long = "personas", value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `--adapter`, for commands that answer with an adapter that is not a persona yet.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AdapterArgs {
    /// A PEFT folder, such as that of `lory train --out`, or a pulled adapter (owner/name): it becomes a persona, named after the folder; may be given
    /// several times
    #[arg(long = "adapter", value_name = "DIR|ID")]
    dirs: Vec<PathBuf>,
}

impl AdapterArgs {
    /// The adapters as personas, which have different names.
    pub fn open(&self) -> anyhow::Result<Vec<Persona>> {
        let mut adapters: Vec<Persona> = Vec::new();
        for dir in &self.dirs {
            let adapter = open_adapter(dir)?;
            if let Some(other) = adapters.iter().find(|other| other.name == adapter.name) {
                let why = format!(
                    "--adapter {} and --adapter {} would both be the persona {}; rename one of the folders",
                    other.dir.display(),
                    dir.display(),
                    adapter.name
                );
                return Err(UsageError(why).into());
            }
            adapters.push(adapter);
        }
        Ok(adapters)
    }
}

/// The adapter in a folder, or of a pulled repository.
fn open_adapter(dir: &Path) -> anyhow::Result<Persona> {
    let id = dir.to_str().and_then(RepositoryId::parse);
    // The path of a missing folder may look like a repository's id, too.
    let Some(id) = id.filter(|_| !dir.exists()) else {
        return Personas::of_adapter(dir).context("--adapter");
    };
    let pulled = |home: Home| hub::pulled_repository(&id, RepositoryKind::Adapter, &home);
    let Some(path) = Home::find().ok().and_then(pulled) else {
        anyhow::bail!(
            "--adapter {id}: no such folder, and no pulled adapter; `lory pull {id}` fetches it"
        )
    };
    Personas::of_adapter_named(&path, id.name()).context("--adapter")
}

/// The personas of the folder and those of `--adapter`, which replace those of the same names.
pub(crate) fn with_adapters(folder: Personas, adapters: Vec<Persona>) -> Personas {
    if adapters.is_empty() {
        return folder;
    }
    let others = folder.iter().filter(|persona| {
        let same = |adapter: &Persona| adapter.name == persona.name;
        !adapters.iter().any(same)
    });
    let others: Vec<Persona> = others.cloned().collect();
    Personas::new(others.into_iter().chain(adapters))
}

impl PersonasArgs {
    /// The folder.
    ///
    /// # Errors
    /// The flag is not given and no folder is found; the message lists the places.
    pub fn find(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let places = places();
        places.iter().find(|dir| dir.is_dir()).cloned().ok_or_else(|| {
            let places: Vec<String> = places.iter().map(|dir| format!("\n  {}", dir.display())).collect();
            anyhow::anyhow!(
                "no folder of personas found; looked for{}\nname one with --personas (it may be empty), or make the first persona: lory train --data FILE.jsonl --out personas/NAME\n\
                 lory chat and lory generate also answer as the base alone, without --persona",
                places.concat()
            )
        })
    }

    /// Opens the folder without the personas that are broken, and names those on stderr.
    pub fn open(&self) -> anyhow::Result<Personas> {
        open_valid(&self.find()?)
    }
}

/// Opens the folder of personas `dir` without those that are broken, and names those on stderr.
pub(crate) fn open_valid(dir: &Path) -> anyhow::Result<Personas> {
    Ok(open_counting_broken(dir)?.0)
}

/// [`open_valid`] with the number of personas that are broken. A folder that has neither a `persona.toml` nor an adapter is not counted.
pub(crate) fn open_counting_broken(dir: &Path) -> anyhow::Result<(Personas, usize)> {
    let (personas, broken) = Personas::open_valid(dir)?;
    for error in &broken {
        eprintln!("left out of the personas: {error}");
    }
    let is_persona = |error: &&PersonaError| !matches!(error, PersonaError::NoFile { .. });
    Ok((personas, broken.iter().filter(is_persona).count()))
}

/// The places of the folder if no flag names it, in order.
fn places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("personas")];
    // Next to the program or up to three folders above: target/release/lory is in the workspace that built it.
    if let Ok(program) = std::env::current_exe() {
        places.extend(
            program
                .ancestors()
                .skip(1)
                .take(4)
                .map(|dir| dir.join("personas")),
        );
    }
    if let Ok(home) = Home::find() {
        places.push(home.personas());
    }
    let mut seen: Vec<PathBuf> = Vec::new();
    places.retain(|dir| {
        let absolute = std::path::absolute(dir).unwrap_or_else(|_| Path::new(dir).to_owned());
        let new = !seen.contains(&absolute);
        seen.push(absolute);
        new
    });
    places
}
