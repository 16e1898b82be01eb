//! Queues requests: resolves the persona, makes the engine's request, reserves adapters and submits one sequence for each answer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use engine::{Flow, Limits, Request, Sink, WaitOptions};
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
        self.submit_choices(
            request,
            &mut first_only(&mut sink),
            &AtomicBool::new(false),
            &|| {},
        )
    }

    /// [`Service::submit`] with a sink for each answer, by its number. A caller that goes away while the request waits for its
    /// adapters sets `gone`. `prepared` is called just before that wait: until then the request takes compute time, then it only waits.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub fn submit_choices(
        &self,
        request: &GenerateRequest,
        sinks: &mut dyn FnMut(usize) -> TextSink,
        gone: &AtomicBool,
        prepared: &dyn Fn(),
    ) -> Result<QueuedRequest, RequestError> {
        self.submit_with_metrics(request, sinks, gone, prepared, &self.metrics)
    }

    /// [`Service::submit_choices`], counted in `metrics`.
    pub(crate) fn submit_with_metrics(
        &self,
        request: &GenerateRequest,
        sinks: &mut dyn FnMut(usize) -> TextSink,
        gone: &AtomicBool,
        prepared: &dyn Fn(),
        metrics: &Arc<RequestMetrics>,
    ) -> Result<QueuedRequest, RequestError> {
        let arrival = Instant::now();
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
        let waits = (gone, prepared);
        self.submit_resolved(persona, request, &mut sinks, arrival, waits, metrics)
            .map_err(|error| counted(Some(&identity), error))
    }

    fn submit_resolved(
        &self,
        persona: ResolvedPersona<'_>,
        request: &GenerateRequest,
        sinks: &mut dyn FnMut(usize) -> TextSink,
        arrival: Instant,
        (gone, prepared): (&AtomicBool, &dyn Fn()),
        metrics: &Arc<RequestMetrics>,
    ) -> Result<QueuedRequest, RequestError> {
        let refused = |error| RequestError::refused(error, &request.names);
        let engine_request = self.engine_request(&persona, request, arrival)?;
        let logprobs =
            request.check_logprobs(engine_request.prompt.len(), engine_request.max_new_tokens)?;
        self.engine.check(&engine_request).map_err(refused)?;
        let client = engine_request.client.map(|client| client.id);
        let logprobs = self.logprobs.reserve(client, logprobs)?;
        let mut reservations = request
            .caller
            .admit(
                request.priority,
                engine_request.prompt.len(),
                engine_request.max_new_tokens,
                request.choices,
            )?
            .into_iter();
        if let Some(log) = request.caller.log() {
            log.resolved(&persona.identity);
            log.hold(logprobs);
        }
        let permits = self
            .engine
            .acquire_permits(engine_request.client, request.choices)
            .map_err(refused)?;
        let options = WaitOptions {
            deadline: timeout(request).and_then(|timeout| arrival.checked_add(timeout)),
            cancelled: Some(gone),
            client: engine_request.client,
        };
        prepared();
        // These leases last until the engine has its own.
        let leases = self.adapters.lease(&persona.adapters, &options)?;
        let echo = request.echo.then(|| prompt::text(&self.base, request));
        let stop = request.stop.as_ref().unwrap_or(&persona.stop);
        let sink = |choice: usize| -> Sink {
            let reservation = reservations.next().unwrap_or_default();
            let recorder = metrics.recorder(&persona.identity, arrival);
            let recorder = recorder.for_caller(request.caller.log(), reservation, choice == 0);
            let detokenizer = self.base.tokenizer.detokenizer();
            let mut processor = OutputProcessor::new(detokenizer, stop, sinks(choice), recorder);
            if request.calls_tools() {
                processor.parse_tool_calls();
            }
            if let Some(text) = &echo {
                processor.echo(text.clone(), engine_request.prompt.first().copied());
            }
            Box::new(move |event| processor.process(event))
        };
        let tickets =
            parallel_sampling::submit(&self.engine, permits, &engine_request, leases, sink);
        Ok(QueuedRequest {
            tickets: tickets.map_err(refused)?,
            identity: persona.identity,
        })
    }

    /// The engine's request: token ids, adapters by hash, resolved sampling, and a grammar.
    fn engine_request(
        &self,
        persona: &ResolvedPersona<'_>,
        request: &GenerateRequest,
        arrival: Instant,
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
            // The timeout includes the time to read the prompt and to compile the grammar.
            deadline: timeout(request).map(|timeout| timeout.saturating_sub(arrival.elapsed())),
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
