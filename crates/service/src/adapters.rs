//! Brings adapters from disk into the engine's memory, when they are not there: at the start, when a request asks for one, and
//! again when it was evicted. Knows no personas.
//!
//! Reading and packing happen on threads of low priority, never on the engine's: a request's adapters are on their way from
//! the moment it came. Who waits for whom is the engine's pool's business ([`engine::reservation`]).

use std::collections::{BTreeMap, HashMap};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::{AdapterId, Handle, Lease, PoolError, ReservationError, WaitOptions};
use formats::peft;
use model::{Model, ModelError};
use registry::blob::BASE_KEY;
use registry::{AdapterRef, ReadError};

use crate::compute_arbiter;
use base::open::{Base, Fingerprint};

/// Why an adapter is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its files cannot be read, or are not what they were.
    #[error(transparent)]
    Read(#[from] ReadError),
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
    /// It was trained on another base file: other weights, or the same ones quantized otherwise.
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
    /// The adapter memory can never hold it, or not with the others of its blend.
    #[error(transparent)]
    Pool(PoolError),
}

/// Why a request's adapters are not all in memory.
#[derive(Debug)]
pub(super) enum LeaseError {
    /// This one cannot be used.
    Unusable(AdapterId, Box<AdapterError>),
    /// The wait ended: at its deadline, by cancellation, or because the engine has stopped.
    NotReserved(ReservationError),
}

/// The way from [`AdapterRef`]s to leases.
pub(super) struct Adapters {
    model: Arc<Model>,
    engine: Handle<model::Adapter>,
    /// What an adapter may record of its base: the key, what it is, and the base's own.
    recorded: [(&'static str, &'static str, String); 2],
    fingerprint: Arc<Fingerprint>,
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
            fingerprint: Arc::clone(&base.fingerprint),
        }
    }

    /// Whether another one as large as those that are in memory fits beside them.
    pub fn has_room(&self) -> bool {
        let pool = self.engine.stats().adapters;
        let each = pool.bytes / (pool.resident as u64).max(1);
        pool.bytes + each <= pool.limit
    }

    /// Holds all of these adapters in the engine's memory, reading first what is not there, and waiting for room and for what
    /// others read.
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
            while let Some(id) = reservation.next_to_load(options).map_err(not_reserved)? {
                let began = Instant::now();
                let packed = beside_streams(|| self.read(sources[&id]))
                    .map_err(|error| LeaseError::Unusable(id, Box::new(error)))?;
                let bytes = packed.bytes();
                let read = bytes_on_disk(sources[&id]);
                if reservation
                    .fill(Arc::new(packed), bytes, read, began.elapsed())
                    .is_err()
                {
                    // It takes more than its file; now that this is known there will be room, or none ever.
                    continue 'reserve;
                }
            }
            return Ok(reservation.into_leases());
        }
    }

    /// Reads, checks and packs an adapter.
    fn read(&self, adapter: &AdapterRef) -> Result<model::Adapter, AdapterError> {
        let read = adapter.read_with(|dir| {
            let file = peft::AdapterFile::open(dir)?;
            let (packed, found) = file.hash_beside(|| self.model.load_adapter_file(&file));
            Ok(((packed, file.metadata), found))
        });
        let (packed, metadata) = read?;
        self.check(&metadata, &adapter.path)?;
        packed.map_err(|source| AdapterError::Model {
            path: adapter.path.display().to_string(),
            source: Box::new(source),
        })
    }

    /// Whether this base can run an adapter that was read from `path`, so that nothing is published that cannot be served.
    pub fn check_fits(&self, adapter: &peft::Adapter, path: &Path) -> Result<(), AdapterError> {
        self.check(&adapter.metadata, path)?;
        let packed = self.model.load_adapter(adapter);
        packed.map(|_| ()).map_err(|source| AdapterError::Model {
            path: path.display().to_string(),
            source: Box::new(source),
        })
    }

    /// Holds what an adapter records to the base.
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
        // The base's own hash takes a while where it is not known yet: only for those that record one.
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

/// Does `work` on a thread of its own that runs where the threads of a step leave time, for the most part: the machine has as many
/// of those as cores, and a step is done when the last of them is. Threads that `work` starts do the same.
fn beside_streams<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let work = || {
        compute_arbiter::lower_thread_priority();
        work()
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(work).join();
        done.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The weights' file, which is about what they take in memory, as it is, or as it was said to be where it is not here yet.
fn bytes_on_disk(adapter: &AdapterRef) -> u64 {
    let file = adapter.path.join(peft::WEIGHTS_FILE);
    file.metadata()
        .map_or(adapter.bytes, |metadata| metadata.len())
}
