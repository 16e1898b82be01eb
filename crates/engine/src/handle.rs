//! How the rest of the program reaches the engine: start it, submit requests, keep adapters, read numbers.
//! Every method may be called from any thread, the sinks on the engine's own thread included; none waits for a step,
//! except [`Handle::shutdown`] and the drop of the last handle, and [`Handle::claim`], which waits for adapters.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crate::adapters::{AdapterId, AdapterInfo, AdapterPool, Lease};
use crate::blocks::BlockTable;
use crate::claim::{Claim, Patience};
use crate::constraint::{Grammar, mask_words};
use crate::error::{ClaimError, PoolError, StartError, SubmitError};
use crate::event::{Event, Flow, Outlet, Sink};
use crate::lookup::Lookup;
use crate::runner::{Limits, Runner};
use crate::sampler::{History, Sampler};
use crate::sampling::{MAX_TOP_LOGPROBS, Sampling, invalid};
use crate::scheduler::Scheduler;
use crate::sequence::{Choice, Place, Sequence};
use crate::shares::Client;
use crate::stats::{Board, Stats};
use crate::step::{Command, EngineLoop};

/// The most adapters that one request may blend.
const MAX_ADAPTERS: usize = 32;

/// The engine's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most sequences in one step.
    pub max_batch: usize,
    /// How many requests may wait beyond the `max_batch` that run; one more is refused.
    pub max_queue: usize,
    /// The most rows (tokens) in one step; at least `max_batch`.
    pub step_tokens: usize,
    /// The most rows of one prompt in one step. Below `step_tokens`, a short prompt need not wait behind a long one.
    pub prefill_chunk: usize,
    /// How long a step with decodes may take by what earlier steps took: it bounds the rows of prompts in such a step, down
    /// to 8. Without decodes a step has `step_tokens` rows.
    pub step_latency: Duration,
    /// After this wait a request goes before all that have not waited as long, whatever their priority and share.
    pub max_wait: Duration,
    /// Bytes that resident adapters may take.
    pub adapter_memory: u64,
    /// The most adapters that are read at once. More hide a slow disk better, and each takes a few times its file meanwhile.
    pub adapter_loads: usize,
    /// The most tokens that are guessed ahead for one sequence in one step, from what it has said before; 0 turns it off.
    /// As many are as pay, by what rows cost and how often guesses were right; what is said is the same either way.
    pub draft_tokens: usize,
    /// Whether KV blocks are kept when their request ends, for requests that begin alike.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_batch: 32,
            max_queue: 256,
            step_tokens: 256,
            prefill_chunk: 128,
            step_latency: Duration::from_millis(100),
            max_wait: Duration::from_secs(5),
            adapter_memory: 256 << 20,
            adapter_loads: 4,
            draft_tokens: 8,
            prefix_cache: true,
        }
    }
}

impl EngineConfig {
    fn check(&self, limits: &Limits) -> Result<(), StartError> {
        for (field, value) in [
            ("max_batch", self.max_batch),
            ("prefill_chunk", self.prefill_chunk),
            ("adapter_loads", self.adapter_loads),
            ("vocab_size", limits.vocab_size),
            ("context_length", limits.context_length),
            ("block_tokens", limits.block_tokens),
            ("blocks", limits.blocks),
        ] {
            // Ids, positions and rows are u32 in a plan.
            if value == 0 || u32::try_from(value).is_err() {
                let message = format!("must be from 1 to {}, not {value}", u32::MAX);
                return Err(StartError::InvalidConfig { field, message });
            }
        }
        if self.step_tokens < self.max_batch || u32::try_from(self.step_tokens).is_err() {
            let message = format!(
                "must be from max_batch ({}) to {}, not {}",
                self.max_batch,
                u32::MAX,
                self.step_tokens
            );
            return Err(StartError::InvalidConfig {
                field: "step_tokens",
                message,
            });
        }
        Ok(())
    }
}

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Adapters with their scales, added in this order. Empty: the base alone.
    pub adapters: Vec<(AdapterId, f32)>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The most tokens to sample, at least 1. With the prompt it must fit the context.
    pub max_new_tokens: usize,
    /// Tokens that end the request when sampled, and are not shown. Empty: nothing but the length ends it.
    pub stop_tokens: Vec<u32>,
    /// `Some(n)`: every token carries its log-probability and those of the `n` most probable tokens (0 to 20).
    pub top_logprobs: Option<u8>,
    /// Whether the prompt's tokens are told with their log-probabilities too, as many as `top_logprobs` says. They are computed
    /// anew then, whatever the cache has.
    pub prompt_logprobs: bool,
    /// What the answer must look like; the rules are the caller's.
    pub grammar: Option<Arc<dyn Grammar>>,
    /// The lower goes first, of those that wait and where blocks run out; 0 is the usual.
    pub priority: i32,
    /// For whom it is, where several share the engine; none: for nobody in particular.
    pub client: Option<Client>,
    /// In how long from its submission it must have ended; then it ends as [`FinishReason::Deadline`], wherever it is.
    ///
    /// [`FinishReason::Deadline`]: crate::FinishReason::Deadline
    pub deadline: Option<Duration>,
}

/// A taken request. Dropped, it cancels the request, running or waiting; after the end it does nothing.
#[derive(Debug)]
#[must_use = "dropping the ticket cancels the request"]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
}

impl Ticket {
    /// Cancels the request; it ends at the next step boundary.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Lets the request run to its end; only its sink can stop it from here on.
    pub fn detach(mut self) {
        // The drop then cancels nobody.
        self.cancelled = Arc::default();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The events of one request, in order; the last is [`Event::Finished`]. Dropped early, it cancels the request.
#[derive(Debug)]
pub struct Stream {
    events: Receiver<Event>,
    #[expect(dead_code, reason = "held for its Drop")]
    ticket: Ticket,
}

impl Iterator for Stream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.events.recv().ok()
    }
}

/// A place among the requests that the engine takes, for one that has yet to get its adapters. Dropped, it is free again.
#[must_use = "dropping the seat gives it up"]
pub struct Seat {
    place: Place,
    came: Instant,
}

/// The engine itself; see [`Engine::start`].
pub struct Engine;

impl Engine {
    /// Starts the engine's thread (`lory-engine`), which owns `runner` from here on.
    ///
    /// # Errors
    /// [`StartError::InvalidConfig`] for settings or limits that make no sense, [`StartError::Thread`] if the system
    /// gives no thread.
    pub fn start<R: Runner>(
        runner: R,
        config: EngineConfig,
    ) -> Result<Handle<R::Adapter>, StartError> {
        let limits = runner.limits();
        config.check(&limits)?;
        let (commands, receiver) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let pool = AdapterPool::new(config.adapter_memory, config.adapter_loads, config.max_wait);
        let board = Arc::new(Board::default());
        let engine = EngineLoop {
            runner,
            limits,
            scheduler: Scheduler::new(&config, &limits),
            commands: receiver,
            stop: Arc::clone(&stop),
            board: Arc::clone(&board),
            sampler: Sampler::default(),
            logits: Vec::new(),
            mask: vec![0; mask_words(limits.vocab_size)],
            last_end: None,
        };
        engine.publish(&mut board.lock());
        let thread = thread::Builder::new()
            .name("lory-engine".to_owned())
            .spawn(move || engine.run())?;
        Ok(Handle(Arc::new(Owner {
            thread_id: thread.thread().id(),
            thread: Mutex::new(Some(thread)),
            commands,
            stop,
            pool,
            board,
            taken: Arc::new(AtomicUsize::new(0)),
            limits,
            config,
        })))
    }
}

/// A way to the engine; clones reach the same one. When the last is dropped, requests under way end as cancelled and the
/// thread is joined (unless the drop happens on it).
pub struct Handle<A: Send + Sync + 'static>(Arc<Owner<A>>);

struct Owner<A: Send + Sync + 'static> {
    thread_id: ThreadId,
    thread: Mutex<Option<JoinHandle<()>>>,
    commands: Sender<Command<A>>,
    stop: Arc<AtomicBool>,
    pool: AdapterPool<A>,
    board: Arc<Board>,
    /// Requests taken and not ended.
    taken: Arc<AtomicUsize>,
    limits: Limits,
    config: EngineConfig,
}

impl<A: Send + Sync + 'static> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Handle(Arc::clone(&self.0))
    }
}

impl<A: Send + Sync + 'static> Handle<A> {
    /// Queues a request, with leases on its adapters. `sink` receives its events on the engine's thread.
    ///
    /// # Errors
    /// The first thing wrong with the request, or that there is no room; the sink is then never called.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, SubmitError> {
        self.check(&request)?;
        self.submit_from(self.take_seat()?, request, sink)
    }

    /// Takes a place among the requests of the engine, before the request itself is ready. It counts as waiting, and its times
    /// and its deadline run from here.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`] and [`SubmitError::Stopped`].
    pub fn take_seat(&self) -> Result<Seat, SubmitError> {
        let owner = &*self.0;
        if owner.stop.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        let limit = owner.config.max_queue;
        let most = owner.config.max_batch.saturating_add(limit);
        let place = Place::take(&owner.taken, most).ok_or_else(|| SubmitError::QueueFull {
            limit,
            retry_after: self.stats().retry_after(),
        })?;
        let came = Instant::now();
        Ok(Seat { place, came })
    }

    /// [`Handle::submit`] with a seat that was taken before.
    ///
    /// # Errors
    /// As [`Handle::submit`], but for a full queue.
    pub fn submit_from(
        &self,
        seat: Seat,
        request: Request,
        sink: Sink,
    ) -> Result<Ticket, SubmitError> {
        let owner = &*self.0;
        self.check(&request)?;
        let Seat { place, came } = seat;
        let adapters = request
            .adapters
            .iter()
            .map(|(id, scale)| {
                let lease = owner.pool.lease(*id);
                Ok((lease.ok_or(SubmitError::UnknownAdapter(*id))?, *scale))
            })
            .collect::<Result<Vec<_>, SubmitError>>()?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let sequence = Box::new(Sequence {
            outlet: Outlet::new(sink, request.prompt.len(), came),
            choice: Choice {
                seed: request.sampling.seed_or_random(),
                history: History::new(&request.sampling, &request.prompt),
                constraint: request.grammar.as_ref().map(|grammar| grammar.start()),
                sampling: request.sampling,
                top_logprobs: request.top_logprobs,
                stop_tokens: request.stop_tokens,
                max_new_tokens: request.max_new_tokens,
            },
            untold: match request.prompt_logprobs {
                true => 1..request.prompt.len(),
                false => 0..0,
            },
            tokens: request.prompt,
            computed: 0,
            blocks: BlockTable::default(),
            root: request
                .adapters
                .iter()
                .map(|(id, scale)| (*id, scale.to_bits()))
                .collect(),
            adapters,
            lookup: Lookup::default(),
            came,
            // A time past what the clock can say is no deadline.
            deadline: request.deadline.and_then(|within| came.checked_add(within)),
            priority: request.priority,
            client: request.client,
            overdue: false,
            cancelled: Arc::clone(&cancelled),
            place,
        });
        if let Err(unsent) = owner.commands.send(Command::Submit(sequence)) {
            if let Command::Submit(mut sequence) = unsent.0 {
                sequence.outlet.silence();
            }
            return Err(SubmitError::Stopped);
        }
        Ok(Ticket { cancelled })
    }

    /// [`Handle::submit`] with an iterator for a sink; for callers that may wait.
    ///
    /// # Errors
    /// As [`Handle::submit`].
    pub fn stream(&self, request: Request) -> Result<Stream, SubmitError> {
        let (sender, events) = channel();
        let sink: Sink = Box::new(move |event| match sender.send(event) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Stop,
        });
        let ticket = self.submit(request, sink)?;
        Ok(Stream { events, ticket })
    }

    /// Makes an adapter resident under its content hash; `bytes` count against `adapter_memory`. The least recently used
    /// adapters that no one leases make room. One that is resident already stays.
    ///
    /// The lease that comes back keeps it resident until a request of the caller's is submitted; drop it freely.
    ///
    /// # Errors
    /// [`PoolError::TooLarge`] and [`PoolError::Full`]; nothing is evicted then.
    pub fn insert_adapter(
        &self,
        id: AdapterId,
        adapter: Arc<A>,
        bytes: u64,
    ) -> Result<Lease<A>, PoolError> {
        self.0.pool.insert(id, adapter, bytes)
    }

    /// Holds an adapter, if it is resident.
    pub fn lease_adapter(&self, id: AdapterId) -> Option<Lease<A>> {
        self.0.pool.lease(id)
    }

    /// All adapters of a request at once, each with the bytes that it will probably take: those that are here, those that
    /// others read, and promised room for those that the caller must read. Waits for room, in turn.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim(
        &self,
        wanted: &[(AdapterId, u64)],
        patience: &Patience<'_>,
    ) -> Result<Claim<A>, ClaimError> {
        self.0.pool.claim(wanted, patience)
    }

    /// Adapters that requests wait for: being read, or without room.
    pub fn awaited_adapters(&self) -> Vec<AdapterId> {
        self.0.pool.awaited()
    }

    /// Hides an adapter from new requests at once; requests that lease it go on, the last one frees it.
    ///
    /// # Errors
    /// [`PoolError::Unknown`] if it is not resident or already removed.
    pub fn remove_adapter(&self, id: AdapterId) -> Result<(), PoolError> {
        self.0.pool.remove(id)
    }

    /// The adapters in memory, by id.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.0.pool.list()
    }

    /// The numbers as of the last step boundary or end of a request; `in_flight` and those of the adapters as of now.
    pub fn stats(&self) -> Stats {
        let mut stats = self.0.board.lock().clone();
        stats.in_flight = self.0.taken.load(Ordering::Acquire);
        stats.adapters = self.0.pool.stats();
        stats
    }

    /// The model's sizes.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// The engine's settings.
    pub fn config(&self) -> &EngineConfig {
        &self.0.config
    }

    /// Ends all requests as cancelled at the next step boundary and waits for the thread to end (not if called on it).
    /// Later submits fail with [`SubmitError::Stopped`].
    pub fn shutdown(&self) {
        self.0.shutdown();
    }

    /// Whether the engine would take a request, its adapters and the queue aside.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let limits = &self.0.limits;
        let prompt = request.prompt.len();
        let limit = limits.context_length;
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt >= limit {
            let tokens = prompt;
            return Err(SubmitError::PromptTooLong { tokens, limit });
        }
        let outside = |token: &u32| *token as usize >= limits.vocab_size;
        if let Some(position) = request.prompt.iter().position(outside) {
            return Err(SubmitError::TokenOutOfRange {
                position,
                token: request.prompt[position],
                vocab_size: limits.vocab_size,
            });
        }
        check_settings(request)?;
        let biases = &request.sampling.logit_bias;
        if let Some((token, _)) = biases.iter().find(|(token, _)| outside(token)) {
            let message = format!(
                "names the token {token}; the vocabulary's are 0 to {}",
                limits.vocab_size.saturating_sub(1)
            );
            return Err(invalid("logit_bias", message));
        }
        let max_new_tokens = request.max_new_tokens;
        if max_new_tokens > limit - prompt {
            return Err(SubmitError::PastContext {
                prompt,
                max_new_tokens,
                limit,
            });
        }
        // The last sampled token is never run, so it needs no room.
        let needed = (prompt + max_new_tokens - 1).div_ceil(limits.block_tokens);
        let blocks = limits.blocks;
        if needed > blocks {
            return Err(SubmitError::TooLargeForMemory { needed, blocks });
        }
        Ok(())
    }
}

fn check_settings(request: &Request) -> Result<(), SubmitError> {
    request.sampling.check()?;
    if request.max_new_tokens == 0 {
        return Err(invalid("max_new_tokens", "must be at least 1".to_owned()));
    }
    if let Some(n) = request.top_logprobs.filter(|n| *n > MAX_TOP_LOGPROBS) {
        let message = format!("must be at most {MAX_TOP_LOGPROBS}, not {n}");
        return Err(invalid("top_logprobs", message));
    }
    if request.prompt_logprobs && request.top_logprobs.is_none() {
        let message = "needs top_logprobs".to_owned();
        return Err(invalid("prompt_logprobs", message));
    }
    if request.adapters.len() > MAX_ADAPTERS {
        let n = request.adapters.len();
        let message = format!("may be at most {MAX_ADAPTERS} in one request, not {n}");
        return Err(invalid("adapters", message));
    }
    match request.adapters.iter().find(|(_, s)| !s.is_finite()) {
        Some((id, scale)) => {
            let message = format!("must have finite scales; that of {id} is {scale}");
            Err(invalid("adapters", message))
        }
        None => Ok(()),
    }
}

impl<A: Send + Sync + 'static> Owner<A> {
    fn shutdown(&self) {
        self.stop.store(true, Ordering::Release);
        self.pool.close();
        // Fails only if the thread has ended.
        let _ = self.commands.send(Command::Wake);
        if thread::current().id() == self.thread_id {
            return;
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic of the thread has ended its requests already.
            let _ = thread.join();
        }
    }
}

impl<A: Send + Sync + 'static> Drop for Owner<A> {
    fn drop(&mut self) {
        self.shutdown();
    }
}
