//! How a request gets all of its adapters at once, and waits for them if necessary. Knows which request loads which adapter,
//! not how to load one.
//!
//! ```text
//! reserve: all resident, loading, or room reserved ---> next_to_load: load my own, wait for the others' ---> leases
//!            `- otherwise wait in the queue, holding nothing
//! ```
//!
//! - All or nothing: a request that waits for room holds no adapter, so two blends never wait for each other.
//! - A client whose requests hold more than its part of the memory waits until they release some of it; meanwhile others pass.
//! - Room is assigned in order of arrival. A request whose adapters are all in memory overtakes those that wait for room, until
//!   the first of them has waited for `max_wait`. From then on no request overtakes it, so leases end and room becomes free.
//! - An adapter is loaded by one reservation at a time. If that one is dropped, another that waits for the adapter loads it.
//! - Room is reserved by an estimate. If an adapter turns out larger and does not fit, all reservations that hold it are made again,
//!   by its actual size: loading it again into the same room would fail again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::adapter_id::AdapterId;
use crate::adapter_pool::{AdapterPool, Lease, PoolEntry, PoolState};
use crate::adapter_shares::AdapterShares;
use crate::client_id::ClientId;
use crate::error::{PoolError, ReservationError};
use crate::request::Client;

/// How often a waiting request checks its [`WaitOptions`].
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a caller waits. The default waits without a limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitOptions<'a> {
    /// When the wait ends as [`ReservationError::TimedOut`].
    pub deadline: Option<Instant>,
    /// Set by another thread: the wait ends as [`ReservationError::Cancelled`].
    pub cancelled: Option<&'a AtomicBool>,
    /// Whose part of the memory and of the load slots the wait is for.
    pub client: Option<Client>,
}

impl WaitOptions<'_> {
    fn check(&self) -> Result<(), ReservationError> {
        if self
            .cancelled
            .is_some_and(|cancelled| cancelled.load(Ordering::Relaxed))
        {
            return Err(ReservationError::Cancelled);
        }
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            return Err(ReservationError::TimedOut);
        }
        Ok(())
    }

    fn client_id(&self) -> ClientId {
        self.client.map(|client| client.id)
    }

    /// How long to sleep at most before the next check.
    fn check_interval(&self) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline.map_or(CHECK_INTERVAL, |deadline| {
            left(deadline).min(CHECK_INTERVAL)
        })
    }
}

/// A request's adapters: each is in memory, loads, or has room reserved. Dropped, it releases all of them.
pub struct Reservation<A> {
    pool: AdapterPool<A>,
    client: ClientId,
    /// Each pinned once.
    held: Vec<AdapterId>,
    /// To be loaded by this reservation, and not begun.
    to_load: Vec<AdapterId>,
    /// Loaded by this reservation now.
    loading: Option<AdapterId>,
}

impl<A> AdapterPool<A> {
    /// Reserves all of `wanted`, each given with its estimated bytes, and waits for room if there is none.
    pub fn reserve(
        &self,
        wanted: &[(AdapterId, u64)],
        options: &WaitOptions<'_>,
    ) -> Result<Reservation<A>, ReservationError> {
        let mut ids: Vec<AdapterId> = wanted.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        // Dropped after the lock.
        let mut evicted = Vec::new();
        let mut state = self.lock();
        for id in &ids {
            let hit = state.is_resident(id);
            state.stats.hits += u64::from(hit);
            state.stats.misses += u64::from(!hit);
        }
        let mut ticket = None;
        let outcome: Result<Vec<AdapterId>, ReservationError> = loop {
            match state.try_reserve(&ids, wanted, ticket, options.client, &mut evicted) {
                Ok(Some(to_load)) => break Ok(to_load),
                Ok(None) => {}
                Err(error) => break Err(error.into()),
            }
            if let Err(error) = options.check() {
                break Err(error);
            }
            if state.closed {
                break Err(ReservationError::Stopped);
            }
            if ticket.is_none() {
                ticket = Some(state.wait_queue.push(ids.clone()));
                state.stats.waits += 1;
            }
            state = self.wait(state, options.check_interval());
        };
        if let Some(ticket) = ticket {
            state.wait_queue.remove(ticket);
            self.notify();
        }
        drop(state);
        Ok(Reservation {
            pool: self.clone(),
            client: options.client_id(),
            to_load: outcome?,
            held: ids,
            loading: None,
        })
    }
}

impl<A> PoolState<A> {
    /// Pins all of `ids`, reserves room for those that are not in memory, and returns these. None if they do not fit
    /// now; nothing has changed then.
    fn try_reserve(
        &mut self,
        ids: &[AdapterId],
        wanted: &[(AdapterId, u64)],
        ticket: Option<u64>,
        client: Option<Client>,
        evicted: &mut Vec<PoolEntry<A>>,
    ) -> Result<Option<Vec<AdapterId>>, PoolError> {
        // Its room is too small. It is freed once its holders let go.
        let outgrown = |id: &AdapterId| self.entries.get(id).is_some_and(|entry| entry.outgrown);
        if ids.iter().any(outgrown) {
            return Ok(None);
        }
        let absent = self.absent_with_bytes(ids, wanted)?;
        let needed: u64 = absent.iter().map(|(_, bytes)| bytes).sum();
        let client_id = client.map(|client| client.id);
        let above = self.is_above_share(ids, needed, client);
        // Without clients nobody passes anybody.
        let present = ids.iter().filter_map(|id| self.entries.get(id));
        let all = present.fold(needed, |all, entry| all + entry.bytes);
        let large = client.is_some() && all > self.limit() / 2;
        self.wait_queue.set_need(ticket, above, large);
        if above || self.wait_queue.another_is_overdue(ticket) {
            return Ok(None);
        }
        if let Some((first, _)) = absent.first() {
            if self.wait_queue.another_is_first(ticket) {
                return Ok(None);
            }
            match self.make_room(*first, needed, ids, evicted) {
                Ok(()) => {}
                Err(PoolError::Full { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        for (id, bytes) in &absent {
            self.entries.insert(*id, PoolEntry::reserved(*bytes));
        }
        for id in ids {
            self.pin(*id, client_id);
            if let Some(entry) = self.entries.get_mut(id) {
                // A removed adapter that is still in memory takes leases again.
                entry.removed = false;
            }
        }
        Ok(Some(absent.into_iter().map(|(id, _)| id).collect()))
    }

    /// Those of `ids` that are not in memory, with their bytes, or an estimate if nobody knows them.
    ///
    /// # Errors
    /// `ids` do not fit into the pool together.
    fn absent_with_bytes(
        &self,
        ids: &[AdapterId],
        wanted: &[(AdapterId, u64)],
    ) -> Result<Vec<(AdapterId, u64)>, PoolError> {
        let limit = self.limit();
        let exact = |id: &AdapterId| {
            let entry = self.entries.get(id).map(|entry| entry.bytes);
            entry.or(self.sizes.get(id).copied())
        };
        let total = ids.iter().filter_map(exact).fold(0, u64::saturating_add);
        if total > limit {
            let (id, bytes) = (ids[0], total);
            return Err(match ids.len() {
                1 => PoolError::TooLarge { id, bytes, limit },
                adapters => PoolError::TogetherTooLarge {
                    adapters,
                    bytes,
                    limit,
                },
            });
        }
        // An estimate must not refuse a request: it is clamped to what the pool has left.
        let mut left = limit - total;
        let estimate = |id: &AdapterId| {
            let found = wanted.iter().find(|(other, _)| other == id);
            found.map_or(0, |(_, bytes)| *bytes)
        };
        let absent = ids.iter().filter(|id| !self.entries.contains_key(*id));
        let with_bytes = absent.map(|id| {
            let bytes = exact(id).unwrap_or_else(|| {
                let bytes = estimate(id).min(left);
                left -= bytes;
                bytes
            });
            (*id, bytes)
        });
        Ok(with_bytes.collect())
    }

    /// Whether a client would have more than its share of the memory with `ids`, of which those that are absent need `needed` bytes.
    fn is_above_share(&self, ids: &[AdapterId], needed: u64, client: Option<Client>) -> bool {
        let client_id = client.map(|client| client.id);
        let own = self.pinned_by(client_id);
        // Of adapters that no request of this client holds; and of those, what no request at all holds.
        let (mut more, mut newly_pinned) = (needed, needed);
        for id in ids {
            if let Some(entry) = self.entries.get(id)
                && !self.shares.pins(client_id, id)
            {
                more += entry.bytes;
                newly_pinned += if entry.leases == 0 { entry.bytes } else { 0 };
            }
        }
        let free = self.limit().saturating_sub(self.pinned() + newly_pinned);
        !AdapterShares::allows(client, own, more, free)
    }
}

impl<A> Reservation<A> {
    /// The next adapter that the caller must load and pass to [`fill`](Reservation::fill). Waits for those that other
    /// reservations load, and until fewer than `adapter_loads` load. None: all are in memory.
    ///
    /// # Errors
    /// [`ReservationError`], except `Pool`; after `MoreThanReserved`, reserve again.
    pub fn next_to_load(
        &mut self,
        options: &WaitOptions<'_>,
    ) -> Result<Option<AdapterId>, ReservationError> {
        let mut state = self.pool.lock();
        loop {
            let outgrown = |id| state.entries.get(id).is_some_and(|entry| entry.outgrown);
            if self.held.iter().any(outgrown) {
                return Err(ReservationError::MoreThanReserved);
            }
            // Adapters that another reservation was to load and did not.
            for id in &self.held {
                if let Some(entry) = state.entries.get_mut(id)
                    && std::mem::take(&mut entry.abandoned)
                {
                    self.to_load.push(*id);
                }
            }
            if state.loads < state.max_loads
                && state.shares.may_load(self.client)
                && let Some(id) = self.to_load.pop()
            {
                state.loads += 1;
                state.shares.count_load(self.client, true);
                self.loading = Some(id);
                drop(state);
                // Another slot may be free for one that gave way to this one.
                self.pool.notify();
                return Ok(Some(id));
            }
            if self.held.iter().all(|id| state.is_resident(id)) {
                return Ok(None);
            }
            options.check()?;
            if state.closed {
                return Err(ReservationError::Stopped);
            }
            let wants_slot = !self.to_load.is_empty();
            if wants_slot {
                state.shares.count_waiting_to_load(self.client, true);
            }
            state = self.pool.wait(state, options.check_interval());
            if wants_slot {
                state.shares.count_waiting_to_load(self.client, false);
            }
        }
    }

    /// Puts the adapter that [`next_to_load`](Reservation::next_to_load) returned into the pool: the `bytes` that it takes in
    /// memory, the bytes `read` from its files, and how long loading took.
    ///
    /// # Errors
    /// [`PoolError::Full`] or [`PoolError::TooLarge`], if it takes more than the estimate and does not fit. The pool knows
    /// its size from here on: reserve again.
    pub fn fill(
        &mut self,
        adapter: Arc<A>,
        bytes: u64,
        read: u64,
        took: Duration,
    ) -> Result<(), PoolError> {
        let Some(id) = self.loading.take() else {
            return Ok(());
        };
        let mut evicted = Vec::new();
        let mut state = self.pool.lock();
        state.loads -= 1;
        state.shares.count_load(self.client, false);
        state.stats.loads.count(took);
        state.stats.bytes_read += read;
        let filled = state.fill(id, adapter, bytes, &mut evicted);
        if filled.is_err() {
            self.to_load.push(id);
        }
        drop(state);
        self.pool.notify();
        filled
    }

    /// One lease for each adapter that is in memory.
    pub fn into_leases(self) -> Vec<Lease<A>> {
        self.held
            .iter()
            .filter_map(|id| self.pool.lease(*id, self.client))
            .collect()
    }
}

impl<A> Drop for Reservation<A> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        if let Some(id) = self.loading.take() {
            state.loads -= 1;
            state.shares.count_load(self.client, false);
            state.stats.load_failures += 1;
            self.to_load.push(id);
        }
        for id in &self.to_load {
            if let Some(entry) = state.entries.get_mut(id) {
                entry.abandoned = entry.adapter.is_none();
            }
        }
        let freed: Vec<_> = self
            .held
            .iter()
            .map(|id| state.unpin(*id, self.client))
            .collect();
        drop(state);
        self.pool.notify();
        drop(freed);
    }
}
