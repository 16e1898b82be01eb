//! Admission to the engine: how many requests it takes at once, running and waiting together, and how many of them one client
//! may have.
//!
//! Clients share the permits by a dynamic threshold, after Choudhury and Hahne, "Dynamic Queue Length Thresholds for
//! Shared-Memory Packet Switches" (IEEE/ACM Transactions on Networking 6, 1998): a client may take another permit only while it
//! holds fewer than a multiple of the free ones. An eighth is reserved for clients that hold none, so that many newcomers find
//! room at once. Requests without a client have no such limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::request::Client;

/// How many permits a client of weight 1 may hold for each free one.
const HELD_PER_FREE: f64 = 2.0;
/// One of this many permits is for clients that hold none.
const RESERVED_ONE_IN: usize = 8;

/// All permits of an engine.
pub(crate) struct Permits {
    limit: usize,
    /// Those for clients that hold none.
    reserved: usize,
    held_per_free: f64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    /// By client; clients that hold none are not in it.
    clients: HashMap<u64, usize>,
}

/// Why no permit was given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PermitRefusal {
    /// There are not so many, or one client alone may not hold so many.
    TooMany {
        /// The most at once.
        most: usize,
    },
    /// All are in use.
    Full,
    /// The client would hold more than its part.
    AboveShare {
        /// How many it holds.
        held: usize,
    },
}

/// The right to one request in the engine, acquired before the request itself is ready. It counts as a waiting request;
/// dropped, it is free again.
#[must_use = "dropping the permit releases it"]
pub struct Permit {
    permits: Arc<Permits>,
    client: Option<u64>,
    acquired: Instant,
}

impl Permits {
    /// Permits for `max_batch` running and `max_queue` waiting requests. One client alone may always fill the batch.
    pub fn new(max_batch: usize, max_queue: usize) -> Self {
        let limit = max_batch.saturating_add(max_queue);
        let reserved = (limit / RESERVED_ONE_IN).min(max_queue / 2);
        Permits {
            limit,
            reserved,
            // Without a queue this is infinite: then one client may hold all permits.
            held_per_free: HELD_PER_FREE.max(max_batch as f64 / (max_queue - reserved) as f64),
            held: Mutex::default(),
        }
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.lock().all
    }

    /// Acquires `count` permits, or none.
    pub fn acquire(
        self: &Arc<Self>,
        client: Option<Client>,
        count: usize,
    ) -> Result<Vec<Permit>, PermitRefusal> {
        let mut held = self.lock();
        let free = self.limit.saturating_sub(held.all);
        let own = client.and_then(|client| held.clients.get(&client.id).copied());
        let own = own.unwrap_or(0);
        self.check(client, count, own, free).map_err(|refusal| {
            // Waiting does not help a request that an idle engine refuses.
            let fits = |count: &usize| self.check(client, *count, 0, self.limit).is_ok();
            match fits(&count) {
                true => refusal,
                false => PermitRefusal::TooMany {
                    most: (0..count).rev().find(fits).unwrap_or(0),
                },
            }
        })?;
        if let Some(client) = client
            && count > 0
        {
            *held.clients.entry(client.id).or_default() += count;
        }
        held.all += count;
        drop(held);
        let acquired = Instant::now();
        let permit = || Permit {
            permits: Arc::clone(self),
            client: client.map(|client| client.id),
            acquired,
        };
        Ok(std::iter::repeat_with(permit).take(count).collect())
    }

    /// Checks whether a client that holds `own` permits may take `count` of the `free` ones.
    fn check(
        &self,
        client: Option<Client>,
        count: usize,
        own: usize,
        free: usize,
    ) -> Result<(), PermitRefusal> {
        if free < count {
            return Err(PermitRefusal::Full);
        }
        let Some(client) = client else {
            return Ok(());
        };
        // The last of them has the strictest limit.
        let before_last = own + count.saturating_sub(1);
        let free_before_last = free - count.saturating_sub(1);
        let most = self.held_per_free
            * f64::from(client.weight.get())
            * free_before_last.saturating_sub(self.reserved) as f64;
        if before_last > 0 && before_last as f64 >= most {
            return Err(PermitRefusal::AboveShare { held: own });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// When it was acquired. A request's times and its deadline count from here.
    #[must_use]
    pub fn acquired(&self) -> Instant {
        self.acquired
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.permits.lock();
        held.all = held.all.saturating_sub(1);
        if let Some(client) = self.client
            && let Some(own) = held.clients.get_mut(&client)
        {
            *own -= 1;
            if *own == 0 {
                held.clients.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn client(id: u64, weight: u32) -> Option<Client> {
        let weight = NonZeroU32::new(weight).unwrap();
        Some(Client { id, weight })
    }

    /// As many permits as the client gets one by one.
    fn take_all(permits: &Arc<Permits>, client: Option<Client>) -> Vec<Permit> {
        let one = || {
            permits
                .acquire(client, 1)
                .ok()
                .and_then(|mut one| one.pop())
        };
        std::iter::from_fn(one).collect()
    }

    #[test]
    fn client_alone_gets_two_thirds_and_the_next_one_finds_room() {
        let permits = Arc::new(Permits::new(32, 256));
        let hostile = take_all(&permits, client(1, 1));
        // Two thirds of the 252 that are not reserved.
        assert_eq!(hostile.len(), 168);
        assert_eq!(
            permits.acquire(client(1, 1), 1).err(),
            Some(PermitRefusal::AboveShare { held: 168 })
        );
        let other = take_all(&permits, client(2, 1));
        assert_eq!(other.len(), 56);
        drop(hostile);
        assert_eq!(permits.in_use(), 56);
        let more = take_all(&permits, client(2, 1));
        assert_eq!(other.len() + more.len(), 168);
    }

    #[test]
    fn each_of_many_newcomers_gets_a_permit_next_to_greedy_clients() {
        let permits = Arc::new(Permits::new(32, 256));
        let greedy: Vec<_> = (0..6).map(|id| take_all(&permits, client(id, 1))).collect();
        assert!(greedy.iter().all(|held| !held.is_empty()));
        let newcomers: Vec<_> = (10..40)
            .map(|id| permits.acquire(client(id, 1), 1).map(|one| one.len()))
            .collect();
        assert!(newcomers.iter().all(|one| *one == Ok(1)), "{newcomers:?}");
        drop(greedy);
        assert_eq!(permits.in_use(), 0);
    }

    #[test]
    fn larger_weight_holds_more() {
        let permits = Arc::new(Permits::new(32, 256));
        let heavy = take_all(&permits, client(2, 10));
        assert_eq!(heavy.len(), 252 * 20 / 21);
    }

    #[test]
    fn several_permits_are_given_together_or_not_at_all() {
        let permits = Arc::new(Permits::new(4, 8));
        let first = permits.acquire(client(1, 1), 7).unwrap();
        assert_eq!(first.len(), 7);
        let refused = permits.acquire(client(2, 1), 4).err();
        assert_eq!(refused, Some(PermitRefusal::AboveShare { held: 0 }));
        assert_eq!(permits.in_use(), 7);
        let second = permits.acquire(client(2, 1), 2).unwrap();
        assert_eq!(second.len(), 2);
        assert_eq!(permits.acquire(None, 4).err(), Some(PermitRefusal::Full));
    }

    #[test]
    fn permits_that_are_never_given_are_refused_for_good() {
        let permits = Arc::new(Permits::new(4, 8));
        let refused = permits.acquire(None, 13).err();
        assert_eq!(refused, Some(PermitRefusal::TooMany { most: 12 }));
        let refused = permits.acquire(client(1, 1), 12).err();
        assert_eq!(refused, Some(PermitRefusal::TooMany { most: 8 }));
        // An engine that is busy gives the same answer.
        let held = permits.acquire(client(1, 1), 8).unwrap();
        let refused = permits.acquire(client(1, 1), 9).err();
        assert_eq!(refused, Some(PermitRefusal::TooMany { most: 8 }));
        let refused = permits.acquire(client(1, 1), 8).err();
        assert_eq!(refused, Some(PermitRefusal::Full));
        drop(held);
        assert_eq!(permits.acquire(client(1, 1), 8).unwrap().len(), 8);
    }

    #[test]
    fn requests_without_a_client_may_use_all_permits() {
        let permits = Arc::new(Permits::new(2, 3));
        assert_eq!(take_all(&permits, None).len(), 5);
    }

    #[test]
    fn client_alone_can_fill_the_batch_whatever_the_queue() {
        for max_queue in [0, 1, 4, 8, 100] {
            let permits = Arc::new(Permits::new(8, max_queue));
            let held = take_all(&permits, client(1, 1)).len();
            assert!(held >= 8, "{held} of 8 with a queue of {max_queue}");
        }
    }
}
