//! Publishes into the registry from a running service, and follows what other processes publish. A change applies to the next
//! request; running requests keep the adapters that they lease.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use registry::{
    AdapterContent, LogEntry, PersonaRef, PersonaSettings, Publication, PublishedVersion, Registry,
    RegistryError,
};

use super::Service;
use crate::error::PublishError;

/// A version to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct NewVersion {
    /// The persona.
    pub name: String,
    /// The PEFT folder of its adapter; `None` for a persona with settings only.
    pub adapter: Option<PathBuf>,
    /// Its settings; by default those of the current version.
    pub settings: Option<PersonaSettings>,
    /// Whether it becomes the current version.
    pub current: bool,
    /// Whether to refuse a name that exists.
    pub only_new: bool,
}

impl Service {
    /// The registry to publish to.
    ///
    /// # Errors
    /// [`PublishError::NoRegistry`].
    pub fn registry(&self) -> Result<&Arc<Registry>, PublishError> {
        self.catalog.registry().ok_or(PublishError::NoRegistry)
    }

    /// Publishes a version after checking that this base can run it. When this returns, it is stored and the next request gets
    /// it.
    ///
    /// # Errors
    /// [`PublishError`]; nothing has changed then.
    pub fn publish(&self, new: &NewVersion) -> Result<PublishedVersion, PublishError> {
        let registry = self.registry()?;
        let NewVersion { name, .. } = new;
        if *name == self.base.name {
            return Err(PublishError::NameOfBase { name: name.clone() });
        }
        let personas = self.personas();
        let there = personas.get(name);
        if there.is_none() && self.is_model_alias(name) {
            return Err(PublishError::NameOfAlias { name: name.clone() });
        }
        if new.only_new && there.is_some() {
            return Err(RegistryError::Exists { name: name.clone() }.into());
        }
        let content = match &new.adapter {
            None => None,
            Some(path) => {
                let content = AdapterContent::read(path)?;
                self.adapters
                    .check_fits(&content.adapter, path)
                    .map_err(|error| PublishError::Adapter(Box::new(error)))?;
                Some(content)
            }
        };
        // The first version of a persona from the folder takes its settings from there.
        let in_folder = there.filter(|persona| persona.published.is_none());
        let settings = new.settings.clone();
        let published = registry.publish(&Publication {
            name,
            content: content.as_ref(),
            settings: settings.or_else(|| in_folder.map(PersonaSettings::of)),
            current: new.current,
            only_new: new.only_new,
        })?;
        self.catalog.refresh()?;
        tracing::info!(persona = name, version = published.version, "published");
        Ok(published)
    }

    /// The adapter and the settings of a persona in the folder, hidden or not.
    ///
    /// # Errors
    /// [`PublishError::NotInFolder`].
    pub fn in_folder(
        &self,
        name: &str,
    ) -> Result<(Option<PathBuf>, PersonaSettings), PublishError> {
        let persona = self.catalog.folder().get(name);
        let persona = persona.ok_or_else(|| PublishError::NotInFolder {
            name: name.to_owned(),
        })?;
        let adapter = persona.adapter.as_ref().map(|adapter| adapter.path.clone());
        Ok((adapter, PersonaSettings::of(persona)))
    }

    /// Changes the registry; the next request sees the change.
    ///
    /// # Errors
    /// The registry's.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&Registry) -> Result<T, RegistryError>,
    ) -> Result<T, PublishError> {
        let changed = change(self.registry()?)?;
        self.catalog.refresh()?;
        Ok(changed)
    }

    /// Gives a persona, or a version of it, another name.
    ///
    /// # Errors
    /// The name is the base's or one of `--model-alias`, which goes before it, or the registry's errors.
    pub fn alias(&self, alias: &str, target: &PersonaRef) -> Result<(), PublishError> {
        let name = alias.to_owned();
        if name == self.base.name {
            return Err(PublishError::NameOfBase { name });
        }
        if self.is_model_alias(alias) {
            return Err(PublishError::NameOfAlias { name });
        }
        self.change(|registry| registry.alias(alias, target))
    }

    /// Removes a published persona.
    ///
    /// # Errors
    /// [`PublishError::InFolder`] for one that is only in the folder.
    pub fn unpublish(&self, name: &str) -> Result<(), PublishError> {
        if let Some(persona) = self.personas().get(name)
            && persona.published.is_none()
        {
            return Err(PublishError::InFolder {
                name: name.to_owned(),
                path: persona.dir.clone(),
            });
        }
        self.change(|registry| registry.remove(name, None))
    }

    /// Resolves the path of an adapter that a client names: a folder under `--adapter-root`, also after following all links. A
    /// relative path starts there.
    ///
    /// # Errors
    /// [`PublishError::NoAdapterRoot`], [`PublishError::OutsideRoot`], [`PublishError::NoSuchFolder`].
    pub fn under_adapter_root(&self, path: &str) -> Result<PathBuf, PublishError> {
        let Some(root) = &self.adapter_root else {
            return Err(PublishError::NoAdapterRoot);
        };
        let outside = || PublishError::OutsideRoot {
            path: path.to_owned(),
        };
        let missing = || PublishError::NoSuchFolder {
            path: path.to_owned(),
        };
        let root = root.canonicalize().map_err(|_| missing())?;
        let path_in_root = root.join(path);
        // A missing path has no canonical form. The error must not reveal whether a path outside the root exists.
        let climbs = Path::new(path)
            .components()
            .any(|c| c == Component::ParentDir);
        match path_in_root.canonicalize() {
            Ok(real) if real.starts_with(&root) => match real.is_dir() {
                true => Ok(real),
                false => Err(missing()),
            },
            Err(_) if path_in_root.starts_with(&root) && !climbs => Err(missing()),
            _ => Err(outside()),
        }
    }

    /// Follows the registry on a thread that ends with the service: changes by other processes apply at most `every` later.
    pub fn follow(self: &Arc<Self>, every: Duration) {
        if self.catalog.registry().is_none() {
            return;
        }
        let service = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name("lory-registry".to_owned())
            .spawn(move || follow(&service, every));
        if let Err(error) = spawned {
            tracing::error!("cannot follow the registry: {error}");
        }
    }
}

fn follow(service: &Weak<Service>, every: Duration) {
    let mut failing = false;
    loop {
        thread::sleep(every);
        let Some(service) = service.upgrade() else {
            return;
        };
        match service.catalog.refresh() {
            Ok(new) => {
                if std::mem::take(&mut failing) {
                    tracing::warn!("the registry is readable again");
                }
                for entry in new {
                    log_change(&entry);
                }
            }
            // Logged once, not every few seconds of an outage. Versions that are known stay served.
            Err(error) if !failing => {
                failing = true;
                tracing::error!("cannot read the registry: {error}");
            }
            Err(_) => {}
        }
    }
}

fn log_change(entry: &LogEntry) {
    tracing::info!(sequence = entry.sequence, "registry: {}", entry.change);
}
