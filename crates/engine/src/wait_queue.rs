//! Requests that wait for room in the adapter pool, in order of arrival. Knows which adapters they want, not the pool.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::adapter_id::AdapterId;

/// A request that needs more than half of the memory may be passed for this many times `max_wait`.
const LARGE_WAITS_LONGER: u32 = 4;

/// Requests that wait for room, by ticket number.
pub(crate) struct WaitQueue {
    waiters: BTreeMap<u64, Waiter>,
    next_ticket: u64,
    max_wait: Duration,
}

struct Waiter {
    since: Instant,
    /// It keeps nobody from room: its client holds more than its part.
    above_share: bool,
    /// It needs more than half of the memory, so others may pass it for longer.
    large: bool,
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
        let waiter = Waiter {
            since,
            above_share: false,
            large: false,
            wanted,
        };
        self.waiters.insert(ticket, waiter);
        ticket
    }

    pub fn remove(&mut self, ticket: u64) {
        self.waiters.remove(&ticket);
    }

    /// Records whether a waiter's client would hold more than its part, and whether the waiter needs more than half of the memory.
    pub fn set_need(&mut self, ticket: Option<u64>, above_share: bool, large: bool) {
        if let Some(waiter) = ticket.and_then(|ticket| self.waiters.get_mut(&ticket)) {
            waiter.above_share = above_share;
            waiter.large = large;
        }
    }

    /// The first that others may not pass.
    fn first(&self) -> Option<(&u64, &Waiter)> {
        let passable = |waiter: &Waiter| {
            let longest = self.max_wait.saturating_mul(LARGE_WAITS_LONGER);
            waiter.above_share || (waiter.large && waiter.since.elapsed() < longest)
        };
        self.waiters.iter().find(|(_, waiter)| !passable(waiter))
    }

    /// Whether another waiter is first. A request that has not waited yet has no ticket.
    pub fn another_is_first(&self, ticket: Option<u64>) -> bool {
        self.first()
            .is_some_and(|(first, _)| Some(*first) != ticket)
    }

    /// Whether another waiter is first and has waited for `max_wait`.
    pub fn another_is_overdue(&self, ticket: Option<u64>) -> bool {
        self.first().is_some_and(|(first, waiter)| {
            Some(*first) != ticket && waiter.since.elapsed() >= self.max_wait
        })
    }
}
