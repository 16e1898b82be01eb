//! Requests that wait for room in the adapter pool, in order of arrival. Knows which adapters they want, not the pool.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::adapter_id::AdapterId;

/// Requests that wait for room, by ticket number.
pub(crate) struct WaitQueue {
    waiters: BTreeMap<u64, Waiter>,
    next_ticket: u64,
    max_wait: Duration,
}

struct Waiter {
    since: Instant,
    wanted: Vec<AdapterId>,
}

impl WaitQueue {
    /// A queue in which a waiter is overdue after `max_wait`.
    pub fn new(max_wait: Duration) -> Self {
        WaitQueue {
            waiters: BTreeMap::new(),
            next_ticket: 0,
            max_wait,
        }
    }

    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// The adapters that all waiters want.
    pub fn wanted(&self) -> impl Iterator<Item = AdapterId> {
        self.waiters
            .values()
            .flat_map(|waiter| waiter.wanted.iter().copied())
    }

    /// Adds a waiter at the end; returns its ticket.
    pub fn push(&mut self, wanted: Vec<AdapterId>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let since = Instant::now();
        self.waiters.insert(ticket, Waiter { since, wanted });
        ticket
    }

    pub fn remove(&mut self, ticket: u64) {
        self.waiters.remove(&ticket);
    }

    /// Whether another waiter is first. A request that has not waited yet has no ticket.
    pub fn another_is_first(&self, ticket: Option<u64>) -> bool {
        let first = self.waiters.keys().next();
        first.is_some_and(|first| Some(*first) != ticket)
    }

    /// Whether another waiter is first and has waited for `max_wait`.
    pub fn another_is_overdue(&self, ticket: Option<u64>) -> bool {
        let first = self.waiters.iter().next();
        first.is_some_and(|(first, waiter)| {
            Some(*first) != ticket && waiter.since.elapsed() >= self.max_wait
        })
    }
}
