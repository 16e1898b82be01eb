//! Pauses within long operations, so that background work lets other work compute in between.
//!
//! A thread that sets a pause runs its regions of tasks in parts and calls the pause between two parts. Tasks do not depend on each
//! other, so the results are the same bits.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The time between two pauses, as far as tasks end by then.
pub(crate) const PAUSE_EVERY: Duration = Duration::from_millis(10);

struct Pause {
    call: Rc<dyn Fn() -> bool>,
    last: Instant,
}

/// What abandoned work is unwound with.
struct Abandoned;

thread_local! {
    static PAUSE: RefCell<Option<Pause>> = const { RefCell::new(None) };
}

/// Runs `work` with `pause`, as [`crate::Device::pausing`] describes.
pub(crate) fn pausing<R>(pause: Rc<dyn Fn() -> bool>, work: impl FnOnce() -> R) -> Option<R> {
    /// Sets the pause that was there before.
    struct Restore(Option<Pause>);
    impl Drop for Restore {
        fn drop(&mut self) {
            PAUSE.set(self.0.take());
        }
    }
    let own = Pause {
        call: pause,
        last: Instant::now(),
    };
    let _restore = Restore(PAUSE.replace(Some(own)));
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Some(result),
        Err(panic) if (*panic).is::<Abandoned>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

/// Whether this thread's work pauses.
pub(crate) fn is_set() -> bool {
    PAUSE.with_borrow(Option::is_some)
}

/// Calls this thread's pause if the last one was [`PAUSE_EVERY`] ago. Unwinds if the work is abandoned.
pub(crate) fn if_due() {
    let due = PAUSE.with_borrow(|pause| {
        let pause = pause.as_ref()?;
        (pause.last.elapsed() >= PAUSE_EVERY).then(|| Rc::clone(&pause.call))
    });
    let Some(call) = due else {
        return;
    };
    if !call() {
        // Not a panic: there is no message, and `pausing` catches it.
        let abandoned: Box<dyn Any + Send> = Box::new(Abandoned);
        resume_unwind(abandoned);
    }
    PAUSE.with_borrow_mut(|pause| {
        if let Some(pause) = pause {
            pause.last = Instant::now();
        }
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cpu::pool::Pool;

    /// Runs `tasks` tasks of 2 ms on `pool`; how often each ran.
    fn run(pool: &Pool, tasks: usize) -> Vec<usize> {
        let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|i| {
            std::thread::sleep(Duration::from_millis(2));
            ran[i].fetch_add(1, Ordering::Relaxed);
        });
        ran.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn long_region_pauses_and_every_task_runs_once() {
        for threads in [1, 3] {
            let (pool, pauses) = (Pool::new(threads), Rc::new(Cell::new(0)));
            let count = Rc::clone(&pauses);
            let pause = Rc::new(move || {
                count.set(count.get() + 1);
                true
            });
            let ran = pausing(pause, || run(&pool, 60));
            assert_eq!(ran, Some(vec![1; 60]));
            assert!(pauses.get() >= 2, "{} pauses", pauses.get());
            // Without the pause as before.
            let before = pauses.get();
            assert_eq!(run(&pool, 60), [1; 60]);
            assert_eq!(pauses.get(), before);
        }
    }

    #[test]
    fn work_that_a_pause_stops_is_abandoned_and_the_pool_stays_usable() {
        let pool = Pool::new(2);
        let ran = AtomicUsize::new(0);
        let stopped = pausing(Rc::new(|| false), || {
            pool.run(1000, &|_| {
                std::thread::sleep(Duration::from_millis(2));
                ran.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(stopped, None);
        let ran = ran.into_inner();
        assert!((1..500).contains(&ran), "{ran} tasks ran");
        assert!(!is_set());
        assert_eq!(run(&pool, 5), [1; 5]);
    }

    #[test]
    fn panic_of_the_work_is_raised() {
        let raised = catch_unwind(|| pausing(Rc::new(|| true), || panic!("as it is")));
        let message = raised.unwrap_err();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"as it is"));
    }
}
