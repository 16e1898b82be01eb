//! Admission to the engine: how many requests it takes at once, running and waiting together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The right to one request in the engine, acquired before the request itself is ready. It counts as a waiting request;
/// dropped, it is free again.
#[must_use = "dropping the permit releases it"]
pub struct Permit {
    in_flight: Arc<AtomicUsize>,
    acquired: Instant,
}

impl Permit {
    /// Acquires a permit if fewer than `limit` are in use.
    pub(crate) fn acquire(in_flight: &Arc<AtomicUsize>, limit: usize) -> Option<Permit> {
        in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then_some(n + 1)
            })
            .ok()?;
        Some(Permit {
            in_flight: Arc::clone(in_flight),
            acquired: Instant::now(),
        })
    }

    /// When it was acquired. A request's times and its deadline count from here.
    pub(crate) fn acquired(&self) -> Instant {
        self.acquired
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
