//! `--registry`: where published personas lie.

use anyhow::Context as _;
use registry::{Personas, Registry, RegistryLocation};

use super::personas::PersonasArgs;
use base::home::Home;
use service::catalog::Catalog;

/// The flag, for every command that asks published personas or changes them.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RegistryArgs {
    /// The registry of published personas: a folder, or s3://bucket/prefix [default: registry in LORY_HOME]
    #[arg(long, value_name = "DIR|URL", env = "LORY_REGISTRY")]
    pub registry: Option<String>,
}

impl RegistryArgs {
    /// Opens it; nothing is read yet.
    pub fn open(&self) -> anyhow::Result<Registry> {
        let home = Home::find();
        let location = match &self.registry {
            Some(text) => RegistryLocation::parse(text).context("--registry")?,
            None => RegistryLocation::Folder(home.clone()?.registry()),
        };
        let cache = match home {
            Ok(home) => home.registry_cache(),
            // Only what lies elsewhere is copied.
            Err(_) if matches!(location, RegistryLocation::Folder(_)) => std::env::temp_dir(),
            Err(error) => return Err(error.into()),
        };
        Ok(Registry::open(&location, &cache)?)
    }

    /// The folder's personas and the published ones. Where something is published, there need be no folder.
    pub fn catalog(&self, personas: &PersonasArgs) -> anyhow::Result<Catalog> {
        if self.registry.is_none() && Home::find().is_err() {
            return Ok(personas.open()?.into());
        }
        let registry = self.open()?;
        let state = registry.refresh()?;
        let published = state.personas().next().is_some();
        let folder = match personas.find() {
            Err(_) if published && personas.dir.is_none() => Personas::default(),
            found => Personas::open(&found?)?,
        };
        let catalog = Catalog::open(folder, registry)?;
        let hidden = catalog.hidden();
        if !hidden.is_empty() {
            eprintln!(
                "published, so not taken from the folder of personas: {}",
                hidden.join(", ")
            );
        }
        Ok(catalog)
    }
}
