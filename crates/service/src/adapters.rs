//! Loads adapters from disk into the engine's memory: at the start, when a request needs one, and again after an eviction. Must
//! not know personas.
//!
//! Adapters are read and packed on threads of low priority, never on the engine's. Loading starts when the request arrives. The engine's pool decides the order ([`engine::reservation`]).

use std::collections::{BTreeMap, HashMap};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::{AdapterId, Handle, Lease, PoolError, ReservationError, WaitOptions};
use formats::peft::{self, AdapterConfig, BaseTensor, PeftError};
use formats::short_path::shortened;
use model::{Model, ModelError};
use registry::blob::BASE_KEY;
use registry::{AdapterRef, ReadError};

use crate::compute_arbiter;
use base::adapter_tensors;
use base::hub::{self, RepositoryId};
use base::open::{Base, Fingerprint};

/// Why an adapter is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its files cannot be read, or have changed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It does not fit the base.
    #[error("{}{}", of_adapter(path, source), meant_for(other_base.as_deref()))]
    Model {
        /// Its folder.
        path: String,
        /// Why.
        source: Box<ModelError>,
        /// The base that its configuration names, if it is another one than this.
        other_base: Option<String>,
    },
    /// It was trained with another tokenizer or template than the base's, so its answers would be wrong.
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
    /// It was trained on another base file: other weights, or another quantization.
    #[error(
        "{path}: trained on the base with sha256 {found}, and the base here has {base}; use the one that it was trained \
         on, or train it on this one"
    )]
    OtherFile {
        /// Its folder.
        path: String,
        /// The hash of the base that it was trained on.
        found: String,
        /// The base's here.
        base: String,
    },
    /// It is larger than the adapter memory, alone or with the others of its blend.
    #[error(transparent)]
    Pool(PoolError),
}

/// The message of `error` with the adapter's path, which some errors have already.
fn of_adapter(path: &str, error: &ModelError) -> String {
    let error = error.to_string();
    match error.starts_with(path) {
        true => error,
        false => format!("{path}: {error}"),
    }
}

/// Names the base that the adapter is meant for.
fn meant_for(base: Option<&str>) -> String {
    match base {
        Some(base) => format!(
            "; its {} names the base {base}: use it with --base {base}",
            peft::CONFIG_FILE
        ),
        None => String::new(),
    }
}

impl AdapterError {
    /// The message for clients, without the folders of this machine.
    #[must_use]
    pub fn client_message(&self) -> String {
        match self {
            AdapterError::Read(error) => error.client_message(),
            AdapterError::Model { path, .. }
            | AdapterError::OtherBase { path, .. }
            | AdapterError::OtherFile { path, .. } => shortened(&self.to_string(), Path::new(path)),
            AdapterError::Pool(_) => self.to_string(),
        }
    }
}

/// Why a request's adapters are not all in memory.
#[derive(Debug)]
pub(super) enum LeaseError {
    /// This one cannot be used.
    Unusable(AdapterId, Box<AdapterError>),
    /// The wait ended: at its deadline, by cancellation, or because the engine has stopped.
    NotReserved(ReservationError),
}

/// Turns [`AdapterRef`]s into leases.
pub(super) struct AdapterLoader {
    model: Arc<Model>,
    engine: Handle<model::Adapter>,
    /// What an adapter may record of its base: the metadata key, its description, and the base's own value.
    recorded: [(&'static str, &'static str, String); 2],
    fingerprint: Arc<Fingerprint>,
    /// The base's name in requests.
    base_name: String,
}

impl AdapterLoader {
    pub fn new(base: &Base, engine: Handle<model::Adapter>) -> AdapterLoader {
        let tokenizer = base.tokenizer.hash().to_owned();
        AdapterLoader {
            model: base.model.clone(),
            engine,
            recorded: [
                ("lory.tokenizer_hash", "tokenizer", tokenizer),
                ("lory.template_hash", "chat template", base.template.hash()),
            ],
            fingerprint: Arc::clone(&base.fingerprint),
            base_name: base.name.clone(),
        }
    }

    /// Whether another adapter of the average size fits into the memory.
    pub fn has_room(&self) -> bool {
        let pool = self.engine.stats().adapters;
        let each = pool.bytes / (pool.resident as u64).max(1);
        pool.bytes + each <= pool.limit
    }

    /// Leases all of these adapters, after loading those that are not in memory. Waits for room, and for adapters that other
    /// requests load.
    pub fn lease(
        &self,
        wanted: &[(AdapterId, &AdapterRef)],
        options: &WaitOptions<'_>,
    ) -> Result<Vec<Lease<model::Adapter>>, LeaseError> {
        let Some((first, _)) = wanted.first() else {
            return Ok(Vec::new());
        };
        let sources: HashMap<AdapterId, &AdapterRef> = wanted.iter().copied().collect();
        let sizes: Vec<(AdapterId, u64)> = wanted
            .iter()
            .map(|(id, source)| (*id, bytes_on_disk(source)))
            .collect();
        let not_reserved = |error| match error {
            ReservationError::Pool(error) => {
                LeaseError::Unusable(*first, Box::new(AdapterError::Pool(error)))
            }
            other => LeaseError::NotReserved(other),
        };
        'reserve: loop {
            let mut reservation = self
                .engine
                .reserve_adapters(&sizes, options)
                .map_err(not_reserved)?;
            loop {
                let id = match reservation.next_to_load(options) {
                    Ok(Some(id)) => id,
                    Ok(None) => return Ok(reservation.into_leases()),
                    Err(ReservationError::MoreThanReserved) => continue 'reserve,
                    Err(error) => return Err(not_reserved(error)),
                };
                let began = Instant::now();
                let packed = at_low_priority(|| self.read(sources[&id]))
                    .map_err(|error| LeaseError::Unusable(id, Box::new(error)))?;
                let bytes = packed.bytes();
                let read = bytes_on_disk(sources[&id]);
                if reservation
                    .fill(Arc::new(packed), bytes, read, began.elapsed())
                    .is_err()
                {
                    // It takes more memory than its file. Its size is known now, so the next attempt finds room or fails for good.
                    continue 'reserve;
                }
            }
        }
    }

    /// Reads, checks and packs an adapter.
    fn read(&self, adapter: &AdapterRef) -> Result<model::Adapter, AdapterError> {
        let read = adapter.read_with(|dir| {
            let file = peft::AdapterFile::open(dir)?;
            let (packed, found) = file.hash_while(|| {
                self.check_base_tensors(&file.base_tensors, dir)?;
                let packed = self.model.load_adapter_file(&file)?;
                warn_of_missing(&file.missing(self.model.config())?, &adapter.path);
                Ok(packed)
            });
            Ok(((packed, file.metadata, file.config), found))
        });
        let (packed, metadata, config) = read?;
        self.check(&metadata, &adapter.path)?;
        packed.map_err(|source| self.does_not_fit(source, &config, &adapter.path))
    }

    /// Checks that this base can run an adapter that was read from `path`, before it is published.
    pub fn check_fits(&self, adapter: &peft::Adapter, path: &Path) -> Result<(), AdapterError> {
        self.check(&adapter.metadata, path)?;
        let packed = self.check_base_tensors(&adapter.base_tensors, path);
        let packed = packed.and_then(|()| self.model.load_adapter(adapter));
        packed
            .map(|_| ())
            .map_err(|source| self.does_not_fit(source, &adapter.config, path))
    }

    /// The error for an adapter at `path` that does not fit the base.
    fn does_not_fit(
        &self,
        source: ModelError,
        config: &AdapterConfig,
        path: &Path,
    ) -> AdapterError {
        let trained_on = config.base_model_name_or_path.as_deref();
        // A path of another machine helps nobody.
        let trained_on = trained_on.filter(|name| RepositoryId::parse(name).is_some());
        let other = trained_on.filter(|name| !base::open::is_name_of(&self.base_name, name));
        AdapterError::Model {
            path: path.display().to_string(),
            source: Box::new(source),
            other_base: other.map(|name| match hub::known_upstream(name) {
                Some(known) => known.id.to_owned(),
                None => name.to_owned(),
            }),
        }
    }

    /// Checks that the tensors of the base in an adapter's file are this base's.
    fn check_base_tensors(&self, tensors: &[BaseTensor], adapter: &Path) -> Result<(), ModelError> {
        let Some(first) = tensors.first() else {
            return Ok(());
        };
        let Some(base) = self.fingerprint.path() else {
            let problem = "cannot be compared with the base's, which has no file";
            let error = PeftError::Tensor {
                path: adapter.to_owned(),
                name: first.name.clone(),
                problem: problem.to_owned(),
            };
            return Err(error.into());
        };
        Ok(adapter_tensors::check(base, tensors, adapter)?)
    }

    /// Checks the adapter's recorded tokenizer, template and base hashes.
    fn check(&self, metadata: &BTreeMap<String, String>, path: &Path) -> Result<(), AdapterError> {
        let path = || path.display().to_string();
        for (key, what, base) in &self.recorded {
            if let Some(found) = metadata.get(*key).filter(|found| *found != base) {
                return Err(AdapterError::OtherBase {
                    path: path(),
                    what,
                    found: found.clone(),
                    base: base.clone(),
                });
            }
        }
        // Hashing the base takes a while, so it is done only for adapters that record one.
        let Some(found) = metadata.get(BASE_KEY) else {
            return Ok(());
        };
        match self.fingerprint.sha256() {
            Some(base) if found != base => Err(AdapterError::OtherFile {
                path: path(),
                found: found.clone(),
                base: base.to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// Logs the linears that the configuration of the adapter at `path` targets, and its weights do not have.
fn warn_of_missing(missing: &[String], path: &Path) {
    if let Some(first) = missing.first() {
        tracing::warn!(
            "{}: has no weights for {} of the linears in its target_modules ({first}, ...); they stay as in the base",
            path.display(),
            missing.len()
        );
    }
}

/// Runs `work` on a thread of low priority, as do the threads that it starts. A step has one thread for each core and waits for
/// the slowest, so loading must not take time from them.
fn at_low_priority<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let work = || {
        compute_arbiter::lower_thread_priority();
        work()
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(work).join();
        done.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The size of the weights file, which is about what they take in memory; the recorded size if the file is not here yet.
fn bytes_on_disk(adapter: &AdapterRef) -> u64 {
    let file = adapter.path.join(peft::WEIGHTS_FILE);
    file.metadata()
        .map_or(adapter.bytes, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_an_adapter_has_its_path_once_and_the_base_it_is_for() {
        let message = |path: &str| {
            let source = PeftError::Tensor {
                path: path.into(),
                name: "lm_head.weight".to_owned(),
                problem: "differs".to_owned(),
            };
            let error = AdapterError::Model {
                path: "a/b".to_owned(),
                source: Box::new(source.into()),
                other_base: Some("owner/base".to_owned()),
            };
            error.to_string()
        };
        for path in ["a/b", "a/b/adapter_model.safetensors"] {
            let message = message(path);
            assert_eq!(message.matches("a/b").count(), 1, "{message}");
            assert!(message.ends_with("--base owner/base"), "{message}");
        }
        let message = message("adapter_model.safetensors");
        assert!(
            message.starts_with("a/b: adapter_model.safetensors: tensor"),
            "{message}"
        );
    }
}
