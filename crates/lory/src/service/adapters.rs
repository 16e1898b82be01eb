//! Brings adapters from disk into the engine's memory, when they are not there: at the start, and again when they were
//! evicted. Knows no personas.

use std::sync::{Arc, Mutex, PoisonError};

use engine::{AdapterId, Handle, Lease, PoolError};
use formats::peft::{self, PeftError};
use model::{Model, ModelError};
use registry::AdapterRef;

use super::base::Base;

/// Why an adapter is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its files cannot be read.
    #[error(transparent)]
    Read(#[from] PeftError),
    /// It does not fit the base.
    #[error("{path}: {source}")]
    Model {
        /// Its folder.
        path: String,
        /// Why.
        source: Box<ModelError>,
    },
    /// It was trained with other tokens or another template than the base's, so it would answer something else.
    #[error(
        "{path}: trained with another {what} ({found}) than the base's ({base}); train it on this base"
    )]
    OtherBase {
        /// Its folder.
        path: String,
        /// What differs.
        what: &'static str,
        /// The hash that the adapter records.
        found: String,
        /// The base's.
        base: String,
    },
    /// Its files are not those that were there when the personas were read.
    #[error("{path}: the files have changed since the start (now {found}); restart to use them")]
    Changed {
        /// Its folder.
        path: String,
        /// The content hash now.
        found: String,
    },
    /// The adapter memory has no room for it.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// The way from [`AdapterRef`]s to leases.
pub(super) struct Adapters {
    model: Arc<Model>,
    engine: Handle<model::Adapter>,
    /// What an adapter may record of its base: the key, what it is, and the base's own.
    recorded: [(&'static str, &'static str, String); 2],
    /// Held while one is read, so that none is read twice at a time.
    reading: Mutex<()>,
}

impl Adapters {
    pub fn new(base: &Base, engine: Handle<model::Adapter>) -> Adapters {
        let tokenizer = base.tokenizer.hash().to_owned();
        Adapters {
            model: base.model.clone(),
            engine,
            recorded: [
                ("lory.tokenizer_hash", "tokenizer", tokenizer),
                ("lory.template_hash", "chat template", base.template.hash()),
            ],
            reading: Mutex::new(()),
        }
    }

    /// Whether another one as large as those that are in memory fits beside them.
    pub fn has_room(&self) -> bool {
        let stats = self.engine.stats();
        let each = stats.adapter_bytes / (stats.adapters as u64).max(1);
        stats.adapter_bytes + each <= stats.adapter_limit
    }

    /// Holds the adapter in the engine's memory, reading it first if it is not there.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn lease(&self, adapter: &AdapterRef) -> Result<Lease<model::Adapter>, AdapterError> {
        let id = AdapterId(adapter.sha256);
        if let Some(lease) = self.engine.lease_adapter(id) {
            return Ok(lease);
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lease) = self.engine.lease_adapter(id) {
            return Ok(lease);
        }
        let path = || adapter.path.display().to_string();
        let (read, found) = peft::Adapter::read_hashed(&adapter.path)?;
        if found != id.to_string() {
            let path = path();
            return Err(AdapterError::Changed { path, found });
        }
        for (key, what, base) in &self.recorded {
            if let Some(found) = read.metadata.get(*key).filter(|found| *found != base) {
                return Err(AdapterError::OtherBase {
                    path: path(),
                    what,
                    found: found.clone(),
                    base: base.clone(),
                });
            }
        }
        let packed = self
            .model
            .load_adapter(&read)
            .map_err(|source| AdapterError::Model {
                path: path(),
                source: Box::new(source),
            })?;
        let bytes = packed.bytes();
        Ok(self.engine.insert_adapter(id, Arc::new(packed), bytes)?)
    }
}
