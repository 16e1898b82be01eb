//! Who may run a region, one after the other in the order of asking.
//!
//! A plain lock goes to whoever is awake, which is the thread that has just given it back: of two that drive one pool, the
//! one with the long regions would keep the other waiting for as long as it likes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(crate) struct Turns {
    tickets: Mutex<Tickets>,
    called: Condvar,
}

#[derive(Default)]
struct Tickets {
    /// The next to be given out.
    next: u64,
    /// Whose turn it is.
    now: u64,
}

/// A turn. Dropped, it is the next one's.
pub(crate) struct Turn<'t>(&'t Turns);

impl Turns {
    /// Waits until everybody who asked before has had a turn.
    pub fn take(&self) -> Turn<'_> {
        let mut tickets = self.lock();
        let mine = tickets.next;
        tickets.next += 1;
        while tickets.now != mine {
            let woken = self.called.wait(tickets);
            tickets = woken.unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tickets = self.0.lock();
        tickets.now += 1;
        let waiting = tickets.now != tickets.next;
        drop(tickets);
        // A call that nobody hears still costs a system call, and a step of the engine has hundreds of regions.
        if waiting {
            self.0.called.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_the_last_turn_comes_after_those_who_wait() {
        let (turns, order) = (Turns::default(), Mutex::new(Vec::new()));
        let asked = |count: u64| {
            while turns.lock().next < count {
                std::thread::yield_now();
            }
        };
        let had = |who: char| order.lock().unwrap().push(who);
        std::thread::scope(|scope| {
            let first = turns.take();
            for (who, ticket) in [('a', 2), ('b', 3)] {
                let (turns, had) = (&turns, &had);
                scope.spawn(move || {
                    let _turn = turns.take();
                    had(who);
                });
                asked(ticket);
            }
            // Asks again at once, awake, while the others have to be woken.
            drop(first);
            let _again = turns.take();
            had('c');
        });
        assert_eq!(order.into_inner().unwrap(), ['a', 'b', 'c']);
    }
}
