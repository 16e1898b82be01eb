//! `--personas`: the folder of personas, and the places that are searched for it.

use std::path::{Path, PathBuf};

use registry::Personas;

use base::home::Home;

/// `--personas`, for every command that needs personas.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PersonasArgs {
    /// The folder of personas [default: ./personas, else the one next to the program, else the one in LORY_HOME]
    #[arg(long = "personas", value_name = "DIR")]
    pub dir: Option<PathBuf>,
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
                "no folder of personas found; looked for{}\nname one with --personas (it may be empty)",
                places.concat()
            )
        })
    }

    /// Opens the folder.
    pub fn open(&self) -> anyhow::Result<Personas> {
        Ok(Personas::open(&self.find()?)?)
    }
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
