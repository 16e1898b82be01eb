//! `--registry`: the registry of published personas.

use anyhow::Context as _;
use registry::{Personas, Registry, RegistryLocation};

use crate::cli::flags::personas::PersonasArgs;
use base::home::Home;
use service::catalog::Catalog;

/// `--registry`, for every command that uses or changes published personas.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RegistryArgs {
    /// The registry of published personas: a folder, or s3://bucket/prefix [default: registry in LORY_HOME]
    #[arg(long, value_name = "DIR|URL", env = "LORY_REGISTRY")]
    pub registry: Option<String>,
}

impl RegistryArgs {
    /// Opens the registry without reading it.
    pub fn open(&self) -> anyhow::Result<Registry> {
        let home = Home::find();
        let location = match &self.registry {
            Some(text) => RegistryLocation::parse(text).context("--registry")?,
            None => RegistryLocation::Folder(home.clone()?.registry()),
        };
        let cache = match home {
            Ok(home) => home.registry_cache(),
            // Adapters of a local registry are not copied into the cache.
            Err(_) if matches!(location, RegistryLocation::Folder(_)) => std::env::temp_dir(),
            Err(error) => return Err(error.into()),
        };
        Ok(Registry::open(&location, &cache)?)
    }

    /// The personas of the folder and the published ones. If a persona is published, the folder may be missing.
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
                "published, so the folder's versions are not used: {}",
                hidden.join(", ")
            );
        }
        Ok(catalog)
    }
}
