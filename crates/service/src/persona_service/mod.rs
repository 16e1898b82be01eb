//! [`Service`]: a base and its personas. Requests (`submit`), publishing, uploads and shadow versions add their own methods.

mod folders;
pub mod publishing;
mod shadows;
mod single_persona;
mod submit;
mod uploads;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Base, LoadOptions};
use engine::{AdapterId, Engine, EngineConfig, Handle, WaitOptions};
use formats::persona_name::BASE;
use kernels::{Device, DeviceChoice};
use registry::{Persona, Personas};

use crate::adapters::{AdapterLoader, LeaseError};
use crate::cache_salt::OperatorPrefixes;
use crate::caller::Caller;
use crate::catalog::Catalog;
use crate::compute_arbiter::ComputeArbiter;
use crate::error::{RequestError, ServiceStartError};
use crate::grammar::GrammarCache;
use crate::logprob_budget::LogprobBudget;
use crate::model_names::{ModelAlias, ModelAliases, ModelNames, NamedModel};
use crate::request_metrics::RequestMetrics;
use crate::runner::{ModelRunner, StepPriority};
use crate::shadow::Shadows;
use crate::uploads::UploadStore;
use crate::votes::{VoteError, Votes};

pub use single_persona::NameError;
pub use submit::{DEFAULT_MAX_NEW_TOKENS, DEFAULT_TEMPERATURE, QueuedRequest, TextStream};

/// How a service runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of the base in requests; by default the file's name without `.gguf`, in lower case.
    pub base_name: Option<String>,
    /// The sha256 of the base's file, if known; otherwise the file is hashed when an adapter records its base.
    pub base_sha256: Option<String>,
    /// How the base's weights are loaded.
    pub load: LoadOptions,
    /// Other names for personas, blends and the base.
    pub model_aliases: Vec<ModelAlias>,
    /// The folder of adapters that clients may load by path; by default they may not.
    pub adapter_root: Option<PathBuf>,
    /// The folder of uploaded adapters; by default clients may not upload any.
    pub uploads: Option<PathBuf>,
    /// The folder of votes; by default none are kept.
    pub votes: Option<PathBuf>,
    /// The device on which the base runs.
    pub device: DeviceChoice,
    /// Bytes of the KV cache.
    pub kv_memory: u64,
    /// How its steps share the machine with background work.
    pub priority: StepPriority,
    /// Batch, queue and adapter memory.
    pub engine: EngineConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            base_name: None,
            base_sha256: None,
            load: LoadOptions::default(),
            model_aliases: Vec::new(),
            adapter_root: None,
            uploads: None,
            votes: None,
            device: DeviceChoice::default(),
            kv_memory: 512 << 20,
            priority: StepPriority::default(),
            engine: EngineConfig::default(),
        }
    }
}

/// A base and its personas.
pub struct Service {
    pub(crate) base: Arc<Base>,
    aliases: ModelAliases,
    pub(crate) catalog: Catalog,
    pub(crate) adapters: AdapterLoader,
    engine: Handle<model::Adapter>,
    grammars: GrammarCache,
    logprobs: Arc<LogprobBudget>,
    prefixes: OperatorPrefixes,
    pub(crate) metrics: Arc<RequestMetrics>,
    pub(crate) shadows: Shadows,
    pub(crate) adapter_root: Option<PathBuf>,
    priority: StepPriority,
    pub(crate) uploads: Option<UploadStore>,
    votes: Option<Votes>,
}

impl Service {
    /// Whether the base's device works.
    ///
    /// # Errors
    /// [`RequestError::DeviceFailed`], with its reason. Every request fails with it until the process is started again.
    pub fn check_device(&self) -> Result<(), RequestError> {
        match self.base.model.device().fault() {
            Some(reason) => Err(RequestError::DeviceFailed(reason)),
            None => Ok(()),
        }
    }

    /// Opens the base at `path`, starts the engine, and loads the personas' adapters as far as the memory goes, so that one
    /// that does not fit is found before the first request.
    ///
    /// # Errors
    /// [`ServiceStartError`], naming the file.
    pub fn open(
        path: &Path,
        catalog: impl Into<Catalog>,
        settings: &Settings,
    ) -> Result<Service, ServiceStartError> {
        let device = Device::open(settings.device)?;
        let base = Base::open_with(path, settings.base_name.as_deref(), device, &settings.load)?;
        if let Some(sha256) = &settings.base_sha256 {
            base.fingerprint.set(sha256);
        }
        Service::start(base, catalog.into(), settings)
    }

    /// [`Service::open`] with a base that is open already.
    ///
    /// # Errors
    /// As [`Service::open`].
    pub fn start(
        base: impl Into<Arc<Base>>,
        catalog: Catalog,
        settings: &Settings,
    ) -> Result<Service, ServiceStartError> {
        let base = base.into();
        let aliases = ModelAliases::new(&settings.model_aliases, &base)?;
        let personas = catalog.personas();
        for name in [base.name.as_str(), BASE] {
            let Some(persona) = personas.get(name) else {
                continue;
            };
            // Published before the name was reserved, by another process, or a folder of this name.
            let what = match persona.published {
                Some(_) => format!("published persona {name}"),
                None => format!("persona in {}", persona.dir.display()),
            };
            tracing::warn!(
                "the {what} cannot be requested: this name means the base; give it another name"
            );
        }
        for (alias, reason) in aliases.without_target(|name| base.is_named(name), &personas) {
            // It may be published while the service runs.
            tracing::warn!("--model-alias {alias} cannot be requested yet: {reason}");
        }
        let runner = ModelRunner::new(
            base.model.clone(),
            settings.kv_memory,
            settings.priority.clone(),
        )?;
        let engine = Engine::start(runner, settings.engine.clone())?;
        let adapters = AdapterLoader::new(&base, engine.clone());
        load_adapters(&adapters, &personas);
        let uploads = settings.uploads.clone().map(UploadStore::new);
        if let Some(uploads) = &uploads {
            uploads.remove_stale();
        }
        Ok(Service {
            base,
            aliases,
            catalog,
            adapters,
            engine,
            grammars: GrammarCache::default(),
            logprobs: Arc::default(),
            prefixes: OperatorPrefixes::default(),
            metrics: Arc::default(),
            shadows: Shadows::default(),
            adapter_root: settings.adapter_root.clone(),
            priority: settings.priority.clone(),
            uploads,
            votes: settings.votes.as_deref().map(Votes::new),
        })
    }

    /// The base; jobs share its weights.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// What the base's chat template does not render, for people: kinds of conversations, and personas whose system prompt it refuses.
    pub fn template_problems(&self) -> Vec<String> {
        let template = &self.base.template;
        let problems = template.problems().into_iter();
        let mut problems: Vec<String> = problems.map(|problem| problem.to_string()).collect();
        let personas = self.personas();
        for persona in personas.names().into_iter().filter_map(|n| personas.get(n)) {
            // A required variable has no value yet.
            let Ok(Some(system)) = persona.system_prompt_by_default() else {
                continue;
            };
            if let Some(error) = template.system_text_problem(&system) {
                let name = &persona.name;
                problems.push(format!("the system prompt of persona {name}: {error}"));
            }
        }
        problems
    }

    /// A snapshot of the personas that can be requested now.
    pub fn personas(&self) -> Arc<Personas> {
        self.catalog.personas()
    }

    /// What `name`, the field `model` of a request, means for `caller` in this snapshot of the personas.
    ///
    /// # Errors
    /// As requests: nothing has this name, or the caller may not use what it means.
    pub fn find_model<'p>(
        &'p self,
        personas: &'p Personas,
        caller: &Caller,
        name: &str,
    ) -> Result<NamedModel<'p>, RequestError> {
        let names = self.model_names(personas);
        // Any version of a canary describes it.
        names.resolve(caller, "model", name, &|_| u64::MAX)
    }

    /// The aliases whose persona or base the caller may use.
    pub fn model_aliases(&self, caller: &Caller) -> Vec<&str> {
        self.aliases.usable_by(caller, &self.base)
    }

    /// Whether `name` is the operator's alias of other models, so that no persona can be created under it.
    pub fn is_model_alias(&self, name: &str) -> bool {
        self.aliases.is_of_others(name)
    }

    fn model_names<'p>(&'p self, personas: &'p Personas) -> ModelNames<'p> {
        ModelNames {
            base: &self.base,
            aliases: &self.aliases,
            personas,
        }
    }

    /// The source of the personas: the folder and the registry.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Divides compute between this service and background work.
    pub fn compute_arbiter(&self) -> Arc<ComputeArbiter> {
        match &self.priority {
            StepPriority::Foreground(arbiter) => Arc::clone(arbiter),
            StepPriority::Background(_) => Arc::default(),
        }
    }

    /// The engine, for its stats and [`Handle::shutdown`].
    pub fn engine(&self) -> &Handle<model::Adapter> {
        &self.engine
    }

    /// The votes of people who compared two answers.
    ///
    /// # Errors
    /// [`VoteError::Off`].
    pub fn votes(&self) -> Result<&Votes, VoteError> {
        self.votes.as_ref().ok_or(VoteError::Off)
    }

    /// What of the service's disk does not work at present, for people: the folders of votes, uploads and the registry.
    pub fn disk_problems(&self) -> Vec<String> {
        let votes = self.votes.as_ref().map(Votes::check);
        let votes = votes.and_then(Result::err).map(|error| error.to_string());
        let uploads = self.uploads.as_ref().map(UploadStore::check);
        let uploads = uploads.and_then(Result::err).map(|error| error.to_string());
        let registry = self
            .catalog
            .registry()
            .map(|registry| registry.check_folder());
        // Its error has a path, which clients must not see.
        let registry = registry.and_then(Result::err).map(|_| {
            "the registry was removed while the server ran; restore it, or restart the server to use what is there now".to_owned()
        });
        [votes, uploads, registry].into_iter().flatten().collect()
    }

    /// Loads the persona's adapter, if it has one, unless it is in memory already.
    ///
    /// # Errors
    /// [`RequestError::Adapter`]: it cannot be used.
    pub fn check_adapter(&self, persona: &Persona) -> Result<(), RequestError> {
        if let Some(adapter) = &persona.adapter {
            let wanted = [(AdapterId(adapter.sha256), adapter)];
            self.adapters.lease(&wanted, &WaitOptions::default())?;
        }
        Ok(())
    }

    /// The metrics of requests.
    pub fn metrics(&self) -> &RequestMetrics {
        &self.metrics
    }
}

/// Loads the personas' adapters, as many as fit into memory, to report errors at the start. The others are loaded when requests
/// need them. An adapter that cannot be used is reported and does not keep the other personas from answering.
fn load_adapters(adapters: &AdapterLoader, personas: &Personas) {
    for persona in personas.names().into_iter().filter_map(|n| personas.get(n)) {
        let Some(adapter) = &persona.adapter else {
            continue;
        };
        if !adapters.has_room() {
            break;
        }
        let wanted = [(AdapterId(adapter.sha256), adapter)];
        match adapters.lease(&wanted, &WaitOptions::default()) {
            Ok(_) => {}
            Err(LeaseError::Unusable(_, source)) => {
                tracing::error!("persona {} cannot answer: {source}", persona.name);
            }
            // No other request exists whose end would free memory.
            Err(LeaseError::NotReserved(_)) => break,
        }
    }
}
