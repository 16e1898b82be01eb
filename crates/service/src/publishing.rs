//! Publishing into the registry from a running service, and following what others publish: a change is in force for the next
//! request, and those under way end with what they began with, whose adapters they hold.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use registry::{
    AdapterContent, LogEntry, PersonaSettings, Publication, PublishedVersion, Registry,
    RegistryError,
};

use crate::error::PublishError;
use crate::service::Service;

/// A version that is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct NewVersion {
    /// The persona.
    pub name: String,
    /// The PEFT folder of its adapter; without, it speaks through its settings alone.
    pub adapter: Option<PathBuf>,
    /// Its settings; without, those of the persona as it is now.
    pub settings: Option<PersonaSettings>,
    /// Whether the name alone means it from now on.
    pub current: bool,
    /// Refuse a name that is there.
    pub only_new: bool,
}

impl Service {
    /// The registry that is published to.
    ///
    /// # Errors
    /// [`PublishError::NoRegistry`].
    pub fn registry(&self) -> Result<&Arc<Registry>, PublishError> {
        self.catalog.registry().ok_or(PublishError::NoRegistry)
    }

    /// Publishes a version, once it is clear that this base can run it. When this returns it is stored, and the next request
    /// gets it.
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
        // One that lies in the folder so far has its settings there; the registry knows those of its own.
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

    /// Makes a change in the registry; the next request sees it.
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

    /// Removes a published persona.
    ///
    /// # Errors
    /// [`PublishError::InFolder`] for one that only lies in the folder.
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

    /// The folder that a client names, if it may: it lies under `--adapter-root`, also when all links are followed. A relative
    /// path counts from there.
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
        let asked = root.join(path);
        // What is not there cannot be followed; it must not tell either what lies elsewhere.
        let climbs = Path::new(path)
            .components()
            .any(|c| c == Component::ParentDir);
        match asked.canonicalize() {
            Ok(real) if real.starts_with(&root) => match real.is_dir() {
                true => Ok(real),
                false => Err(missing()),
            },
            Err(_) if asked.starts_with(&root) && !climbs => Err(missing()),
            _ => Err(outside()),
        }
    }

    /// Follows the registry from a thread of its own, which ends with the service: what other processes publish is in force at
    /// most `every` later.
    pub fn follow(self: &Arc<Self>, every: Duration) {
        if self.catalog.registry().is_none() {
            return;
        }
        let service = Arc::downgrade(self);
        let spawned = thread::Builder::new()
            .name("lory-registry".to_owned())
            .spawn(move || follow(&service, every));
        if let Err(error) = spawned {
            tracing::error!("the registry is not followed: {error}");
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
                    tracing::warn!("the registry can be read again");
                }
                for entry in new {
                    tell(&entry);
                }
            }
            // Once, not every two seconds of an outage. What was published before goes on being served.
            Err(error) if !failing => {
                failing = true;
                tracing::error!("the registry cannot be read on: {error}");
            }
            Err(_) => {}
        }
    }
}

fn tell(entry: &LogEntry) {
    tracing::info!(sequence = entry.sequence, "registry: {}", entry.change);
}
