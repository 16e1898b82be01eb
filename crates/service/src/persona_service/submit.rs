//! Queues requests: resolves the persona, makes the engine's request, reserves adapters and submits one sequence for each answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use auth::TokenReservation;
use engine::{Flow, Limits, Permit, Request, Sink, WaitOptions};
use sampling::{Sampling, SamplingParams};

use super::Service;
use crate::answer::{Answer, AnswerBuilder, OutputProcessor, TextEvent, TextSink};
use crate::cache_salt;
use crate::error::RequestError;
use crate::model_identity::ModelIdentity;
use crate::parallel_sampling::{self, Tickets};
use crate::persona_resolution::ResolvedPersona;
use crate::prompt;
use crate::request::GenerateRequest;
use crate::request_metrics::RequestMetrics;

/// The most new tokens if neither the request nor its persona sets it; fewer if the context ends before.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 128;
/// The temperature if neither the request nor its persona sets it: equal requests get equal answers.
pub const DEFAULT_TEMPERATURE: f32 = 0.0;

impl Service {
    /// Queues a request. `sink` receives the text on the engine's thread, so it must pass it on and return at once; the last
    /// event is [`TextEvent::End`]. Dropping the tickets cancels the request.
    ///
    /// Blocks until all its adapters are in memory, which may take a while if they must be read or wait for room. The request
    /// keeps its place in the queue meanwhile.
    ///
    /// # Errors
    /// [`RequestError`]; the sink is then never called.
    pub fn submit(
        &self,
        request: &GenerateRequest,
        sink: TextSink,
    ) -> Result<QueuedRequest, RequestError> {
        let mut sink = Some(sink);
        let mut first = first_only(&mut sink);
        let requests = std::slice::from_ref(request);
        let gone = AtomicBool::new(false);
        let queued = self.submit_all(requests, &mut |_, _| first(0), &gone, &|| {})?;
        queued.into_iter().next().ok_or(RequestError::Stopped)
    }

    /// [`Service::submit`] for several requests of one caller that share a response: all are queued, or none. `sinks` has a sink for
    /// each answer, by the number of its request and its own. A caller that goes away before they are queued sets `gone`. `prepared`
    /// is called just before they wait for their adapters: until then they take compute time, then they only wait.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub fn submit_all(
        &self,
        requests: &[GenerateRequest],
        sinks: &mut dyn FnMut(usize, usize) -> TextSink,
        gone: &AtomicBool,
        prepared: &dyn Fn(),
    ) -> Result<Vec<QueuedRequest>, RequestError> {
        self.submit_with_metrics(requests, sinks, gone, prepared, &self.metrics)
    }

    /// [`Service::submit_all`], counted in `metrics`.
    pub(crate) fn submit_with_metrics(
        &self,
        requests: &[GenerateRequest],
        sinks: &mut dyn FnMut(usize, usize) -> TextSink,
        gone: &AtomicBool,
        prepared: &dyn Fn(),
        metrics: &Arc<RequestMetrics>,
    ) -> Result<Vec<QueuedRequest>, RequestError> {
        let Some(first) = requests.first() else {
            return Ok(Vec::new());
        };
        let log = first.caller.log();
        let counted = |identity: Option<&ModelIdentity>, error: RequestError| {
            metrics.refused(identity, log.as_deref(), &error);
            error
        };
        self.check_device().map_err(|error| counted(None, error))?;
        let personas = self.personas();
        let mut checked = Vec::with_capacity(requests.len());
        for request in requests {
            if gone.load(Ordering::Relaxed) {
                return Err(counted(None, RequestError::ClientGone));
            }
            let arrival = Instant::now();
            let persona = request
                .check()
                .and_then(|()| ResolvedPersona::resolve(self.model_names(&personas), request))
                .map_err(|error| counted(None, error))?;
            let identity = persona.identity.clone();
            let one = self.check(persona, request, arrival);
            checked.push(one.map_err(|error| counted(Some(&identity), error))?);
        }
        let identity = checked.first().map(|one| one.persona.identity.clone());
        self.queue(checked, sinks, gone, prepared, metrics)
            .map_err(|error| counted(identity.as_ref(), error))
    }

    /// Prepares a request and checks everything that depends on the request alone.
    fn check<'r>(
        &self,
        persona: ResolvedPersona<'r>,
        request: &'r GenerateRequest,
        arrival: Instant,
    ) -> Result<CheckedRequest<'r>, RequestError> {
        let engine = self.engine_request(&persona, request)?;
        let logprobs = request.check_logprobs(engine.prompt.len(), engine.max_new_tokens)?;
        self.engine
            .check(&engine)
            .map_err(|error| RequestError::refused(error, &request.names))?;
        request.caller.check_priority(request.priority)?;
        Ok(CheckedRequest {
            persona,
            request,
            engine,
            logprobs,
            arrival,
        })
    }

    /// Admits the requests within the limits of their key and of the engine, leases their adapters and queues them.
    fn queue(
        &self,
        checked: Vec<CheckedRequest<'_>>,
        sinks: &mut dyn FnMut(usize, usize) -> TextSink,
        gone: &AtomicBool,
        prepared: &dyn Fn(),
        metrics: &Arc<RequestMetrics>,
    ) -> Result<Vec<QueuedRequest>, RequestError> {
        let Some(CheckedRequest { request, .. }) = checked.first() else {
            return Ok(Vec::new());
        };
        let (caller, names) = (&request.caller, request.names);
        let refused = |error| RequestError::refused(error, &names);
        let client = caller.client();
        let tokens: Vec<u64> = checked.iter().flat_map(CheckedRequest::tokens).collect();
        let mut admission = caller.admit(&tokens)?;
        for one in &checked {
            let logprobs = self
                .logprobs
                .reserve(client.map(|client| client.id), one.logprobs)?;
            if let Some(log) = caller.log() {
                log.resolved(&one.persona.identity);
                log.hold(logprobs);
            }
        }
        let permits = self.engine.acquire_permits(client, tokens.len());
        let mut permits = permits.map_err(refused)?.into_iter();
        prepared();
        let mut queued = Vec::with_capacity(checked.len());
        for (number, mut one) in checked.into_iter().enumerate() {
            let options = WaitOptions {
                deadline: timeout(one.request).and_then(|timeout| one.arrival.checked_add(timeout)),
                cancelled: Some(gone),
                client,
            };
            // These leases last until the engine has its own. Requests for different versions of a persona have different adapters,
            // which may not fit into memory together, so each request is queued before the next one waits.
            let leases = self.adapters.lease(&one.persona.adapters, &options)?;
            let permits: Vec<Permit> = permits.by_ref().take(one.request.choices).collect();
            // The timeout includes the time to read the prompt and to compile the grammar.
            let prepared = permits.first().map_or(one.arrival, Permit::acquired);
            one.engine.deadline = timeout(one.request).map(|timeout| {
                timeout.saturating_sub(prepared.saturating_duration_since(one.arrival))
            });
            let mut sink = |choice: usize| -> Sink {
                let reservation = admission.reservations.next().unwrap_or_default();
                self.sink(&one, choice, sinks(number, choice), reservation, metrics)
            };
            let tickets =
                parallel_sampling::submit(&self.engine, permits, &one.engine, leases, &mut sink);
            queued.push(QueuedRequest {
                tickets: tickets.map_err(refused)?,
                identity: one.persona.identity,
            });
            // From here on it takes time of the engine.
            std::mem::take(&mut admission.answers).keep();
        }
        Ok(queued)
    }

    /// The engine's sink for an answer: it turns tokens into text for `sink`, and records the answer.
    fn sink(
        &self,
        one: &CheckedRequest<'_>,
        choice: usize,
        sink: TextSink,
        reservation: TokenReservation,
        metrics: &Arc<RequestMetrics>,
    ) -> Sink {
        let CheckedRequest {
            persona, request, ..
        } = one;
        let sink = match &persona.shadow {
            Some(shadow) if choice == 0 => self.shadowed(request, &persona.identity, shadow, sink),
            _ => sink,
        };
        let recorder = metrics.recorder(&persona.identity, one.arrival);
        let recorder = recorder.for_caller(request.caller.log(), reservation, choice == 0);
        let detokenizer = self.base.tokenizer.detokenizer();
        let stop = request.stop.as_ref().unwrap_or(&persona.stop);
        let mut processor = OutputProcessor::new(detokenizer, stop, sink, recorder);
        processor.runs_on(self.base.model.device());
        if request.calls_tools() {
            processor.parse_tool_calls();
        }
        if request.echo {
            let text = prompt::text(&self.base, request);
            processor.echo(text, one.engine.prompt.first().copied());
        }
        Box::new(move |event| processor.process(event))
    }

    /// The engine's request: token ids, adapters by hash, resolved sampling, and a grammar.
    fn engine_request(
        &self,
        persona: &ResolvedPersona<'_>,
        request: &GenerateRequest,
    ) -> Result<Request, RequestError> {
        let longest = longest(&self.engine.limits());
        let prompt = prompt::tokens(&self.base, persona, request, longest)?;
        let max_new_tokens = self.max_new_tokens(persona, request, prompt.len())?;
        let adapters = persona.identity.adapters.iter();
        let cache_salt = cache_salt::of(&self.base, &self.prefixes, persona, request, &prompt);
        let client = request.caller.client();
        Ok(Request {
            prompt,
            adapters: adapters
                .map(|adapter| (adapter.id, adapter.scale))
                .collect(),
            sampling: sampling(persona, request),
            max_new_tokens,
            stop_tokens: match request.ignore_eos {
                true => Vec::new(),
                false => self.base.tokenizer.end_ids().to_vec(),
            },
            top_logprobs: request.logprobs,
            prompt_logprobs: request.echo && request.logprobs.is_some(),
            grammar: self.grammars.get(
                &self.base,
                &request.format,
                request.tools.as_ref(),
                client.map(|client| client.id),
            )?,
            priority: request.priority,
            client,
            cache_salt,
            // Set when the request has its permit.
            deadline: None,
        })
    }

    /// [`Service::submit`] with an iterator instead of a sink.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub fn stream(&self, request: &GenerateRequest) -> Result<TextStream, RequestError> {
        let (sender, events) = channel();
        let QueuedRequest { identity, tickets } = self.submit(request, channel_sink(sender))?;
        Ok(TextStream {
            identity,
            events,
            _tickets: tickets,
        })
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// As [`Service::submit`]; [`RequestError::Failed`] if the model failed, [`RequestError::Stopped`] if the service
    /// ended meanwhile.
    pub fn generate(&self, request: &GenerateRequest) -> Result<Answer, RequestError> {
        let mut stream = self.stream(request)?;
        let mut answer = AnswerBuilder::default();
        for event in &mut stream {
            match event {
                TextEvent::Delta(delta) => answer.push(delta),
                TextEvent::ToolCall(call) => answer.push_call(call),
                TextEvent::End(end) => return answer.finish(stream.identity, end),
            }
        }
        Err(RequestError::Stopped)
    }

    /// The most new tokens: the request's, else the persona's, else the default. Only the request's must fit into the context;
    /// the others are cut to it.
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
            _ if request.fill_context => Ok(room),
            Some(requested) if requested > room => Err(RequestError::PastContext {
                field: request.names.max_new_tokens,
                prompt,
                max_new_tokens: requested,
                limit: longest(&limits),
            }),
            Some(requested) => Ok(requested),
            None => Ok(persona
                .max_new_tokens
                .unwrap_or(DEFAULT_MAX_NEW_TOKENS)
                .min(room)),
        }
    }
}

/// The most tokens of a sequence: the context, or the KV cache if that is smaller.
fn longest(limits: &Limits) -> usize {
    // The last token is never run, so it needs no place in the cache.
    let cache = limits.blocks.saturating_mul(limits.block_tokens);
    limits.context_length.min(cache.saturating_add(1))
}

/// How many new tokens fit after a prompt.
fn room(limits: &Limits, prompt: usize) -> usize {
    longest(limits).saturating_sub(prompt)
}

/// A sink that sends every event, and stops the answer once the receiver is gone.
pub(super) fn channel_sink(sender: Sender<TextEvent>) -> TextSink {
    Box::new(move |event| match sender.send(event) {
        Ok(()) => Flow::Continue,
        Err(_) => Flow::Stop,
    })
}

/// `sink` for the first answer; further answers are stopped.
pub(super) fn first_only(sink: &mut Option<TextSink>) -> impl FnMut(usize) -> TextSink {
    |_| sink.take().unwrap_or_else(|| Box::new(|_| Flow::Stop))
}

fn timeout(request: &GenerateRequest) -> Option<Duration> {
    request.timeout_ms.map(Duration::from_millis)
}

/// The request's sampling parameters, else the persona's, else the defaults.
fn sampling(persona: &ResolvedPersona<'_>, request: &GenerateRequest) -> Sampling {
    let defaults = SamplingParams {
        temperature: Some(DEFAULT_TEMPERATURE),
        ..SamplingParams::default()
    };
    let params = request.sampling.or(persona.sampling).or(defaults);
    Sampling {
        logit_bias: request.logit_bias.clone(),
        ..params.resolve()
    }
}

/// A request that can be answered, if its key and the engine have room.
struct CheckedRequest<'r> {
    persona: ResolvedPersona<'r>,
    request: &'r GenerateRequest,
    engine: Request,
    /// The most log-probabilities of its answers.
    logprobs: usize,
    arrival: Instant,
}

impl CheckedRequest<'_> {
    /// The most tokens that each answer may take. The first includes the prompt.
    fn tokens(&self) -> impl Iterator<Item = u64> + use<'_> {
        (0..self.request.choices).map(|choice| {
            let prompt = if choice == 0 {
                self.engine.prompt.len()
            } else {
                0
            };
            (prompt + self.engine.max_new_tokens) as u64
        })
    }
}

/// A request that is queued.
#[derive(Debug)]
pub struct QueuedRequest {
    /// What answers.
    pub identity: ModelIdentity,
    /// Dropping them cancels the request.
    pub tickets: Tickets,
}

/// The text of one answer while it is generated; the last event is [`TextEvent::End`]. Dropping it early cancels the request.
#[derive(Debug)]
pub struct TextStream {
    /// What answers.
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
