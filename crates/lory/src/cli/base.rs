//! `--base`: a known name, fetched when it is missing, or the path of a GGUF file.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::home::Home;
use crate::progress::Progress;
use crate::pull::{self, HubSettings, Source};

/// The flag, for every command that needs a base.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct BaseArgs {
    /// The base model: smollm2-135m (fetched when it is missing), or the path of a GGUF file
    #[arg(long, value_name = "ID|PATH", default_value = pull::KNOWN[0].id)]
    pub base: String,
}

/// Where a base lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    /// What requests call it; none for a file, which is called by its name.
    pub name: Option<String>,
    /// The GGUF file.
    pub path: PathBuf,
    /// Its sha256, where it is known without reading it.
    pub sha256: Option<&'static str>,
}

impl BaseArgs {
    /// Finds the file, fetching it if need be.
    pub fn locate(&self) -> anyhow::Result<Located> {
        let path = Path::new(&self.base);
        match pull::known(&self.base) {
            Some(known) if !path.is_file() => {
                let mut progress = Progress::stderr();
                let pulled = pull::pull(
                    known,
                    &Home::find()?,
                    &HubSettings::from_env(),
                    &mut progress,
                )?;
                if pulled.source != Source::Cache {
                    progress.say(&format!("{} is at {}", known.id, pulled.path.display()));
                }
                Ok(Located {
                    name: Some(known.id.to_owned()),
                    path: pulled.path,
                    sha256: Some(known.sha256),
                })
            }
            _ if path.is_file() => Ok(Located {
                name: None,
                path: path.to_owned(),
                sha256: None,
            }),
            _ => anyhow::bail!(
                "--base {}: no such file, and no known base; the known ones are {}",
                self.base,
                pull::known_ids()
            ),
        }
    }
}

impl Located {
    /// The file's sha256, in hex.
    pub fn fingerprint(&self) -> anyhow::Result<String> {
        match self.sha256 {
            Some(sha256) => Ok(sha256.to_owned()),
            None => pull::hash_file(&self.path).with_context(|| self.path.display().to_string()),
        }
    }
}
