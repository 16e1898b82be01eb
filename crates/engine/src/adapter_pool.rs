//! The adapters in memory, by content hash. Knows their sizes and how many leases they have, not what they contain.
//!
//! An adapter is its content hash: one id always has the same content. A [`Lease`] keeps its adapter in memory: eviction takes
//! only adapters without leases; removal hides an adapter at once, and its last lease frees it. How requests wait for an
//! adapter that is not in memory is in `reservation`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::adapter_id::AdapterId;
use crate::adapter_shares::AdapterShares;
use crate::client_id::ClientId;
use crate::error::PoolError;
use crate::stats::AdapterStats;
use crate::wait_queue::WaitQueue;

/// One adapter of the pool, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its content hash.
    pub id: AdapterId,
    /// Bytes it takes, or is expected to take while it loads.
    pub bytes: u64,
    /// Leases and reservations that hold it now.
    pub leases: usize,
    /// It is not in memory yet: its bytes are reserved and a request loads it.
    pub loading: bool,
    /// Removed: it takes no new leases, and its last one frees it.
    pub removed: bool,
}

/// The pool; clones are the same pool.
pub(crate) struct AdapterPool<A>(Arc<Shared<A>>);

struct Shared<A> {
    state: Mutex<PoolState<A>>,
    /// Notified when a waiting request may be able to continue.
    changed: Condvar,
}

pub(crate) struct PoolState<A> {
    pub entries: HashMap<AdapterId, PoolEntry<A>>,
    limit: u64,
    /// Counts uses; the entry with the smallest `last_used` is the least recently used one.
    clock: u64,
    /// The bytes that adapters took when they were last in memory: more exact than the estimate from their files.
    pub sizes: HashMap<AdapterId, u64>,
    pub wait_queue: WaitQueue,
    pub shares: AdapterShares,
    /// The most adapters that load at once.
    pub max_loads: usize,
    /// How many load now.
    pub loads: usize,
    /// The engine has stopped: no request may wait any more.
    pub closed: bool,
    pub stats: AdapterStats,
}

pub(crate) struct PoolEntry<A> {
    /// None while it loads, or waits to be loaded.
    pub adapter: Option<Arc<A>>,
    pub bytes: u64,
    pub leases: usize,
    pub last_used: u64,
    pub removed: bool,
    /// The request that was to load it gave up; the next one that wants it loads it.
    pub abandoned: bool,
    /// It takes more than its room, and there is no room for the difference: all holders let go of it and reserve again.
    pub outgrown: bool,
}

impl<A> AdapterPool<A> {
    /// A pool of `limit` bytes that loads at most `max_loads` adapters at once. A request that has waited for `max_wait` is
    /// not overtaken.
    pub fn new(limit: u64, max_loads: usize, max_wait: Duration) -> Self {
        let state = PoolState {
            entries: HashMap::new(),
            limit,
            clock: 0,
            sizes: HashMap::new(),
            wait_queue: WaitQueue::new(max_wait),
            shares: AdapterShares::default(),
            max_loads,
            loads: 0,
            closed: false,
            stats: AdapterStats::default(),
        };
        AdapterPool(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// Makes an adapter resident, evicting the least recently used ones without leases if it needs their room.
    /// One that is resident already stays as it is; one that was removed and is still leased takes new leases again.
    pub fn insert(
        &self,
        id: AdapterId,
        adapter: Arc<A>,
        bytes: u64,
    ) -> Result<Lease<A>, PoolError> {
        // Dropped after the lock: freeing an adapter may take a while.
        let mut evicted = Vec::new();
        let mut state = self.lock();
        match state.entries.get_mut(&id) {
            Some(entry) if entry.adapter.is_some() => entry.removed = false,
            Some(_) => state.fill(id, adapter, bytes, &mut evicted)?,
            None => {
                state.make_room(id, bytes, &[], &mut evicted)?;
                state.entries.insert(id, PoolEntry::reserved(bytes));
                state.fill(id, adapter, bytes, &mut evicted)?;
            }
        }
        let adapter = state.acquire(id, None).ok_or(PoolError::Unknown(id))?;
        drop(state);
        self.notify();
        Ok(self.leased(id, adapter, None))
    }

    /// A client's lease on an adapter, if it is resident and not removed.
    pub fn lease(&self, id: AdapterId, client: ClientId) -> Option<Lease<A>> {
        let adapter = self.lock().acquire(id, client)?;
        Some(self.leased(id, adapter, client))
    }

    /// Hides an adapter from new leases, and frees it now or with its last lease.
    pub fn remove(&self, id: AdapterId) -> Result<(), PoolError> {
        let mut state = self.lock();
        match state.entries.get_mut(&id) {
            Some(entry) if !entry.removed => entry.removed = true,
            _ => return Err(PoolError::Unknown(id)),
        }
        let freed = state.free_if_unused(id);
        drop(state);
        drop(freed);
        Ok(())
    }

    /// All adapters in memory, by id.
    pub fn list(&self) -> Vec<AdapterInfo> {
        let state = self.lock();
        let info = |(id, entry): (&AdapterId, &PoolEntry<A>)| AdapterInfo {
            id: *id,
            bytes: entry.bytes,
            leases: entry.leases,
            loading: entry.adapter.is_none(),
            removed: entry.removed,
        };
        let mut list: Vec<_> = state.entries.iter().map(info).collect();
        list.sort_unstable_by_key(|info| info.id);
        list
    }

    /// What the pool holds now, and its counters.
    pub fn stats(&self) -> AdapterStats {
        let state = self.lock();
        let resident = |entry: &&PoolEntry<A>| entry.adapter.is_some();
        AdapterStats {
            resident: state.entries.values().filter(resident).count(),
            loading: state.entries.len() - state.entries.values().filter(resident).count(),
            bytes: state.used(),
            limit: state.limit,
            waiting: state.wait_queue.len(),
            ..state.stats.clone()
        }
    }

    /// Adapters that requests wait for, loading or without room, by id.
    pub fn waiting_adapters(&self) -> Vec<AdapterId> {
        let state = self.lock();
        let loading = state.entries.iter().filter(|(_, e)| e.adapter.is_none());
        let mut ids: Vec<AdapterId> = loading.map(|(id, _)| *id).collect();
        let absent = |id: &AdapterId| !state.entries.contains_key(id);
        ids.extend(state.wait_queue.wanted().filter(absent));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Ends all waits: the engine has stopped.
    pub fn close(&self) {
        self.lock().closed = true;
        self.notify();
    }

    fn leased(&self, id: AdapterId, adapter: Arc<A>, client: ClientId) -> Lease<A> {
        Lease {
            pool: self.clone(),
            id,
            client,
            adapter,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, PoolState<A>> {
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the waiting requests: one of them may be able to continue.
    pub fn notify(&self) {
        self.0.changed.notify_all();
    }

    /// Releases the lock until a notification, for at most `time`.
    pub fn wait<'a>(
        &self,
        state: MutexGuard<'a, PoolState<A>>,
        time: Duration,
    ) -> MutexGuard<'a, PoolState<A>> {
        let woken = self.0.changed.wait_timeout(state, time);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<A> Clone for AdapterPool<A> {
    fn clone(&self) -> Self {
        AdapterPool(Arc::clone(&self.0))
    }
}

impl<A> PoolEntry<A> {
    /// Room for an adapter that is not loaded yet.
    pub fn reserved(bytes: u64) -> Self {
        PoolEntry {
            adapter: None,
            bytes,
            leases: 0,
            last_used: 0,
            removed: false,
            abandoned: false,
            outgrown: false,
        }
    }
}

impl<A> PoolState<A> {
    fn used(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    /// The bytes that requests hold.
    pub fn pinned(&self) -> u64 {
        let pinned = self.entries.values().filter(|entry| entry.leases > 0);
        pinned.map(|entry| entry.bytes).sum()
    }

    /// The bytes that a client's requests hold.
    pub fn pinned_by(&self, client: ClientId) -> u64 {
        let entries = self
            .shares
            .pinned(client)
            .filter_map(|id| self.entries.get(id));
        entries.map(|entry| entry.bytes).sum()
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn is_resident(&self, id: &AdapterId) -> bool {
        let entry = self.entries.get(id);
        entry.is_some_and(|entry| entry.adapter.is_some())
    }

    /// Evicts until `bytes` fit next to what stays, or changes nothing. The adapters in `keep` stay.
    pub fn make_room(
        &mut self,
        id: AdapterId,
        bytes: u64,
        keep: &[AdapterId],
        evicted: &mut Vec<PoolEntry<A>>,
    ) -> Result<(), PoolError> {
        let limit = self.limit;
        if bytes > limit {
            return Err(PoolError::TooLarge { id, bytes, limit });
        }
        let entries = self.entries.iter();
        let mut idle: Vec<_> = entries
            .filter(|(id, entry)| entry.leases == 0 && !keep.contains(id))
            .collect();
        idle.sort_unstable_by_key(|(_, entry)| entry.last_used);
        let mut used = self.used();
        let mut victims = Vec::new();
        for (idle_id, entry) in idle {
            if used <= limit - bytes {
                break;
            }
            used -= entry.bytes;
            victims.push(*idle_id);
        }
        if used > limit - bytes {
            let leased = used;
            return Err(PoolError::Full {
                id,
                bytes,
                leased,
                limit,
            });
        }
        self.stats.evictions += victims.len() as u64;
        evicted.extend(victims.iter().filter_map(|id| self.entries.remove(id)));
        Ok(())
    }

    /// Puts an adapter into the room that was reserved for it. Fails if it takes more than that and the rest does not fit.
    pub fn fill(
        &mut self,
        id: AdapterId,
        adapter: Arc<A>,
        bytes: u64,
        evicted: &mut Vec<PoolEntry<A>>,
    ) -> Result<(), PoolError> {
        self.sizes.insert(id, bytes);
        if self.is_resident(&id) {
            return Ok(());
        }
        let reserved = self.entries.get(&id).map_or(0, |entry| entry.bytes);
        let room = match bytes.checked_sub(reserved) {
            None | Some(0) => Ok(()),
            Some(more) => self.make_room(id, more, &[id], evicted),
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.abandoned = false;
            entry.outgrown = room.is_err();
            if room.is_ok() {
                entry.adapter = Some(adapter);
                entry.bytes = bytes;
            }
        }
        room
    }

    fn acquire(&mut self, id: AdapterId, client: ClientId) -> Option<Arc<A>> {
        let entry = self.entries.get(&id).filter(|entry| !entry.removed)?;
        let adapter = Arc::clone(entry.adapter.as_ref()?);
        self.pin(id, client);
        Some(adapter)
    }

    /// Adds a holder.
    pub fn pin(&mut self, id: AdapterId, client: ClientId) {
        self.clock += 1;
        self.shares.pin(client, id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.leases += 1;
            entry.last_used = self.clock;
        }
    }

    /// Removes a holder. Returns the entry if this frees it, to be dropped after the lock.
    pub fn unpin(&mut self, id: AdapterId, client: ClientId) -> Option<PoolEntry<A>> {
        self.clock += 1;
        self.shares.unpin(client, id);
        let entry = self.entries.get_mut(&id)?;
        entry.leases -= 1;
        entry.last_used = self.clock;
        self.free_if_unused(id)
    }

    fn free_if_unused(&mut self, id: AdapterId) -> Option<PoolEntry<A>> {
        let entry = self.entries.get(&id)?;
        let unusable = entry.removed || entry.adapter.is_none();
        if unusable && entry.leases == 0 {
            self.entries.remove(&id)
        } else {
            None
        }
    }
}

/// Keeps one adapter in memory until it is dropped.
pub struct Lease<A> {
    pool: AdapterPool<A>,
    id: AdapterId,
    client: ClientId,
    adapter: Arc<A>,
}

impl<A> Lease<A> {
    /// The adapter's content hash.
    pub fn id(&self) -> AdapterId {
        self.id
    }

    /// The adapter itself.
    pub fn adapter(&self) -> &Arc<A> {
        &self.adapter
    }
}

impl<A> Drop for Lease<A> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let freed = state.unpin(self.id, self.client);
        let has_waiters = state.wait_queue.len() > 0;
        drop(state);
        if has_waiters {
            self.pool.notify();
        }
        drop(freed);
    }
}

impl<A> fmt::Debug for Lease<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> AdapterId {
        AdapterId([n; 32])
    }

    fn resident(pool: &AdapterPool<u8>) -> Vec<u8> {
        pool.list().iter().map(|info| info.id.0[0]).collect()
    }

    #[test]
    fn least_recently_used_is_evicted_first_and_leased_never() {
        let pool = AdapterPool::new(30, 1, Duration::MAX);
        for n in 1..=3 {
            pool.insert(id(n), Arc::new(n), 10).unwrap();
        }
        let first = pool.lease(id(1), None).unwrap();
        drop(pool.lease(id(2), None).unwrap());
        pool.insert(id(4), Arc::new(4), 10).unwrap();
        assert_eq!(resident(&pool), [1, 2, 4]);
        pool.insert(id(5), Arc::new(5), 20).unwrap();
        assert_eq!(resident(&pool), [1, 5]);
        let full = pool.insert(id(6), Arc::new(6), 21).unwrap_err();
        assert!(matches!(full, PoolError::Full { leased: 10, .. }), "{full}");
        assert_eq!(resident(&pool), [1, 5], "a failed insert evicts nothing");
        drop(first);
        pool.insert(id(6), Arc::new(6), 30).unwrap();
        assert_eq!(resident(&pool), [6]);
        let large = pool.insert(id(7), Arc::new(7), 31).unwrap_err();
        assert!(matches!(large, PoolError::TooLarge { .. }), "{large}");
    }

    #[test]
    fn removed_adapter_stays_until_its_last_lease_and_can_be_inserted_again() {
        let pool = AdapterPool::new(10, 1, Duration::MAX);
        let adapter = Arc::new(1u8);
        let weak = Arc::downgrade(&adapter);
        let lease = pool.insert(id(1), adapter, 10).unwrap();
        pool.remove(id(1)).unwrap();
        assert_eq!(pool.remove(id(1)), Err(PoolError::Unknown(id(1))));
        assert!(pool.lease(id(1), None).is_none());
        assert!(
            pool.insert(id(2), Arc::new(2), 10).is_err(),
            "its bytes still count"
        );
        drop(pool.insert(id(1), Arc::new(9), 10).unwrap());
        assert_eq!(
            **pool.lease(id(1), None).unwrap().adapter(),
            1,
            "one content under one id"
        );
        pool.remove(id(1)).unwrap();
        drop(lease);
        assert!(weak.upgrade().is_none() && pool.list().is_empty());
    }

    #[test]
    fn size_near_u64_max_does_not_overflow() {
        let pool = AdapterPool::new(u64::MAX, 1, Duration::MAX);
        let held = pool.insert(id(1), Arc::new(1u8), u64::MAX).unwrap();
        assert!(pool.insert(id(2), Arc::new(2), u64::MAX).is_err());
        drop(held);
        pool.insert(id(2), Arc::new(2), u64::MAX).unwrap();
    }
}
