//! The adapters in memory, by content hash. Knows their sizes and who uses them, not what they hold.
//!
//! An adapter is its content hash: under one id there is one content, ever. A [`Lease`] keeps its adapter: eviction takes
//! only what nobody leases, removal hides an adapter at once but frees it with its last lease.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{ParseAdapterIdError, PoolError};

/// The sha256 of an adapter's content; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub [u8; 32]);

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let digit = |byte: u8| (byte as char).to_digit(16).ok_or_else(wrong);
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(AdapterId(id))
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
    /// Removed: it takes no new leases and goes with its last one.
    pub removed: bool,
}

/// The pool; clones are the same pool.
pub(crate) struct AdapterPool<A> {
    shelf: Arc<Mutex<Shelf<A>>>,
}

struct Shelf<A> {
    entries: HashMap<AdapterId, Entry<A>>,
    limit: u64,
    /// Counts uses; the entry with the smallest `last_used` is the least recently used one.
    clock: u64,
}

struct Entry<A> {
    adapter: Arc<A>,
    bytes: u64,
    leases: usize,
    last_used: u64,
    removed: bool,
}

impl<A> AdapterPool<A> {
    pub fn new(limit: u64) -> Self {
        let shelf = Shelf {
            entries: HashMap::new(),
            limit,
            clock: 0,
        };
        AdapterPool {
            shelf: Arc::new(Mutex::new(shelf)),
        }
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
        if let Some(entry) = shelf.entries.get_mut(&id) {
            entry.removed = false;
        } else {
            shelf.make_room(id, bytes, &mut evicted)?;
            let entry = Entry {
                adapter,
                bytes,
                leases: 0,
                last_used: 0,
                removed: false,
            };
            shelf.entries.insert(id, entry);
        }
        let adapter = shelf.take(id).ok_or(PoolError::Unknown(id))?;
        drop(shelf);
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
            removed: entry.removed,
        };
        let mut list: Vec<_> = shelf.entries.iter().map(info).collect();
        list.sort_unstable_by_key(|info| info.id);
        list
    }

    /// How many adapters, their bytes, and the limit.
    pub fn residency(&self) -> (usize, u64, u64) {
        let shelf = self.lock();
        (shelf.entries.len(), shelf.used(), shelf.limit)
    }

    fn leased(&self, id: AdapterId, adapter: Arc<A>) -> Lease<A> {
        Lease {
            pool: self.clone(),
            id,
            adapter,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shelf<A>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> Clone for AdapterPool<A> {
    fn clone(&self) -> Self {
        AdapterPool {
            shelf: Arc::clone(&self.shelf),
        }
    }
}

impl<A> Shelf<A> {
    fn used(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    /// Evicts until `bytes` fit beside what stays, or leaves everything as it was.
    fn make_room(
        &mut self,
        id: AdapterId,
        bytes: u64,
        evicted: &mut Vec<Entry<A>>,
    ) -> Result<(), PoolError> {
        let limit = self.limit;
        if bytes > limit {
            return Err(PoolError::TooLarge { id, bytes, limit });
        }
        let mut idle: Vec<_> = self.entries.iter().filter(|(_, e)| e.leases == 0).collect();
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
        evicted.extend(leaving.iter().filter_map(|id| self.entries.remove(id)));
        Ok(())
    }

    fn take(&mut self, id: AdapterId) -> Option<Arc<A>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&id).filter(|entry| !entry.removed)?;
        entry.leases += 1;
        entry.last_used = self.clock;
        Some(Arc::clone(&entry.adapter))
    }

    fn give_back(&mut self, id: AdapterId) -> Option<Entry<A>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&id)?;
        entry.leases -= 1;
        entry.last_used = self.clock;
        self.free_if_done(id)
    }

    fn free_if_done(&mut self, id: AdapterId) -> Option<Entry<A>> {
        let entry = self.entries.get(&id)?;
        if entry.removed && entry.leases == 0 {
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
        let freed = self.pool.lock().give_back(self.id);
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
        let pool = AdapterPool::new(30);
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
        let pool = AdapterPool::new(10);
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
        let pool = AdapterPool::new(u64::MAX);
        let held = pool.insert(id(1), Arc::new(1u8), u64::MAX).unwrap();
        assert!(pool.insert(id(2), Arc::new(2), u64::MAX).is_err());
        drop(held);
        pool.insert(id(2), Arc::new(2), u64::MAX).unwrap();
    }
}
