//! `--personas`: the folder of personas, or where one is looked for.

use std::path::{Path, PathBuf};

use registry::Personas;

use base::home::Home;

/// The flag, for every command that needs personas.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PersonasArgs {
    /// The folder of personas [default: ./personas, else the one beside the program, else the one in LORY_HOME]
    #[arg(long = "personas", value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

impl PersonasArgs {
    /// The folder.
    ///
    /// # Errors
    /// None was named and none is found; the message says where it was looked for.
    pub fn find(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let places = places();
        places.iter().find(|dir| dir.is_dir()).cloned().ok_or_else(|| {
            let places: Vec<String> = places.iter().map(|dir| format!("\n  {}", dir.display())).collect();
            anyhow::anyhow!(
                "there is no folder of personas; looked for{}\nname one with --personas (it may be empty)",
                places.concat()
            )
        })
    }

    /// Opens the folder.
    pub fn open(&self) -> anyhow::Result<Personas> {
        Ok(Personas::open(&self.find()?)?)
    }
}

/// Where a folder may lie that nobody named.
fn places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("personas")];
    // Beside the program, or above it as far as the workspace that built it: target/release/lory lies in one.
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
