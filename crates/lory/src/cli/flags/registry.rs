//! `--registry`: the registry of published personas.

use anyhow::Context as _;
use registry::{Persona, Personas, Registry, RegistryLocation};

use crate::cli::exit::UsageError;
use crate::cli::flags::personas::{PersonasArgs, open_valid, with_adapters};
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
        self.catalog_with(personas, Vec::new())
    }

    /// [`RegistryArgs::catalog`] with the personas of `--adapter` in addition. With one of them the folder may be missing, too.
    ///
    /// # Errors
    /// As [`RegistryArgs::catalog`], or a published persona has the name of an adapter and another content.
    pub fn catalog_with(
        &self,
        personas: &PersonasArgs,
        adapters: Vec<Persona>,
    ) -> anyhow::Result<Catalog> {
        let folder = |is_optional: bool| match personas.find() {
            Err(_) if is_optional && personas.dir.is_none() => Ok(Personas::default()),
            found => open_valid(&found?),
        };
        if self.registry.is_none() && Home::find().is_err() {
            let folder = folder(!adapters.is_empty())?;
            return Ok(with_adapters(folder, adapters).into());
        }
        let registry = self.open()?;
        let state = registry.refresh()?;
        let folder = folder(!adapters.is_empty() || state.personas().next().is_some())?;
        let catalog = Catalog::open(with_adapters(folder, adapters.clone()), registry)?;
        let mut hidden = catalog.hidden();
        let personas = catalog.personas();
        for adapter in &adapters {
            let published = personas.get(&adapter.name);
            let Some(published) = published.filter(|persona| persona.published.is_some()) else {
                continue;
            };
            let content = |persona: &Persona| persona.adapter.as_ref().map(|a| a.sha256);
            if content(published) != content(adapter) {
                let why = format!(
                    "--adapter {}: a published persona has the name {} and another adapter, and requests would get that one; rename the \
                     folder",
                    adapter.dir.display(),
                    adapter.name
                );
                return Err(UsageError(why).into());
            }
            // It is this adapter, published.
            hidden.retain(|name| *name != adapter.name);
        }
        if !hidden.is_empty() {
            eprintln!(
                "published, so the folder's versions are not used: {}",
                hidden.join(", ")
            );
        }
        Ok(catalog)
    }
}
