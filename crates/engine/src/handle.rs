//! The engine's interface to the rest of the program: start it, submit requests, manage adapters, read statistics.
//!
//! Every method may be called from any thread, including from a sink on the engine's own thread. No method waits for a step,
//! except [`Handle::shutdown`] and the drop of the last handle; [`Handle::reserve_adapters`] waits for adapters.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use crate::adapter_id::AdapterId;
use crate::adapter_pool::{AdapterInfo, AdapterPool, Lease};
use crate::config::EngineConfig;
use crate::error::{PoolError, ReservationError, StartError, SubmitError};
use crate::event::{Event, Flow, Sink};
use crate::logits::Logits;
use crate::output::OutputProcessor;
use crate::permit::{Permit, PermitRefusal, Permits};
use crate::request::{Client, Request};
use crate::reservation::{Reservation, WaitOptions};
use crate::runner::{Limits, Runner};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::stats::{SharedStats, Stats};
use crate::step::{Command, EngineLoop};

/// An accepted request. Dropped, it cancels the request, running or waiting; after the request's end it has no effect.
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

    /// Lets the request run to its end; from here on only its sink can stop it.
    pub fn detach(mut self) {
        // The drop then sets a flag that no request reads.
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

/// The engine itself; see [`Engine::start`].
pub struct Engine;

impl Engine {
    /// Starts the engine's thread (`lory-engine`), which owns `runner` from here on.
    ///
    /// # Errors
    /// [`StartError::InvalidConfig`] for settings or limits out of range, [`StartError::Thread`] if the system cannot start
    /// a thread.
    pub fn start<R: Runner>(
        runner: R,
        config: EngineConfig,
    ) -> Result<Handle<R::Adapter>, StartError> {
        let limits = runner.limits();
        config.check(&limits)?;
        let (commands, receiver) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let pool = AdapterPool::new(config.adapter_memory, config.adapter_loads, config.max_wait);
        let stats = Arc::new(SharedStats::default());
        let engine = EngineLoop {
            runner,
            limits,
            scheduler: Scheduler::new(&config, &limits),
            commands: receiver,
            stop: Arc::clone(&stop),
            stats: Arc::clone(&stats),
            outputs: OutputProcessor::new(limits.vocab_size),
            logits: Logits::default(),
            last_finish: None,
        };
        engine.publish_stats(&mut stats.lock());
        let thread = thread::Builder::new()
            .name("lory-engine".to_owned())
            .spawn(move || engine.run())?;
        Ok(Handle(Arc::new(Owner {
            thread_id: thread.thread().id(),
            thread: Mutex::new(Some(thread)),
            commands,
            stop,
            pool,
            stats,
            permits: Arc::new(Permits::new(config.max_batch, config.max_queue)),
            limits,
            config,
        })))
    }
}

/// A handle to the engine; clones share one engine. When the last is dropped, requests under way end as cancelled and the
/// engine's thread is joined (unless the drop happens on it).
pub struct Handle<A: Send + Sync + 'static>(Arc<Owner<A>>);

struct Owner<A: Send + Sync + 'static> {
    thread_id: ThreadId,
    thread: Mutex<Option<JoinHandle<()>>>,
    commands: Sender<Command<A>>,
    stop: Arc<AtomicBool>,
    pool: AdapterPool<A>,
    stats: Arc<SharedStats>,
    /// Those in use are requests accepted and not ended.
    permits: Arc<Permits>,
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
    /// The first thing wrong with the request, [`SubmitError::QueueFull`] or [`SubmitError::AboveShare`]; the sink is then never
    /// called.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, SubmitError> {
        self.check(&request)?;
        let mut permits = self.acquire_permits(request.client, 1)?;
        let permit = permits.pop().ok_or(SubmitError::Stopped)?;
        self.submit_with_permit(permit, request, sink)
    }

    /// Acquires the permits of requests that are not ready yet: `count`, or none. They count as waiting requests; the times and
    /// deadlines of the requests run from here.
    ///
    /// # Errors
    /// [`SubmitError::TooManyAtOnce`], [`SubmitError::QueueFull`], [`SubmitError::AboveShare`] and [`SubmitError::Stopped`].
    pub fn acquire_permits(
        &self,
        client: Option<Client>,
        count: usize,
    ) -> Result<Vec<Permit>, SubmitError> {
        let owner = &*self.0;
        if owner.stop.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        let (max_batch, max_queue) = (owner.config.max_batch, owner.config.max_queue);
        owner.permits.acquire(client, count).map_err(|refusal| {
            let retry_after = self.stats().retry_after();
            match refusal {
                PermitRefusal::TooMany { most } => {
                    SubmitError::TooManyAtOnce { asked: count, most }
                }
                PermitRefusal::Full => SubmitError::QueueFull {
                    limit: max_queue,
                    retry_after,
                },
                PermitRefusal::AboveShare { held } => SubmitError::AboveShare {
                    held,
                    limit: max_batch.saturating_add(max_queue),
                    asked: count,
                    retry_after,
                },
            }
        })
    }

    /// [`Handle::submit`] with a permit that was acquired before.
    ///
    /// # Errors
    /// As [`Handle::submit`], except [`SubmitError::QueueFull`] and [`SubmitError::AboveShare`].
    pub fn submit_with_permit(
        &self,
        permit: Permit,
        request: Request,
        sink: Sink,
    ) -> Result<Ticket, SubmitError> {
        let owner = &*self.0;
        self.check(&request)?;
        let adapters = request
            .adapters
            .iter()
            .map(|(id, scale)| {
                let lease = owner
                    .pool
                    .lease(*id, request.client.map(|client| client.id));
                Ok((lease.ok_or(SubmitError::UnknownAdapter(*id))?, *scale))
            })
            .collect::<Result<Vec<_>, SubmitError>>()?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let sequence = Sequence::new(request, adapters, permit, sink, Arc::clone(&cancelled));
        if let Err(unsent) = owner.commands.send(Command::Submit(Box::new(sequence))) {
            if let Command::Submit(mut sequence) = unsent.0 {
                sequence.response.discard();
            }
            return Err(SubmitError::Stopped);
        }
        Ok(Ticket { cancelled })
    }

    /// [`Handle::submit`] with an iterator instead of a sink, for callers that may block.
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
    /// adapters without a lease are evicted to make room. One that is resident already stays.
    ///
    /// The returned lease keeps it resident until the caller's request is submitted and holds its own.
    ///
    /// # Errors
    /// [`PoolError::TooLarge`] and [`PoolError::Full`]; then nothing is evicted.
    pub fn insert_adapter(
        &self,
        id: AdapterId,
        adapter: Arc<A>,
        bytes: u64,
    ) -> Result<Lease<A>, PoolError> {
        self.0.pool.insert(id, adapter, bytes)
    }

    /// A lease on an adapter, if it is resident.
    pub fn lease_adapter(&self, id: AdapterId) -> Option<Lease<A>> {
        self.0.pool.lease(id, None)
    }

    /// Reserves all adapters of a request at once, each given with its estimated bytes: resident ones, ones that other
    /// requests load, and room for those that the caller must load. Waits for room in the order of arrival, within the client's part
    /// of the memory.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn reserve_adapters(
        &self,
        wanted: &[(AdapterId, u64)],
        options: &WaitOptions<'_>,
    ) -> Result<Reservation<A>, ReservationError> {
        self.0.pool.reserve(wanted, options)
    }

    /// Adapters that requests wait for: loading, or waiting for room.
    pub fn waiting_adapters(&self) -> Vec<AdapterId> {
        self.0.pool.waiting_adapters()
    }

    /// Removes an adapter: new requests no longer find it. Requests that lease it continue; the last one frees it.
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

    /// Statistics as of the last step boundary or end of a request; `in_flight` and the adapters' are current.
    pub fn stats(&self) -> Stats {
        let mut stats = self.0.stats.lock().clone();
        stats.in_flight = self.0.permits.in_use();
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

    /// Whether the engine can run a request; does not look at its adapters or the queue.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn check(&self, request: &Request) -> Result<(), SubmitError> {
        request.check(&self.0.limits)
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
