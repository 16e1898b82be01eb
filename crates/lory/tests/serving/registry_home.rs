//! A folder with a registry, for tests that publish.

use std::path::PathBuf;
use std::sync::Arc;

use jobs::EvaluationResults;
use registry::{Personas, Registry, RegistryLocation};
use server::AppState;
use service::catalog::Catalog;
use service::{Service, Settings};
use testkit::home::TestHome;
use testkit::tiny::adapter;

use crate::setup;

/// The shared set-up with a registry, and the adapters `a21`, `a22` and `a23` under a root whose paths clients may send.
pub struct RegistryHome(TestHome);

impl RegistryHome {
    pub fn new() -> RegistryHome {
        let home = RegistryHome(setup::home());
        for seed in [21, 22, 23] {
            home.adapter(&format!("root/a{seed}"), seed, &[]);
        }
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// Writes a PEFT folder with this metadata.
    pub fn adapter(&self, path: &str, seed: u64, metadata: &[(&str, &str)]) -> PathBuf {
        let mut adapter = adapter(seed);
        for (key, value) in metadata {
            adapter
                .metadata
                .insert((*key).to_owned(), (*value).to_owned());
        }
        self.0.adapter(path, &adapter)
    }

    pub fn evaluations(&self) -> EvaluationResults {
        EvaluationResults::new(&self.path("judgements"))
    }

    pub fn registry(&self) -> Registry {
        let location = RegistryLocation::Folder(self.path("registry"));
        Registry::open(&location, &self.path("cache")).unwrap()
    }

    /// A server's state with evaluation results.
    pub fn state(&self, root: bool) -> AppState {
        let state = AppState::loading();
        state.set_results(self.evaluations());
        state.set_service(self.service(root));
        state
    }

    /// A service with votes and uploads; `root`: clients may load adapters by path.
    pub fn service(&self, root: bool) -> Arc<Service> {
        let personas = Personas::open(&self.0.personas()).unwrap();
        let catalog = Catalog::open(personas, self.registry()).unwrap();
        let settings = Settings {
            adapter_root: root.then(|| self.path("root")),
            uploads: Some(self.path("uploads")),
            votes: Some(self.path("judgements")),
            ..Settings::default()
        };
        Arc::new(Service::open(&self.0.base(), catalog, &settings).unwrap())
    }
}
