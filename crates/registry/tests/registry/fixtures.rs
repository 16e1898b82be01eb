//! A registry in a folder, tiny adapters, and a store that can be made to fail.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use formats::peft::Dtype;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use registry::{
    AdapterContent, PersonaSettings, Publication, PublishedVersion, Registry, RegistryError,
    RegistryLocation,
};
use testkit::tiny::{tiny_adapter, tiny_config};

/// A folder for everything of one test.
pub struct TestDir(pub tempfile::TempDir);

impl TestDir {
    pub fn new() -> TestDir {
        TestDir(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A registry in a folder; each call opens it again.
    pub fn registry(&self) -> Registry {
        let location = RegistryLocation::Folder(self.path("registry"));
        Registry::open(&location, &self.path("cache")).unwrap()
    }

    /// A tiny adapter in a PEFT folder.
    pub fn adapter(&self, seed: u64) -> PathBuf {
        let folder = self.path(&format!("adapter-{seed}"));
        let adapter = tiny_adapter(seed, &tiny_config(), 4, 1.0);
        adapter.write(&folder, Dtype::F32, "tiny").unwrap();
        folder
    }

    pub fn content(&self, seed: u64) -> AdapterContent {
        AdapterContent::read(&self.adapter(seed)).unwrap()
    }
}

pub fn settings(prompt: &str) -> PersonaSettings {
    PersonaSettings {
        system_prompt: Some(prompt.to_owned()),
        ..PersonaSettings::default()
    }
}

/// Publishes a version that becomes the current one.
pub fn publish(
    registry: &Registry,
    name: &str,
    content: &AdapterContent,
) -> std::result::Result<PublishedVersion, RegistryError> {
    registry.publish(&Publication {
        name,
        content: Some(content),
        settings: Some(settings(&format!("You are {name}."))),
        current: true,
        only_new: false,
    })
}

/// How a store fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The n-th operation and all after it fail without reaching the store: the process is killed before it.
    Before(usize),
    /// The n-th operation reaches the store and fails; those after it do not reach the store: the process is killed after it.
    After(usize),
    /// The n-th operation reaches the store and fails; those after it succeed.
    Lost(usize),
}

/// A store in memory that fails in a given way.
#[derive(Debug)]
pub struct Faulty {
    pub objects: Arc<InMemory>,
    fault: Option<Fault>,
    count: AtomicUsize,
}

impl Faulty {
    pub fn new(objects: &Arc<InMemory>, fault: Option<Fault>) -> Arc<Faulty> {
        Arc::new(Faulty {
            objects: Arc::clone(objects),
            fault,
            count: AtomicUsize::new(0),
        })
    }

    /// The number of operations so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub fn registry(self: &Arc<Faulty>, cache: &Path) -> Registry {
        Registry::over(Arc::clone(self) as Arc<dyn ObjectStore>, "memory", cache).unwrap()
    }

    /// Runs one operation, or fails.
    async fn operate<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let n = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        let error = || Error::Generic {
            store: "faulty",
            source: "the connection is lost".into(),
        };
        match self.fault {
            Some(Fault::Before(at)) if n >= at => Err(error()),
            Some(Fault::After(at)) if n > at => Err(error()),
            Some(Fault::After(at) | Fault::Lost(at)) if n == at => {
                let _ = operation.await;
                Err(error())
            }
            _ => operation.await,
        }
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.operate(self.objects.put_opts(location, payload, options))
            .await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.operate(self.objects.get_opts(location, options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.operate(self.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }

    async fn rename_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: RenameOptions,
    ) -> Result<()> {
        self.objects.rename_opts(from, to, options).await
    }
}
