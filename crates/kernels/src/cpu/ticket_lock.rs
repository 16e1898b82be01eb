//! A ticket lock: threads get it in the order in which they requested it.
//!
//! A plain lock usually goes to the thread that has just released it, because that thread is awake. Of two threads that drive
//! one pool, the one with long regions would keep the other waiting.

use crate::cpu::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;

pub(crate) struct TicketLock {
    tickets: Mutex<Tickets>,
    released: Condvar,
}

#[derive(Default)]
struct Tickets {
    /// The next ticket to hand out.
    next: u64,
    /// The ticket that holds the lock.
    serving: u64,
}

/// The right to run a region. Dropping it hands the lock to the next ticket.
pub(crate) struct TicketGuard<'t>(&'t TicketLock);

impl TicketLock {
    pub(crate) fn new() -> TicketLock {
        TicketLock {
            tickets: Mutex::new(Tickets::default()),
            released: Condvar::new(),
        }
    }

    /// Blocks until all earlier requests have been served.
    pub(crate) fn acquire(&self) -> TicketGuard<'_> {
        let mut tickets = self.tickets();
        let mine = tickets.next;
        tickets.next += 1;
        while tickets.serving != mine {
            let woken = self.released.wait(tickets);
            tickets = woken.unwrap_or_else(PoisonError::into_inner);
        }
        TicketGuard(self)
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TicketGuard<'_> {
    fn drop(&mut self) {
        let mut tickets = self.0.tickets();
        tickets.serving += 1;
        let waiting = tickets.serving != tickets.next;
        drop(tickets);
        // Notifying costs a system call even if no thread waits, and a step of the engine has hundreds of regions.
        if waiting {
            self.0.released.notify_all();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_holder_queues_behind_waiting_threads() {
        let (lock, order) = (TicketLock::new(), Mutex::new(Vec::new()));
        let wait_for_tickets = |count: u64| {
            while lock.tickets().next < count {
                std::thread::yield_now();
            }
        };
        let record = |name: char| order.lock().unwrap().push(name);
        std::thread::scope(|scope| {
            let first = lock.acquire();
            for (name, ticket) in [('a', 2), ('b', 3)] {
                let (lock, record) = (&lock, &record);
                scope.spawn(move || {
                    let _guard = lock.acquire();
                    record(name);
                });
                wait_for_tickets(ticket);
            }
            // Requests again at once, awake, while the others have to be woken.
            drop(first);
            let _again = lock.acquire();
            record('c');
        });
        assert_eq!(order.into_inner().unwrap(), ['a', 'b', 'c']);
    }
}

/// Run with `RUSTFLAGS="--cfg loom" cargo test -p kernels --lib loom_models`.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::cpu::sync::{Arc, UnsafeCell, thread};

    struct Counter {
        lock: TicketLock,
        value: UnsafeCell<usize>,
    }
    // SAFETY: loom checks the accesses.
    unsafe impl Sync for Counter {}
    // SAFETY: as above.
    unsafe impl Send for Counter {}

    impl Counter {
        fn add(&self) {
            let _guard = self.lock.acquire();
            // SAFETY: loom checks the access.
            self.value.with_mut(|value| unsafe { *value += 1 });
        }
    }

    #[test]
    fn one_thread_at_a_time_has_the_lock_and_every_waiter_gets_it() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let counter = Arc::new(Counter {
                lock: TicketLock::new(),
                value: UnsafeCell::new(0),
            });
            let add = |counter: &Arc<Counter>| {
                let counter = counter.clone();
                thread::spawn(move || counter.add())
            };
            let others = [add(&counter), add(&counter)];
            counter.add();
            for other in others {
                other.join().unwrap();
            }
            // SAFETY: loom checks the access.
            let value = counter.value.with(|value| unsafe { *value });
            assert_eq!(value, 3);
        });
    }
}
