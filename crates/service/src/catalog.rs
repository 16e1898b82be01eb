//! The personas that can be requested now: those of a folder and those of the registry, in one snapshot that is replaced as a
//! whole. A request resolves its names in one snapshot, so it never sees half of a change. Must not know engine or HTTP.

use std::sync::{Arc, PoisonError, RwLock};

use registry::{LogEntry, Personas, Registry, RegistryError};

/// Folder and registry together.
pub struct Catalog {
    /// The folder, as it was read at the start.
    folder: Personas,
    registry: Option<Arc<Registry>>,
    now: RwLock<Snapshot>,
}

/// The personas after the first `head` entries of the log.
struct Snapshot {
    head: u64,
    personas: Arc<Personas>,
    hidden: Vec<String>,
}

impl From<Personas> for Catalog {
    /// A folder alone.
    fn from(folder: Personas) -> Catalog {
        let personas = Arc::new(folder.clone());
        Catalog {
            folder,
            registry: None,
            now: RwLock::new(Snapshot {
                head: 0,
                personas,
                hidden: Vec::new(),
            }),
        }
    }
}

impl Catalog {
    /// A folder's personas and a registry's, whose log is read to its end.
    ///
    /// # Errors
    /// As [`Registry::refresh`].
    pub fn open(folder: Personas, registry: Registry) -> Result<Catalog, RegistryError> {
        let catalog = Catalog {
            registry: Some(Arc::new(registry)),
            ..Catalog::from(folder)
        };
        catalog.refresh()?;
        Ok(catalog)
    }

    /// The personas that can be requested now.
    pub fn personas(&self) -> Arc<Personas> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&now.personas)
    }

    /// The folder's personas, hidden ones too.
    pub fn folder(&self) -> &Personas {
        &self.folder
    }

    /// The registry.
    pub fn registry(&self) -> Option<&Arc<Registry>> {
        self.registry.as_ref()
    }

    /// The names in the folder that are hidden by published personas.
    pub fn hidden(&self) -> Vec<String> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        now.hidden.clone()
    }

    /// Reads new entries of the registry's log into the snapshot, and returns them.
    ///
    /// # Errors
    /// As [`Registry::refresh`]; entries read before the error are applied.
    pub fn refresh(&self) -> Result<Vec<Arc<LogEntry>>, RegistryError> {
        let Some(registry) = &self.registry else {
            return Ok(Vec::new());
        };
        let read = registry.refresh();
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have read further.
        let state = registry.state();
        let before = usize::try_from(now.head).unwrap_or(usize::MAX);
        let new: Vec<_> = state.entries.iter().skip(before).cloned().collect();
        if !new.is_empty() {
            let (personas, hidden) = registry.personas(&state, &self.folder);
            *now = Snapshot {
                head: state.head,
                personas: Arc::new(personas),
                hidden,
            };
        }
        read.map(|_| new)
    }
}
