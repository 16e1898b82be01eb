//! The object store: a local folder, or a bucket of S3 or a compatible service. The only module that uses the asynchronous
//! `object_store` crate; its own calls block. It guarantees two things: a write is complete or has no effect, and of two
//! writers that create the same path exactly one succeeds.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientConfigKey, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use formats::disk::{self, LastingFolder};
use formats::peft::WEIGHTS_FILE;

use crate::error::RegistryError;

/// How long a request to a bucket may take, including the transfer.
const REQUEST_TIMEOUT: &str = "300 seconds";
/// How many objects are read concurrently.
const MAX_CONCURRENT_READS: usize = 32;

/// The largest file of an adapter's weights that is read, in bytes.
const MAX_WEIGHTS_OBJECT: u64 = 1 << 30;
/// The largest object that is read, in bytes, except an adapter's weights.
const MAX_OBJECT: u64 = 16 << 20;

/// Where a registry is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryLocation {
    /// A folder of this machine. The first write creates it; until then the registry is empty.
    Folder(PathBuf),
    /// `s3://bucket/prefix`. Keys, region and endpoint come from the environment: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`.
    S3(String),
}

impl RegistryLocation {
    /// Parses a URL that begins with `s3://`, or a folder.
    ///
    /// # Errors
    /// [`RegistryError::Location`] for another kind of URL.
    pub fn parse(text: &str) -> Result<RegistryLocation, RegistryError> {
        let error = |message: &str| RegistryError::Location {
            text: text.to_owned(),
            message: message.to_owned(),
        };
        match text.split_once("://") {
            Some(("s3", rest)) if rest.split('/').next().is_some_and(|b| !b.is_empty()) => {
                Ok(RegistryLocation::S3(text.trim_end_matches('/').to_owned()))
            }
            Some(("s3", _)) => Err(error("the bucket is missing; write s3://bucket/prefix")),
            Some(("file", path)) if path.starts_with('/') => {
                Ok(RegistryLocation::Folder(path.into()))
            }
            Some(_) => Err(error("write a folder, or s3://bucket/prefix")),
            None if text.is_empty() => Err(error("write a folder, or s3://bucket/prefix")),
            None => Ok(RegistryLocation::Folder(text.into())),
        }
    }
}

impl std::fmt::Display for RegistryLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RegistryLocation::Folder(path) => write!(f, "{}", path.display()),
            RegistryLocation::S3(url) => f.write_str(url),
        }
    }
}

/// One object of a listing.
#[derive(Debug, Clone)]
pub(crate) struct ListedObject {
    /// The last part of its path.
    pub name: String,
    /// When it was written, in seconds since 1970.
    pub modified: u64,
}

/// Objects by path, read and written in blocking calls.
pub(crate) struct Store {
    /// The name in messages.
    pub name: String,
    objects: OnceLock<Arc<dyn ObjectStore>>,
    /// The folder of a local store, which `objects` opens when it exists or at the first write.
    folder: Option<LastingFolder>,
    /// None only during the drop.
    runtime: Option<Runtime>,
}

impl Store {
    pub fn open(location: &RegistryLocation) -> Result<Store, RegistryError> {
        let objects = OnceLock::new();
        let folder = match location {
            RegistryLocation::Folder(folder) => Some(LastingFolder::new(folder)),
            RegistryLocation::S3(url) => {
                let _ = objects.set(s3(url)?);
                None
            }
        };
        Store::new(location.to_string(), objects, folder)
    }

    /// A store that is open already; `name` is its name in messages.
    pub fn over(objects: Arc<dyn ObjectStore>, name: &str) -> Result<Store, RegistryError> {
        Store::new(name.to_owned(), OnceLock::from(objects), None)
    }

    fn new(
        name: String,
        objects: OnceLock<Arc<dyn ObjectStore>>,
        folder: Option<LastingFolder>,
    ) -> Result<Store, RegistryError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| RegistryError::Folder {
                path: PathBuf::from(&name),
                source,
            })?;
        Ok(Store {
            name,
            objects,
            folder,
            runtime: Some(runtime),
        })
    }

    /// The object's bytes; none if it does not exist.
    pub fn get(&self, path: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some(objects) = self.existing()? else {
            return Ok(None);
        };
        self.check_regular(path)?;
        let read = self.wait(read_object(&objects, path));
        none_if_missing(read).map_err(|source| self.failed("read", path, source))
    }

    /// [`Store::get`] of many objects, in their order.
    pub fn get_all(&self, paths: &[String]) -> Result<Vec<Option<Vec<u8>>>, RegistryError> {
        let Some(objects) = self.existing()? else {
            return Ok(vec![None; paths.len()]);
        };
        let mut all = Vec::with_capacity(paths.len());
        for some in paths.chunks(MAX_CONCURRENT_READS) {
            let mut reads = JoinSet::new();
            for (index, path) in some.iter().enumerate() {
                self.check_regular(path)?;
                let (objects, path) = (Arc::clone(&objects), path.clone());
                let read = async move { (index, read_object(&objects, &path).await) };
                reads.spawn_on(read, self.runtime().handle());
            }
            let mut joined = self.wait(reads.join_all());
            joined.sort_by_key(|(index, _)| *index);
            for (index, read) in joined {
                let path = &some[index];
                all.push(
                    none_if_missing(read).map_err(|source| self.failed("read", path, source))?,
                );
            }
        }
        Ok(all)
    }

    /// Writes an object that must not exist yet. Returns whether it was written.
    pub fn create(&self, path: &str, bytes: Vec<u8>) -> Result<bool, RegistryError> {
        self.check_folder()?;
        match self.write(path, bytes, PutMode::Create) {
            Ok(()) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(self.failed("write", path, source)),
        }
    }

    /// Writes an object, whether it exists or not.
    pub fn put(&self, path: &str, bytes: Vec<u8>) -> Result<(), RegistryError> {
        self.check_folder()?;
        self.write(path, bytes, PutMode::Overwrite)
            .map_err(|source| self.failed("write", path, source))
    }

    fn write(&self, path: &str, bytes: Vec<u8>, mode: PutMode) -> Result<(), Error> {
        let objects = self.create_if_missing()?;
        let options = PutOptions::from(mode);
        let payload = PutPayload::from(bytes);
        self.wait(objects.put_opts(&Path::from(path), payload, options))
            .map(|_| ())
    }

    /// Removes an object; a missing one is not an error.
    pub fn delete(&self, path: &str) -> Result<(), RegistryError> {
        let Some(objects) = self.existing()? else {
            return Ok(());
        };
        let deleted = self.wait(async { objects.delete(&Path::from(path)).await });
        none_if_missing(deleted)
            .map(|_| ())
            .map_err(|source| self.failed("remove", path, source))
    }

    /// Removes the folder at `path` of a local store if nothing is in it: a write that failed may have made it.
    pub fn remove_empty_folder(&self, path: &str) {
        if let Some(folder) = &self.folder {
            let _ = disk::remove_empty_folder(&folder.path().join(path));
        }
    }

    /// The objects directly under a path.
    pub fn list(&self, path: &str) -> Result<Vec<ListedObject>, RegistryError> {
        let Some(objects) = self.existing()? else {
            return Ok(Vec::new());
        };
        let path = Path::from(path);
        let listed = self
            .wait(objects.list_with_delimiter(Some(&path)))
            .map_err(|source| self.failed("list", path.as_ref(), source))?;
        let objects = listed.objects.into_iter().filter_map(|meta| {
            let seconds = meta.last_modified.timestamp();
            Some(ListedObject {
                name: meta.location.filename()?.to_owned(),
                modified: u64::try_from(seconds).unwrap_or(0),
            })
        });
        Ok(objects.collect())
    }

    /// The names of the folders directly under a path.
    pub fn folders(&self, path: &str) -> Result<Vec<String>, RegistryError> {
        let Some(objects) = self.existing()? else {
            return Ok(Vec::new());
        };
        let path = Path::from(path);
        let listed = self
            .wait(objects.list_with_delimiter(Some(&path)))
            .map_err(|source| self.failed("list", path.as_ref(), source))?;
        let names = listed.common_prefixes.iter().filter_map(Path::filename);
        Ok(names.map(str::to_owned).collect())
    }

    /// Checks that the folder is still there, if it has existed: the store would make it again.
    ///
    /// # Errors
    /// [`RegistryError::Removed`].
    pub fn check_folder(&self) -> Result<(), RegistryError> {
        let checked = self.folder.as_ref().map_or(Ok(()), LastingFolder::check);
        checked.map_err(|_| RegistryError::Removed {
            name: self.name.clone(),
        })
    }

    /// Checks that an object of a folder is not a pipe or a device, which could be read without an end.
    fn check_regular(&self, path: &str) -> Result<(), RegistryError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let path = folder.path().join(path);
        match path.metadata() {
            Ok(meta) if !meta.is_file() && !meta.is_dir() => Err(RegistryError::Folder {
                path,
                source: std::io::Error::other(
                    "not a regular file, but a pipe or a device; restore the file",
                ),
            }),
            // What is missing is found by the read.
            _ => Ok(()),
        }
    }

    /// The store's objects; none if its folder does not exist.
    fn existing(&self) -> Result<Option<Arc<dyn ObjectStore>>, RegistryError> {
        match (self.objects.get(), &self.folder) {
            (Some(objects), _) => Ok(Some(Arc::clone(objects))),
            (None, Some(folder)) if folder.path().exists() => self
                .create_if_missing()
                .map(Some)
                .map_err(|source| self.failed("open", "", source)),
            (None, _) => Ok(None),
        }
    }

    /// The store's objects; creates a missing folder.
    fn create_if_missing(&self) -> Result<Arc<dyn ObjectStore>, Error> {
        if let (None, Some(folder)) = (self.objects.get(), &self.folder) {
            let _ = self.objects.set(local(folder)?);
        }
        self.objects.get().cloned().ok_or(Error::NotImplemented {
            operation: "open".to_owned(),
            implementer: self.name.clone(),
        })
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("set until the drop")
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime().block_on(future)
    }

    fn failed(&self, verb: &'static str, path: &str, source: Error) -> RegistryError {
        RegistryError::Store {
            verb,
            path: format!("{}/{path}", self.name),
            source: Box::new(source),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // In a drop on an asynchronous thread, a runtime that waits for its tasks would panic.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The bytes of an object, whose size is checked first.
async fn read_object(objects: &Arc<dyn ObjectStore>, path: &str) -> Result<Vec<u8>, Error> {
    let limit = match path.ends_with(WEIGHTS_FILE) {
        true => MAX_WEIGHTS_OBJECT,
        false => MAX_OBJECT,
    };
    let found = objects.get(&Path::from(path)).await?;
    let bytes = found.meta.size;
    if bytes > limit {
        return Err(Error::Generic {
            store: "registry",
            source: format!("it has {bytes} bytes; at most {limit} are read").into(),
        });
    }
    found.bytes().await.map(Vec::from)
}

/// Turns a missing object into `None`.
fn none_if_missing<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn local(folder: &LastingFolder) -> Result<Arc<dyn ObjectStore>, Error> {
    folder.create().map_err(|source| Error::Generic {
        store: "folder",
        source: Box::new(source),
    })?;
    // A published adapter must survive a power failure.
    Ok(Arc::new(
        LocalFileSystem::new_with_prefix(folder.path())?
            .with_fsync(true)
            .with_automatic_cleanup(true),
    ))
}

fn s3(url: &str) -> Result<Arc<dyn ObjectStore>, RegistryError> {
    // Fails only if a provider is installed already, which works too.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .any(|endpoint| endpoint.starts_with("http://"));
    let mut bucket = AmazonS3Builder::from_env().with_url(url).with_config(
        AmazonS3ConfigKey::Client(ClientConfigKey::Timeout),
        REQUEST_TIMEOUT,
    );
    if http {
        bucket = bucket.with_allow_http(true);
    }
    let bucket = bucket.build().map_err(|source| RegistryError::Store {
        verb: "open",
        path: url.to_owned(),
        source: Box::new(source),
    })?;
    let rest = url.strip_prefix("s3://").unwrap_or(url);
    Ok(match rest.split_once('/') {
        Some((_, prefix)) if !prefix.is_empty() => Arc::new(PrefixStore::new(bucket, prefix)),
        _ => Arc::new(bucket),
    })
}
