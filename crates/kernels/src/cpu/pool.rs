//! The thread pool: fork, claim tasks, join. Workers spin briefly after a region, then park.
//!
//! A layer of the decoder is a handful of short regions, so the time between two regions matters: a region starts
//! by bumping an epoch that spinning workers watch, and ends when every worker has checked out.

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use crate::cpu::ticket_lock::TicketLock;

/// Spins before a worker parks: about 50 microseconds, longer than the gap between two regions of a step.
const SPINS: u32 = 20_000;

type Task = *const (dyn Fn(usize) + Sync);

struct Region {
    task: Option<Task>,
    tasks: usize,
}

struct Shared {
    region: UnsafeCell<Region>,
    epoch: AtomicU64,
    next: AtomicUsize,
    working: AtomicUsize,
    asleep: Vec<AtomicBool>,
    panicked: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `region` is written only by the thread that holds `Pool::ticket_lock`, while no worker is between the epoch's bump and
// its check-out (`working` is 0); the release of the epoch publishes it.
unsafe impl Sync for Shared {}
// SAFETY: the raw task pointer is dereferenced only inside a region, which outlives neither the task nor the caller.
unsafe impl Send for Shared {}

impl Shared {
    fn work(&self) {
        // SAFETY: called between the epoch's bump and this thread's check-out: no thread writes the region then, and the
        // task it points to is borrowed by the caller of `run`, who waits for the check-out.
        let (task, tasks) = unsafe {
            let region = &*self.region.get();
            match region.task {
                Some(task) => (&*task, region.tasks),
                None => return,
            }
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Relaxed);
                if i >= tasks {
                    break;
                }
                task(i);
            }
        }));
        if let Err(panic) = result {
            self.next.store(tasks, Relaxed);
            *self.panicked.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
        }
    }
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A fixed set of threads that run regions of independent tasks. Several threads may drive it: their regions run one after the other.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    ticket_lock: TicketLock,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl Pool {
    /// A pool in which `threads` threads work, the caller of `run` being one of them.
    pub(crate) fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            region: UnsafeCell::new(Region {
                task: None,
                tasks: 0,
            }),
            epoch: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panicked: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .filter_map(|i| {
                let shared = shared.clone();
                let handle = std::thread::Builder::new()
                    .name(format!("lory-compute-{i}"))
                    .spawn(move || worker(&shared, i - 1))
                    .ok()?;
                Some((handle.thread().clone(), Some(handle)))
            })
            .collect();
        Pool {
            shared,
            ticket_lock: TicketLock::default(),
            workers,
        }
    }

    /// How many threads work in a region.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0..tasks)`, each once, on all threads; returns when all are done. A region inside a region runs on the
    /// thread that meets it. A task's panic is raised again here.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.get() {
            for i in 0..tasks {
                task(i);
            }
            return;
        }
        let guard = self.ticket_lock.acquire();
        let s = &*self.shared;
        // SAFETY: this thread holds the lock and `working` is 0, so no other thread looks at the region. The lifetime is erased, but
        // this function does not return before every worker has checked out.
        unsafe {
            let task: Task = std::mem::transmute::<&(dyn Fn(usize) + Sync), Task>(task);
            *s.region.get() = Region {
                task: Some(task),
                tasks,
            };
        }
        s.next.store(0, Relaxed);
        s.working.store(self.workers.len(), Relaxed);
        s.epoch.fetch_add(1, SeqCst);
        for (asleep, (thread, _)) in s.asleep.iter().zip(&self.workers) {
            if asleep.load(SeqCst) {
                thread.unpark();
            }
        }
        INSIDE.set(true);
        s.work();
        INSIDE.set(false);
        let mut spins = 0u32;
        while s.working.load(Acquire) != 0 {
            spins += 1;
            if spins > SPINS {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let panic = s.panicked.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            drop(guard);
            resume_unwind(panic);
        }
    }
}

fn worker(s: &Shared, me: usize) {
    INSIDE.set(true);
    let mut seen = 0;
    loop {
        let mut spins = 0;
        loop {
            let epoch = s.epoch.load(Acquire);
            if epoch != seen {
                seen = epoch;
                break;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            // The flag goes up before the last look at the epoch, and `run` bumps the epoch before it looks at the flag:
            // one of the two sees the other.
            s.asleep[me].store(true, SeqCst);
            if s.epoch.load(SeqCst) == seen {
                std::thread::park();
            }
            s.asleep[me].store(false, SeqCst);
        }
        if s.stop.load(Acquire) {
            return;
        }
        s.work();
        s.working.fetch_sub(1, Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Release);
        self.shared.epoch.fetch_add(1, SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                let _ = handle.join();
            }
        }
    }
}

/// A mutable slice that tasks of one region write in disjoint places.
pub(crate) struct Scatter<'a, T> {
    data: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out disjoint parts only, by the contract of `part`.
unsafe impl<T: Send> Sync for Scatter<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Scatter<'_, T> {}

impl<'a, T> Scatter<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Scatter {
            data: data.as_mut_ptr(),
            len: data.len(),
            life: std::marker::PhantomData,
        }
    }

    /// The part that starts at `from`.
    ///
    /// # Safety
    /// No two live parts overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from);
        // SAFETY: inside the slice by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), len) }
    }

    /// The pointer to element `from`; for strided writes of disjoint elements.
    pub(crate) fn pointer(&self, from: usize) -> *mut T {
        assert!(from <= self.len);
        // SAFETY: inside the slice, or one past its end.
        unsafe { self.data.add(from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..20 {
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Relaxed) == 20));
            }
        }
    }

    #[test]
    fn parked_workers_wake_and_nested_regions_run() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            pool.run(4, &|_| {
                pool.run(5, &|i| {
                    sum.fetch_add(i, Relaxed);
                })
            });
        }
        assert_eq!(sum.load(Relaxed), 3 * 4 * 10);
    }

    #[test]
    fn several_threads_can_run_regions() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for driver in 0..3usize {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..200 {
                        let seen: Vec<AtomicUsize> = (0..17).map(|_| AtomicUsize::new(0)).collect();
                        pool.run(seen.len(), &|i| {
                            seen[i].fetch_add(1 + driver + round, Relaxed);
                        });
                        let right = |seen: &AtomicUsize| seen.load(Relaxed) == 1 + driver + round;
                        assert!(seen.iter().all(right));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_stays_usable() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|i| assert_ne!(i, 57));
        }));
        assert!(result.is_err());
        let ran = AtomicUsize::new(0);
        pool.run(10, &|_| {
            ran.fetch_add(1, Relaxed);
        });
        assert_eq!(ran.load(Relaxed), 10);
    }
}
