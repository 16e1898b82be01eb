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
pub(crate) const PAUSE_EVERY: Duration = Duration::from_millis(20);

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
