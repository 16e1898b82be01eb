//! [`Service`]: a base and its personas, answering requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base::{Base, LoadOptions};
use engine::{
    AdapterId, Engine, EngineConfig, Flow, Handle, Limits, Request, Sampling, Sink, WaitOptions,
};
use registry::Personas;

use crate::adapters::{Adapters, LeaseError};
use crate::answer::{Answer, AnswerBuilder, TextEvent, TextSink, Writer};
use crate::catalog::Catalog;
use crate::compute_arbiter::ComputeArbiter;
use crate::error::{RequestError, ServiceStartError, VoteError};
use crate::grammar::Grammars;
use crate::parallel_sampling::{self, Tickets};
use crate::persona_resolution::{ModelIdentity, ResolvedPersona};
use crate::prompt;
use crate::request::GenerateRequest;
use crate::request_metrics::RequestMetrics;
use crate::runner::{ModelRunner, StepPriority};
use crate::shadow::Shadows;
use crate::uploads::Uploads;
use crate::votes::Votes;

/// The most new tokens where neither the request nor its persona says; fewer where the context ends before.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 128;
/// The temperature where neither the request nor its persona says: the same question gets the same answer.
pub const DEFAULT_TEMPERATURE: f32 = 0.0;

/// How a service runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What requests call the base; without, the file's name without `.gguf`, in lower case.
    pub base_name: Option<String>,
    /// The sha256 of the base's file, where it is known; without, the file is read for it when an adapter records one.
    pub base_sha256: Option<String>,
    /// How the base's weights are loaded.
    pub load: LoadOptions,
    /// The folder under which clients may name adapters to load; without, they may not.
    pub adapter_root: Option<PathBuf>,
    /// The folder in which adapters wait that clients send; without, they may not.
    pub uploads: Option<PathBuf>,
    /// The folder of votes; by default none are kept.
    pub votes: Option<PathBuf>,
    /// Threads of the device; without, as many as the machine gives.
    pub threads: Option<usize>,
    /// Bytes for keys and values.
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
            adapter_root: None,
            uploads: None,
            votes: None,
            threads: None,
            kv_memory: 512 << 20,
            priority: StepPriority::default(),
            engine: EngineConfig::default(),
        }
    }
}

/// A base and its personas, answering.
pub struct Service {
    pub(crate) base: Arc<Base>,
    pub(crate) catalog: Catalog,
    pub(crate) adapters: Adapters,
    engine: Handle<model::Adapter>,
    grammars: Grammars,
    pub(crate) metrics: Arc<RequestMetrics>,
    pub(crate) shadows: Shadows,
    pub(crate) adapter_root: Option<PathBuf>,
    priority: StepPriority,
    pub(crate) uploads: Option<Uploads>,
    votes: Option<Votes>,
}

impl Service {
    /// Opens the base at `path`, starts the engine, and reads every persona's adapter, so that one that does not fit is
    /// known before the first request.
    ///
    /// # Errors
    /// [`ServiceStartError`], naming the file.
    pub fn open(
        path: &Path,
        catalog: impl Into<Catalog>,
        settings: &Settings,
    ) -> Result<Service, ServiceStartError> {
        let device = kernels::Device::open(kernels::DeviceChoice::Cpu {
            threads: settings.threads,
        })?;
        let base = Base::open_in(path, settings.base_name.as_deref(), device, &settings.load)?;
        if let Some(sha256) = &settings.base_sha256 {
            base.fingerprint.known(sha256);
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
        let personas = catalog.personas();
        if let Some(persona) = personas.get(&base.name) {
            return Err(ServiceStartError::NameTaken {
                name: base.name.clone(),
                path: persona.dir.clone(),
            });
        }
        let runner = ModelRunner::new(
            base.model.clone(),
            settings.kv_memory,
            settings.priority.clone(),
        )?;
        let engine = Engine::start(runner, settings.engine.clone())?;
        let adapters = Adapters::new(&base, engine.clone());
        // As many as memory holds are read now, so that what is wrong with them is said now; the others when they are asked.
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
                // One of hundreds that were published must not keep the others from being served after a restart.
                Err(LeaseError::Unusable(_, source)) if persona.published.is_some() => {
                    tracing::error!("persona {} cannot answer: {source}", persona.name);
                }
                Err(LeaseError::Unusable(_, source)) => {
                    let persona = persona.name.clone();
                    return Err(ServiceStartError::Adapter { persona, source });
                }
                // Nobody else is here to wait for.
                Err(LeaseError::NotReserved(_)) => break,
            }
        }
        Ok(Service {
            base,
            catalog,
            adapters,
            engine,
            grammars: Grammars::default(),
            metrics: Arc::default(),
            shadows: Shadows::default(),
            adapter_root: settings.adapter_root.clone(),
            priority: settings.priority.clone(),
            uploads: settings.uploads.clone().map(Uploads::new),
            votes: settings.votes.as_deref().map(Votes::new),
        })
    }

    /// The base, which others may share: there is one copy of its weights.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Everyone who can be asked now. What is published later is not in it.
    pub fn personas(&self) -> Arc<Personas> {
        self.catalog.personas()
    }

    /// Where they come from.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The turns that training takes beside its answers.
    pub fn compute_arbiter(&self) -> Arc<ComputeArbiter> {
        match &self.priority {
            StepPriority::Foreground(arbiter) => Arc::clone(arbiter),
            StepPriority::Background(_) => Arc::default(),
        }
    }

    /// The engine, for its numbers and its end ([`Handle::shutdown`]).
    pub fn engine(&self) -> &Handle<model::Adapter> {
        &self.engine
    }

    /// The votes of people who compared two personas.
    ///
    /// # Errors
    /// [`VoteError::Off`].
    pub fn votes(&self) -> Result<&Votes, VoteError> {
        self.votes.as_ref().ok_or(VoteError::Off)
    }

    /// What was counted of requests.
    pub fn metrics(&self) -> &RequestMetrics {
        &self.metrics
    }

    /// Queues a request. `sink` receives the text on the engine's thread, so it must hand it on and return; its last
    /// event is [`TextEvent::End`]. The tickets, dropped, cancel the request.
    ///
    /// Returns when all its adapters are in memory, which may take a while: they may have to be read, and to wait for room.
    /// Meanwhile the request has its place in the queue.
    ///
    /// # Errors
    /// [`RequestError`]; the sink is then never called.
    pub fn submit(
        &self,
        request: &GenerateRequest,
        sink: TextSink,
    ) -> Result<QueuedRequest, RequestError> {
        let mut sink = Some(sink);
        // What comes of further answers is for nobody.
        let mut one = |_| sink.take().unwrap_or_else(|| Box::new(|_| Flow::Stop));
        self.submit_choices(request, &mut one, &AtomicBool::new(false))
    }

    /// [`Service::submit`] with a sink for each answer, by its number, and for a caller who may go away while it waits for its
    /// adapters, and then sets `gone`.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub fn submit_choices(
        &self,
        request: &GenerateRequest,
        sinks: &mut dyn FnMut(usize) -> TextSink,
        gone: &AtomicBool,
    ) -> Result<QueuedRequest, RequestError> {
        self.submit_with_metrics(request, sinks, gone, &self.metrics)
    }

    /// [`Service::submit_choices`], counted in `meters`.
    pub(crate) fn submit_with_metrics(
        &self,
        request: &GenerateRequest,
        sinks: &mut dyn FnMut(usize) -> TextSink,
        gone: &AtomicBool,
        metrics: &Arc<RequestMetrics>,
    ) -> Result<QueuedRequest, RequestError> {
        let came = Instant::now();
        let counted = |identity: Option<&ModelIdentity>, error: RequestError| {
            metrics.refused(identity, request.caller.log().as_deref(), &error);
            error
        };
        let personas = self.personas();
        let persona = request
            .check()
            .and_then(|()| ResolvedPersona::resolve(&self.base, &personas, request))
            .map_err(|error| counted(None, error))?;
        let identity = persona.identity.clone();
        let shadow = persona.shadow.clone();
        let mut sinks = |choice| match &shadow {
            Some(shadow) if choice == 0 => self.shadowed(request, &identity, shadow, sinks(choice)),
            _ => sinks(choice),
        };
        self.submit_resolved(persona, request, &mut sinks, came, gone, metrics)
            .map_err(|error| counted(Some(&identity), error))
    }

    fn submit_resolved(
        &self,
        persona: ResolvedPersona<'_>,
        request: &GenerateRequest,
        sinks: &mut dyn FnMut(usize) -> TextSink,
        came: Instant,
        gone: &AtomicBool,
        metrics: &Arc<RequestMetrics>,
    ) -> Result<QueuedRequest, RequestError> {
        let names = &request.names;
        let prompt = prompt::tokens(&self.base, &persona, request)?;
        let echo = request.echo.then(|| prompt::text(&self.base, request));
        let max_new_tokens = self.max_new_tokens(&persona, request, prompt.len())?;
        let stop = request.stop.as_ref().unwrap_or(&persona.stop);

        let within = request.timeout_ms.map(Duration::from_millis);
        let engine_request = Request {
            prompt,
            adapters: persona
                .identity
                .adapters
                .iter()
                .map(|adapter| (adapter.id, adapter.scale))
                .collect(),
            sampling: sampling(&persona, request),
            max_new_tokens,
            stop_tokens: match request.ignore_eos {
                true => Vec::new(),
                false => self.base.tokenizer.end_ids().to_vec(),
            },
            top_logprobs: request.logprobs,
            prompt_logprobs: request.echo && request.logprobs.is_some(),
            grammar: self
                .grammars
                .find(&self.base, &request.format, request.tools.as_ref())?,
            priority: request.priority,
            client: request.caller.client(),
            // The time to read the prompt counts too.
            deadline: within.map(|within| within.saturating_sub(came.elapsed())),
        };
        let refused = |error| RequestError::refused(error, names);
        self.engine.check(&engine_request).map_err(refused)?;
        let holds = request.caller.admit(
            request.priority,
            engine_request.prompt.len(),
            max_new_tokens,
            request.choices,
        )?;
        let mut holds = holds.into_iter();
        if let Some(log) = request.caller.log() {
            log.resolved(&persona.identity);
        }
        let permits = (0..request.choices)
            .map(|_| self.engine.acquire_permit())
            .collect::<Result<Vec<_>, _>>()
            .map_err(refused)?;
        let options = WaitOptions {
            deadline: within.and_then(|within| came.checked_add(within)),
            cancelled: Some(gone),
        };
        // Held until the engine holds its own.
        let leases = self.adapters.lease(&persona.adapters, &options)?;
        let sink = |choice: usize| -> Sink {
            let log = request.caller.log();
            let hold = holds.next().unwrap_or_default();
            let recorder = metrics.recorder(&persona.identity, came);
            let recorder = recorder.for_caller(log, hold, choice == 0);
            let detokenizer = self.base.tokenizer.detokenizer();
            let mut writer = Writer::new(detokenizer, stop, sinks(choice), recorder);
            if request.calls_tools() {
                writer.read_calls();
            }
            if let Some(text) = &echo {
                writer.echo(text.clone(), engine_request.prompt.first().copied());
            }
            Box::new(move |event| writer.take(event))
        };
        let tickets =
            parallel_sampling::submit(&self.engine, permits, &engine_request, leases, sink);
        Ok(QueuedRequest {
            tickets: tickets.map_err(refused)?,
            identity: persona.identity,
        })
    }

    /// [`Service::submit`] with an iterator for a sink.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub fn stream(&self, request: &GenerateRequest) -> Result<TextStream, RequestError> {
        let (sender, events) = channel();
        let sink: TextSink = Box::new(move |event| match sender.send(event) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Stop,
        });
        let QueuedRequest { identity, tickets } = self.submit(request, sink)?;
        Ok(TextStream {
            identity,
            events,
            _tickets: tickets,
        })
    }

    /// Asks and waits for the whole answer.
    ///
    /// # Errors
    /// As [`Service::submit`]; [`RequestError::Failed`] if the model failed, [`RequestError::Stopped`] if the service
    /// ended meanwhile.
    pub fn generate(&self, request: &GenerateRequest) -> Result<Answer, RequestError> {
        let mut stream = self.stream(request)?;
        let mut gathered = AnswerBuilder::default();
        for event in &mut stream {
            match event {
                TextEvent::Delta(delta) => gathered.add(delta),
                TextEvent::ToolCall(call) => gathered.call(call),
                TextEvent::End(end) => return gathered.end(stream.identity, end),
            }
        }
        Err(RequestError::Stopped)
    }

    /// The most new tokens: what the request says, else the persona, else the default, as far as they fit.
    fn max_new_tokens(
        &self,
        persona: &ResolvedPersona<'_>,
        request: &GenerateRequest,
        prompt: usize,
    ) -> Result<usize, RequestError> {
        let limits = self.engine.limits();
        let room = room(&limits, prompt);
        if room == 0 {
            return Err(RequestError::PromptTooLong {
                field: request.names.prompt,
                tokens: prompt,
                limit: longest(&limits),
            });
        }
        match request.max_new_tokens {
            Some(asked) if asked > room => Err(RequestError::PastContext {
                field: request.names.max_new_tokens,
                prompt,
                max_new_tokens: asked,
                limit: longest(&limits),
            }),
            Some(asked) => Ok(asked),
            None => Ok(persona
                .max_new_tokens
                .unwrap_or(DEFAULT_MAX_NEW_TOKENS)
                .min(room)),
        }
    }
}

/// The most tokens of a sequence: the context, or what the KV cache holds where that is less.
fn longest(limits: &Limits) -> usize {
    // The last token is never run and needs no room.
    let cache = limits.blocks.saturating_mul(limits.block_tokens);
    limits.context_length.min(cache.saturating_add(1))
}

/// How many new tokens fit behind a prompt.
fn room(limits: &Limits, prompt: usize) -> usize {
    longest(limits).saturating_sub(prompt)
}

/// The request's settings over the persona's over the defaults.
fn sampling(persona: &ResolvedPersona<'_>, request: &GenerateRequest) -> Sampling {
    let (own, overrides, neutral) = (persona.sampling, &request.overrides, Sampling::default());
    Sampling {
        temperature: overrides
            .temperature
            .or(own.temperature)
            .unwrap_or(DEFAULT_TEMPERATURE),
        top_p: overrides.top_p.or(own.top_p).unwrap_or(neutral.top_p),
        top_k: overrides.top_k.or(own.top_k).unwrap_or(neutral.top_k),
        min_p: overrides.min_p.or(own.min_p).unwrap_or(neutral.min_p),
        repetition_penalty: overrides
            .repetition_penalty
            .or(own.repetition_penalty)
            .unwrap_or(neutral.repetition_penalty),
        frequency_penalty: overrides.frequency_penalty.unwrap_or(0.0),
        presence_penalty: overrides.presence_penalty.unwrap_or(0.0),
        logit_bias: request.logit_bias.clone(),
        seed: overrides.seed.or(own.seed),
    }
}

/// A request that is queued.
#[derive(Debug)]
pub struct QueuedRequest {
    /// Who answers.
    pub identity: ModelIdentity,
    /// Dropped, they cancel the request.
    pub tickets: Tickets,
}

/// The text of one answer as it comes; the last event is [`TextEvent::End`]. Dropped early, it cancels the request.
#[derive(Debug)]
pub struct TextStream {
    /// Who answers.
    pub identity: ModelIdentity,
    events: Receiver<TextEvent>,
    _tickets: Tickets,
}

impl Iterator for TextStream {
    type Item = TextEvent;

    fn next(&mut self) -> Option<TextEvent> {
        self.events.recv().ok()
    }
}
