//! How a request gets all of its adapters at once, and waits for them where it must. Knows who reads what, not how.
//!
//! ```text
//! claim: all resident, being read, or promised room ---> next: read what is mine, wait for what others read ---> leases
//!          `- else stand in line, holding nothing
//! ```
//!
//! - All or nothing: who waits for room holds no adapter, so no two blends can wait for each other.
//! - Room is given in order of arrival. Requests whose adapters are here pass by those that wait for room, until the first of
//!   those has waited for `max_wait`; from then on nobody does, and what is leased comes free.
//! - An adapter is read by one claim at a time. If that one gives up, one that waits for the same goes on in its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::adapters::{AdapterId, AdapterPool, Entry, Lease, Shelf};
use crate::error::{ClaimError, PoolError};

/// How often those who wait look whether they still should.
const LOOK: Duration = Duration::from_millis(200);

/// How long a caller waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience<'a> {
    /// No longer than that.
    pub until: Option<Instant>,
    /// Set by somebody else: the caller is not there any more.
    pub gone: Option<&'a AtomicBool>,
}

impl Patience<'_> {
    fn check(&self) -> Result<(), ClaimError> {
        if self.gone.is_some_and(|gone| gone.load(Ordering::Relaxed)) {
            return Err(ClaimError::Gone);
        }
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return Err(ClaimError::Late);
        }
        Ok(())
    }

    /// How long to sleep at most before the next check.
    fn nap(&self) -> Duration {
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        self.until.map_or(LOOK, |until| left(until).min(LOOK))
    }
}

/// Requests that wait for room, by arrival.
pub(crate) struct Line {
    places: BTreeMap<u64, Waiter>,
    arrivals: u64,
    max_wait: Duration,
}

struct Waiter {
    since: Instant,
    wanted: Vec<AdapterId>,
}

impl Line {
    pub fn new(max_wait: Duration) -> Self {
        Line {
            places: BTreeMap::new(),
            arrivals: 0,
            max_wait,
        }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn wanted(&self) -> impl Iterator<Item = AdapterId> {
        self.places
            .values()
            .flat_map(|waiter| waiter.wanted.iter().copied())
    }

    fn join(&mut self, wanted: Vec<AdapterId>) -> u64 {
        let place = self.arrivals;
        self.arrivals += 1;
        let since = Instant::now();
        self.places.insert(place, Waiter { since, wanted });
        place
    }

    /// Whether somebody else's turn comes first, where room is given.
    fn is_another_before(&self, place: Option<u64>) -> bool {
        let first = self.places.keys().next();
        first.is_some_and(|first| Some(*first) != place)
    }

    /// Whether somebody else has waited too long to be passed by.
    fn is_overdue_before(&self, place: Option<u64>) -> bool {
        let first = self.places.iter().next();
        first.is_some_and(|(first, waiter)| {
            Some(*first) != place && waiter.since.elapsed() >= self.max_wait
        })
    }
}

/// A request's adapters, each here, being read, or with room promised. Dropped, it gives all of that back.
pub struct Claim<A> {
    pool: AdapterPool<A>,
    /// Each pinned once.
    held: Vec<AdapterId>,
    /// To be read by this claim, and not begun.
    to_read: Vec<AdapterId>,
    /// Being read by this claim.
    reading: Option<AdapterId>,
}

impl<A> AdapterPool<A> {
    /// Claims all of `wanted`, each with the bytes that it will probably take, and waits for room where there is none.
    pub fn claim(
        &self,
        wanted: &[(AdapterId, u64)],
        patience: &Patience<'_>,
    ) -> Result<Claim<A>, ClaimError> {
        let mut ids: Vec<AdapterId> = wanted.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        // Dropped after the lock is.
        let mut evicted = Vec::new();
        let mut shelf = self.lock();
        for id in &ids {
            let here = shelf.entries.get(id).is_some_and(|e| e.adapter.is_some());
            shelf.stats.hits += u64::from(here);
            shelf.stats.misses += u64::from(!here);
        }
        let mut place = None;
        let outcome: Result<Vec<AdapterId>, ClaimError> = loop {
            match shelf.take_all(&ids, wanted, place, &mut evicted) {
                Ok(Some(to_read)) => break Ok(to_read),
                Ok(None) => {}
                Err(error) => break Err(error.into()),
            }
            if let Err(error) = patience.check() {
                break Err(error);
            }
            if shelf.closed {
                break Err(ClaimError::Stopped);
            }
            if place.is_none() {
                place = Some(shelf.line.join(ids.clone()));
                shelf.stats.waits += 1;
            }
            shelf = self.wait(shelf, patience.nap());
        };
        if let Some(place) = place {
            shelf.line.places.remove(&place);
            self.notify();
        }
        drop(shelf);
        Ok(Claim {
            pool: self.clone(),
            to_read: outcome?,
            held: ids,
            reading: None,
        })
    }
}

impl<A> Shelf<A> {
    /// Pins all of `ids`, promises room to those that are not here, and says which those are; or None, and nothing changed.
    fn take_all(
        &mut self,
        ids: &[AdapterId],
        wanted: &[(AdapterId, u64)],
        place: Option<u64>,
        evicted: &mut Vec<Entry<A>>,
    ) -> Result<Option<Vec<AdapterId>>, PoolError> {
        let limit = self.limit();
        let known = |id: &AdapterId| {
            let entry = self.entries.get(id).map(|entry| entry.bytes);
            entry.or(self.sizes.get(id).copied())
        };
        let all = ids.iter().filter_map(known).fold(0, u64::saturating_add);
        if all > limit {
            let (id, bytes) = (ids[0], all);
            return Err(match ids.len() {
                1 => PoolError::TooLarge { id, bytes, limit },
                adapters => PoolError::TogetherTooLarge {
                    adapters,
                    bytes,
                    limit,
                },
            });
        }
        // What is only said of sizes must not refuse anybody: then the whole pool will do.
        let mut left = limit - all;
        let told = |id: &AdapterId| {
            wanted
                .iter()
                .find(|(other, _)| other == id)
                .map(|(_, n)| *n)
        };
        let mut absent = Vec::new();
        for id in ids.iter().filter(|id| !self.entries.contains_key(*id)) {
            let bytes = known(id).unwrap_or_else(|| {
                let bytes = told(id).unwrap_or(0).min(left);
                left -= bytes;
                bytes
            });
            absent.push((*id, bytes));
        }
        let lacking: u64 = absent.iter().map(|(_, bytes)| bytes).sum();
        if self.line.is_overdue_before(place) {
            return Ok(None);
        }
        if let Some((first, _)) = absent.first() {
            if self.line.is_another_before(place) {
                return Ok(None);
            }
            match self.make_room(*first, lacking, ids, evicted) {
                Ok(()) => {}
                Err(PoolError::Full { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        for (id, bytes) in &absent {
            self.entries.insert(*id, Entry::promised(*bytes));
        }
        for id in ids {
            self.pin(*id);
            if let Some(entry) = self.entries.get_mut(id) {
                // Whoever asks for a removed one that is still here has it back.
                entry.removed = false;
            }
        }
        Ok(Some(absent.into_iter().map(|(id, _)| id).collect()))
    }
}

impl<A> Claim<A> {
    /// The next adapter that the caller must read and [`fill`](Claim::fill) in; waits for those that others read, and for its
    /// turn to read. None: all are here.
    ///
    /// # Errors
    /// [`ClaimError`], but not its `Pool`.
    pub fn next(&mut self, patience: &Patience<'_>) -> Result<Option<AdapterId>, ClaimError> {
        let mut shelf = self.pool.lock();
        loop {
            // Those that somebody else was to read and did not.
            for id in &self.held {
                if let Some(entry) = shelf.entries.get_mut(id)
                    && std::mem::take(&mut entry.orphan)
                {
                    self.to_read.push(*id);
                }
            }
            if shelf.loads < shelf.most_loads
                && let Some(id) = self.to_read.pop()
            {
                shelf.loads += 1;
                self.reading = Some(id);
                return Ok(Some(id));
            }
            let here = |id: &AdapterId| shelf.entries.get(id).is_some_and(|e| e.adapter.is_some());
            if self.held.iter().all(here) {
                return Ok(None);
            }
            patience.check()?;
            if shelf.closed {
                return Err(ClaimError::Stopped);
            }
            shelf = self.pool.wait(shelf, patience.nap());
        }
    }

    /// Gives the pool the adapter that [`next`](Claim::next) named, with the bytes that it takes, the bytes that were read for
    /// it, and the time that this took.
    ///
    /// # Errors
    /// [`PoolError::Full`] or [`PoolError::TooLarge`], if it takes more than was said and there is no room for that. The pool
    /// knows its size from here on: claim again.
    pub fn fill(
        &mut self,
        adapter: Arc<A>,
        bytes: u64,
        read: u64,
        took: Duration,
    ) -> Result<(), PoolError> {
        let Some(id) = self.reading.take() else {
            return Ok(());
        };
        let mut evicted = Vec::new();
        let mut shelf = self.pool.lock();
        shelf.loads -= 1;
        shelf.stats.loads.count(took);
        shelf.stats.bytes_read += read;
        let filled = shelf.fill(id, adapter, bytes, &mut evicted);
        if filled.is_err() {
            self.to_read.push(id);
        }
        drop(shelf);
        self.pool.notify();
        filled
    }

    /// The leases, one for each adapter; those that are not here have none.
    pub fn into_leases(self) -> Vec<Lease<A>> {
        self.held
            .iter()
            .filter_map(|id| self.pool.lease(*id))
            .collect()
    }
}

impl<A> Drop for Claim<A> {
    fn drop(&mut self) {
        let mut shelf = self.pool.lock();
        if let Some(id) = self.reading.take() {
            shelf.loads -= 1;
            shelf.stats.load_failures += 1;
            self.to_read.push(id);
        }
        for id in &self.to_read {
            if let Some(entry) = shelf.entries.get_mut(id) {
                entry.orphan = entry.adapter.is_none();
            }
        }
        let freed: Vec<_> = self.held.iter().map(|id| shelf.give_back(*id)).collect();
        drop(shelf);
        self.pool.notify();
        drop(freed);
    }
}
