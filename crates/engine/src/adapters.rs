//! The adapters in memory, by content hash. Knows their sizes and who uses them, not what they hold.
//!
//! An adapter is its content hash: under one id there is one content, ever. A [`Lease`] keeps its adapter: eviction takes
//! only what nobody leases, removal hides an adapter at once but frees it with its last lease. How requests wait for what is
//! not here is in [`crate::claim`].

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base16ct::HexDisplay;

use crate::claim::Line;
use crate::error::{ParseAdapterIdError, PoolError};
use crate::stats::AdapterStats;

/// The sha256 of an adapter's content; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub [u8; 32]);

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&HexDisplay(&self.0), f)
    }
}

impl fmt::Debug for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdapterId({self})")
    }
}

impl FromStr for AdapterId {
    type Err = ParseAdapterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseAdapterIdError(text.chars().take(80).collect());
        let mut id = [0; 32];
        match base16ct::mixed::decode(text, &mut id) {
            Ok(decoded) if decoded.len() == 32 => Ok(AdapterId(id)),
            _ => Err(wrong()),
        }
    }
}

/// One adapter of the pool, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its content hash.
    pub id: AdapterId,
    /// The bytes it was inserted with.
    pub bytes: u64,
    /// Requests, and others, that hold it now.
    pub leases: usize,
    /// Not here yet: its bytes are promised, someone reads it.
    pub loading: bool,
    /// Removed: it takes no new leases and goes with its last one.
    pub removed: bool,
}

/// The pool; clones are the same pool.
pub(crate) struct AdapterPool<A>(Arc<Shared<A>>);

struct Shared<A> {
    shelf: Mutex<Shelf<A>>,
    /// Told when somebody who waits may go on.
    changed: Condvar,
}

pub(crate) struct Shelf<A> {
    pub entries: HashMap<AdapterId, Entry<A>>,
    limit: u64,
    /// Counts uses; the entry with the smallest `last_used` is the least recently used one.
    clock: u64,
    /// What adapters took when they were here last: better than what their files say.
    pub sizes: HashMap<AdapterId, u64>,
    pub line: Line,
    /// The most that are read at once, and how many are.
    pub most_loads: usize,
    pub loads: usize,
    /// Nobody waits any more.
    pub closed: bool,
    pub stats: AdapterStats,
}

pub(crate) struct Entry<A> {
    /// None: it is being read, or will be.
    pub adapter: Option<Arc<A>>,
    pub bytes: u64,
    pub leases: usize,
    pub last_used: u64,
    pub removed: bool,
    /// Who was to read it gave up; the next who wants it does.
    pub orphan: bool,
}

impl<A> AdapterPool<A> {
    /// A pool of `limit` bytes that reads `most_loads` adapters at once at most; who has waited for `max_wait` is passed by
    /// nobody.
    pub fn new(limit: u64, most_loads: usize, max_wait: Duration) -> Self {
        let shelf = Shelf {
            entries: HashMap::new(),
            limit,
            clock: 0,
            sizes: HashMap::new(),
            line: Line::new(max_wait),
            most_loads,
            loads: 0,
            closed: false,
            stats: AdapterStats::default(),
        };
        AdapterPool(Arc::new(Shared {
            shelf: Mutex::new(shelf),
            changed: Condvar::new(),
        }))
    }

    /// Makes an adapter resident, evicting the least recently used ones that nobody leases if it needs their room.
    /// One that is resident already stays as it is; one that was removed and is still leased is back.
    pub fn insert(
        &self,
        id: AdapterId,
        adapter: Arc<A>,
        bytes: u64,
    ) -> Result<Lease<A>, PoolError> {
        // Dropped after the lock is: freeing an adapter may take a while.
        let mut evicted = Vec::new();
        let mut shelf = self.lock();
        match shelf.entries.get_mut(&id) {
            Some(entry) if entry.adapter.is_some() => entry.removed = false,
            Some(_) => shelf.fill(id, adapter, bytes, &mut evicted)?,
            None => {
                shelf.make_room(id, bytes, &[], &mut evicted)?;
                shelf.entries.insert(id, Entry::promised(bytes));
                shelf.fill(id, adapter, bytes, &mut evicted)?;
            }
        }
        let adapter = shelf.take(id).ok_or(PoolError::Unknown(id))?;
        drop(shelf);
        self.notify();
        Ok(self.leased(id, adapter))
    }

    /// Holds an adapter.
    pub fn lease(&self, id: AdapterId) -> Option<Lease<A>> {
        let adapter = self.lock().take(id)?;
        Some(self.leased(id, adapter))
    }

    /// Hides an adapter from new leases, and frees it now or with its last lease.
    pub fn remove(&self, id: AdapterId) -> Result<(), PoolError> {
        let mut shelf = self.lock();
        match shelf.entries.get_mut(&id) {
            Some(entry) if !entry.removed => entry.removed = true,
            _ => return Err(PoolError::Unknown(id)),
        }
        let freed = shelf.free_if_done(id);
        drop(shelf);
        drop(freed);
        Ok(())
    }

    /// All adapters in memory, by id.
    pub fn list(&self) -> Vec<AdapterInfo> {
        let shelf = self.lock();
        let info = |(id, entry): (&AdapterId, &Entry<A>)| AdapterInfo {
            id: *id,
            bytes: entry.bytes,
            leases: entry.leases,
            loading: entry.adapter.is_none(),
            removed: entry.removed,
        };
        let mut list: Vec<_> = shelf.entries.iter().map(info).collect();
        list.sort_unstable_by_key(|info| info.id);
        list
    }

    /// What is here, and what was done.
    pub fn stats(&self) -> AdapterStats {
        let shelf = self.lock();
        let here = |entry: &&Entry<A>| entry.adapter.is_some();
        AdapterStats {
            resident: shelf.entries.values().filter(here).count(),
            loading: shelf.entries.len() - shelf.entries.values().filter(here).count(),
            bytes: shelf.used(),
            limit: shelf.limit,
            waiting: shelf.line.len(),
            ..shelf.stats.clone()
        }
    }

    /// Adapters that requests wait for, being read or without room, by id.
    pub fn awaited(&self) -> Vec<AdapterId> {
        let shelf = self.lock();
        let loading = shelf.entries.iter().filter(|(_, e)| e.adapter.is_none());
        let mut ids: Vec<AdapterId> = loading.map(|(id, _)| *id).collect();
        let absent = |id: &AdapterId| !shelf.entries.contains_key(id);
        ids.extend(shelf.line.wanted().filter(absent));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Whoever waits is told that nothing will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.notify();
    }

    pub fn leased(&self, id: AdapterId, adapter: Arc<A>) -> Lease<A> {
        Lease {
            pool: self.clone(),
            id,
            adapter,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Shelf<A>> {
        let shelf = self.0.shelf.lock();
        shelf.unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody who waits may go on.
    pub fn notify(&self) {
        self.0.changed.notify_all();
    }

    /// Lets go of the shelf until something changed, for `time` at most.
    pub fn wait<'a>(
        &self,
        shelf: MutexGuard<'a, Shelf<A>>,
        time: Duration,
    ) -> MutexGuard<'a, Shelf<A>> {
        let woken = self.0.changed.wait_timeout(shelf, time);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<A> Clone for AdapterPool<A> {
    fn clone(&self) -> Self {
        AdapterPool(Arc::clone(&self.0))
    }
}

impl<A> Entry<A> {
    /// Room for an adapter that is to come.
    pub fn promised(bytes: u64) -> Self {
        Entry {
            adapter: None,
            bytes,
            leases: 0,
            last_used: 0,
            removed: false,
            orphan: false,
        }
    }
}

impl<A> Shelf<A> {
    fn used(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Evicts until `bytes` fit beside what stays, or leaves everything as it was. What is in `keep` stays.
    pub fn make_room(
        &mut self,
        id: AdapterId,
        bytes: u64,
        keep: &[AdapterId],
        evicted: &mut Vec<Entry<A>>,
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
        let mut leaving = Vec::new();
        for (idle_id, entry) in idle {
            if used <= limit - bytes {
                break;
            }
            used -= entry.bytes;
            leaving.push(*idle_id);
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
        self.stats.evictions += leaving.len() as u64;
        evicted.extend(leaving.iter().filter_map(|id| self.entries.remove(id)));
        Ok(())
    }

    /// Puts an adapter where it was promised room. If it takes more than that and there is no more, it stays away.
    pub fn fill(
        &mut self,
        id: AdapterId,
        adapter: Arc<A>,
        bytes: u64,
        evicted: &mut Vec<Entry<A>>,
    ) -> Result<(), PoolError> {
        self.sizes.insert(id, bytes);
        if self.entries.get(&id).is_some_and(|e| e.adapter.is_some()) {
            return Ok(());
        }
        let promised = self.entries.get(&id).map_or(0, |entry| entry.bytes);
        if bytes > promised {
            self.make_room(id, bytes - promised, &[id], evicted)?;
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.adapter = Some(adapter);
            entry.bytes = bytes;
            entry.orphan = false;
        }
        Ok(())
    }

    fn take(&mut self, id: AdapterId) -> Option<Arc<A>> {
        let entry = self.entries.get(&id).filter(|entry| !entry.removed)?;
        let adapter = Arc::clone(entry.adapter.as_ref()?);
        self.pin(id);
        Some(adapter)
    }

    /// One more that needs it.
    pub fn pin(&mut self, id: AdapterId) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.leases += 1;
            entry.last_used = self.clock;
        }
    }

    /// One less that needs it.
    pub fn give_back(&mut self, id: AdapterId) -> Option<Entry<A>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&id)?;
        entry.leases -= 1;
        entry.last_used = self.clock;
        self.free_if_done(id)
    }

    fn free_if_done(&mut self, id: AdapterId) -> Option<Entry<A>> {
        let entry = self.entries.get(&id)?;
        let useless = entry.removed || entry.adapter.is_none();
        if useless && entry.leases == 0 {
            self.entries.remove(&id)
        } else {
            None
        }
    }
}

/// A hold on one adapter. While it lives, the adapter stays in memory; dropped, it is given back.
pub struct Lease<A> {
    pool: AdapterPool<A>,
    id: AdapterId,
    adapter: Arc<A>,
}

impl<A> Lease<A> {
    /// Which adapter.
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
        let mut shelf = self.pool.lock();
        let freed = shelf.give_back(self.id);
        let awaited = shelf.line.len() > 0;
        drop(shelf);
        if awaited {
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
    fn an_id_is_written_and_read_as_64_hex_digits() {
        let mut bytes = [0xa5; 32];
        bytes[0] = 0x01;
        let text = AdapterId(bytes).to_string();
        assert_eq!(
            (text.len(), &text[..6], text.parse()),
            (64, "01a5a5", Ok(AdapterId(bytes)))
        );
        assert_eq!(text.to_uppercase().parse(), Ok(AdapterId(bytes)));
        for wrong in ["", "01", &"g".repeat(64), &"é".repeat(32), &"1".repeat(65)] {
            assert!(wrong.parse::<AdapterId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_a_lease_is_never_passed() {
        let pool = AdapterPool::new(30, 1, Duration::MAX);
        for n in 1..=3 {
            pool.insert(id(n), Arc::new(n), 10).unwrap();
        }
        let first = pool.lease(id(1)).unwrap();
        drop(pool.lease(id(2)).unwrap());
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
    fn a_removed_adapter_lives_until_its_last_lease_and_may_come_back() {
        let pool = AdapterPool::new(10, 1, Duration::MAX);
        let adapter = Arc::new(1u8);
        let weak = Arc::downgrade(&adapter);
        let lease = pool.insert(id(1), adapter, 10).unwrap();
        pool.remove(id(1)).unwrap();
        assert_eq!(pool.remove(id(1)), Err(PoolError::Unknown(id(1))));
        assert!(pool.lease(id(1)).is_none());
        assert!(
            pool.insert(id(2), Arc::new(2), 10).is_err(),
            "its bytes still count"
        );
        drop(pool.insert(id(1), Arc::new(9), 10).unwrap());
        assert_eq!(
            **pool.lease(id(1)).unwrap().adapter(),
            1,
            "one content under one id"
        );
        pool.remove(id(1)).unwrap();
        drop(lease);
        assert!(weak.upgrade().is_none() && pool.list().is_empty());
    }

    #[test]
    fn a_size_near_the_end_of_the_numbers_does_not_overflow() {
        let pool = AdapterPool::new(u64::MAX, 1, Duration::MAX);
        let held = pool.insert(id(1), Arc::new(1u8), u64::MAX).unwrap();
        assert!(pool.insert(id(2), Arc::new(2), u64::MAX).is_err());
        drop(held);
        pool.insert(id(2), Arc::new(2), u64::MAX).unwrap();
    }
}
