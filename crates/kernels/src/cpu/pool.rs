//! The thread pool: fork, claim tasks, join. Workers spin briefly after a region, then park.
//!
//! A layer of the decoder is a handful of short regions, so the time between two regions matters: a region starts
//! by bumping an epoch that spinning workers watch, and ends when every worker has checked out.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Instant;

use crate::cpu::pause::{self, PAUSE_EVERY};
use crate::cpu::sync::thread::{self, JoinHandle};
use crate::cpu::sync::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, UnsafeCell, hint, thread_local,
};
use crate::cpu::ticket_lock::TicketLock;

/// Spins before a worker parks: about 50 microseconds, longer than the gap between two regions of a step. Models have few, because
/// each is another interleaving.
const SPINS: u32 = if cfg!(any(loom, miri)) { 1 } else { 20_000 };

type Task = *const (dyn Fn(usize) + Sync);

#[derive(Clone, Copy)]
struct Region {
    task: Option<Task>,
    tasks: usize,
}

struct Shared {
    region: UnsafeCell<Region>,
    epoch: AtomicU64,
    next: AtomicUsize,
    working: AtomicUsize,
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
        // SAFETY: called between the epoch's bump and this thread's check-out: no thread writes the region then.
        let Region { task, tasks } = self.region.with(|region| unsafe { *region });
        let Some(task) = task else { return };
        // SAFETY: the task is borrowed by the caller of `run`, who waits for this thread's check-out.
        let task = unsafe { &*task };
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

#[cfg(not(loom))]
thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}
#[cfg(loom)]
thread_local! {
    static INSIDE: Cell<bool> = Cell::new(false);
}

/// A fixed set of threads that run regions of independent tasks. Several threads may drive it: their regions run one after the other.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    ticket_lock: TicketLock,
    workers: Vec<Worker>,
}

struct Worker {
    /// The worker has parked, or is about to.
    asleep: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

impl Pool {
    /// A pool in which `threads` threads work, the caller of `run` being one of them; fewer if the system does not start as many.
    pub(crate) fn new(threads: usize) -> Pool {
        Pool::start(threads, |i, work| {
            let name = format!("lory-compute-{i}");
            thread::Builder::new().name(name).spawn(work).ok()
        })
    }

    fn start(
        threads: usize,
        spawn: impl Fn(usize, Box<dyn FnOnce() + Send>) -> Option<JoinHandle<()>>,
    ) -> Pool {
        let shared = Arc::new(Shared {
            region: UnsafeCell::new(Region {
                task: None,
                tasks: 0,
            }),
            epoch: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            panicked: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let worker = |i: usize| {
            let asleep = Arc::new(AtomicBool::new(false));
            let (of_worker, shared) = (asleep.clone(), shared.clone());
            let work = Box::new(move || work_until_stopped(&shared, &of_worker));
            Some(Worker {
                asleep,
                handle: spawn(i, work)?,
            })
        };
        let workers = (1..threads).filter_map(worker).collect();
        Pool {
            shared,
            ticket_lock: TicketLock::new(),
            workers,
        }
    }

    /// How many threads work in a region.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0..tasks)`, each once, on all threads; returns when all are done. A region inside a region runs on the
    /// thread that meets it. A task's panic is raised again here. Pauses where the thread's work does: see [`crate::cpu::pause`].
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        #[cfg(debug_assertions)]
        let task = &current_task::recording(task);
        if INSIDE.with(Cell::get) || !pause::is_set() {
            return self.run_region(tasks, task);
        }
        // An eighth first, since most regions take less than the time between two pauses: then as many as take about that time.
        let (mut first, mut part) = (0, (tasks / 8).max(self.threads()));
        while first < tasks {
            pause::if_due();
            let began = Instant::now();
            let tasks_of_part = part.min(tasks - first);
            self.run_region(tasks_of_part, &|i| task(first + i));
            first += tasks_of_part;
            let took = began.elapsed();
            if took < PAUSE_EVERY / 4 {
                part *= 4;
            } else if took > PAUSE_EVERY {
                part = (part / 2).max(self.threads());
            }
        }
    }

    /// [`Pool::run`] in one region.
    fn run_region(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.with(Cell::get) {
            for i in 0..tasks {
                task(i);
            }
            return;
        }
        let guard = self.ticket_lock.acquire();
        let s = &*self.shared;
        // SAFETY: this thread holds the lock and `working` is 0, so no other thread looks at the region. The lifetime is erased, but
        // this function does not return before every worker has checked out.
        s.region.with_mut(|region| unsafe {
            let task: Task = std::mem::transmute::<&(dyn Fn(usize) + Sync), Task>(task);
            *region = Region {
                task: Some(task),
                tasks,
            };
        });
        s.next.store(0, Relaxed);
        s.working.store(self.workers.len(), Relaxed);
        // Release: the region and the counters come before it. Acquire: see `work_until_stopped`.
        s.epoch.fetch_add(1, AcqRel);
        for worker in &self.workers {
            if worker.asleep.load(Relaxed) {
                worker.handle.thread().unpark();
            }
        }
        INSIDE.with(|inside| inside.set(true));
        s.work();
        INSIDE.with(|inside| inside.set(false));
        let mut spins = 0u32;
        while s.working.load(Acquire) != 0 {
            spins += 1;
            if spins > SPINS {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
        let panic = s.panicked.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            drop(guard);
            resume_unwind(panic);
        }
    }
}

fn work_until_stopped(s: &Shared, asleep: &AtomicBool) {
    INSIDE.with(|inside| inside.set(true));
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
                hint::spin_loop();
                continue;
            }
            // No wake-up is lost: the addition of 0 and the bump in `run` are changes of one value, so one is first. If the bump
            // is, this thread reads it here. Otherwise the bump acquires what is released here, and `run` reads the flag.
            asleep.store(true, Relaxed);
            if s.epoch.fetch_add(0, AcqRel) == seen {
                thread::park();
            }
            asleep.store(false, Relaxed);
        }
        if s.stop.load(Relaxed) {
            return;
        }
        s.work();
        s.working.fetch_sub(1, Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.epoch.fetch_add(1, AcqRel);
        for worker in self.workers.drain(..) {
            worker.handle.thread().unpark();
            let _ = worker.handle.join();
        }
    }
}

#[cfg(debug_assertions)]
pub(crate) use current_task::{TaskId, current_task};

/// Which task this thread runs, for the checks of debug builds.
#[cfg(debug_assertions)]
mod current_task {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A task of one region. Tasks of a region inside it have its id, because they run one after the other.
    #[derive(Clone, Copy)]
    pub(crate) struct TaskId {
        pub(crate) region: u64,
        pub(crate) task: usize,
    }

    static REGIONS: AtomicU64 = AtomicU64::new(1);

    std::thread_local! {
        static CURRENT: Cell<Option<TaskId>> = const { Cell::new(None) };
    }

    /// The task of this thread; none outside a region.
    pub(crate) fn current_task() -> Option<TaskId> {
        CURRENT.get()
    }

    /// `task`, which is the thread's current task while it runs.
    pub(super) fn recording(task: &(dyn Fn(usize) + Sync)) -> impl Fn(usize) + Sync {
        struct Restore(Option<TaskId>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let region = REGIONS.fetch_add(1, Ordering::Relaxed);
        move |i| {
            let outer = CURRENT.get();
            let _restore = Restore(outer);
            CURRENT.set(outer.or(Some(TaskId { region, task: i })));
            task(i);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    /// `count` rounds of a test; few under Miri, which is slow.
    fn rounds(count: usize) -> usize {
        if cfg!(miri) { 2 } else { count }
    }

    /// Runs `tasks` tasks of 2 ms on `pool`; how often each ran.
    fn timed(pool: &Pool, tasks: usize) -> Vec<usize> {
        let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|i| {
            std::thread::sleep(Duration::from_millis(2));
            ran[i].fetch_add(1, Relaxed);
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
            let ran = pause::pausing(pause, || timed(&pool, 150));
            assert_eq!(ran, Some(vec![1; 150]));
            assert!(pauses.get() >= 2, "{} pauses", pauses.get());
            // Without the pause as before.
            let before = pauses.get();
            assert_eq!(timed(&pool, 150), [1; 150]);
            assert_eq!(pauses.get(), before);
        }
    }

    #[test]
    fn work_that_a_pause_stops_is_abandoned_and_the_pool_stays_usable() {
        let pool = Pool::new(2);
        let ran = AtomicUsize::new(0);
        let stopped = pause::pausing(Rc::new(|| false), || {
            pool.run(1000, &|_| {
                std::thread::sleep(Duration::from_millis(2));
                ran.fetch_add(1, Relaxed);
            });
        });
        assert_eq!(stopped, None);
        let ran = ran.into_inner();
        assert!((1..500).contains(&ran), "{ran} tasks ran");
        assert!(!pause::is_set());
        assert_eq!(timed(&pool, 5), [1; 5]);
    }

    #[test]
    fn panic_of_the_work_is_raised() {
        let raised = catch_unwind(|| pause::pausing(Rc::new(|| true), || panic!("as it is")));
        let message = raised.unwrap_err();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"as it is"));
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..rounds(20) {
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Relaxed) == rounds(20)));
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
                    for round in 0..rounds(200) {
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

    #[test]
    fn pool_works_without_the_threads_that_did_not_start() {
        let pool = Pool::start(4, |i, work| (i != 1).then(|| thread::spawn(work)));
        assert_eq!(pool.threads(), 3);
        for _ in 0..3 {
            // Long enough for the workers to park.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let ran = AtomicUsize::new(0);
            pool.run(10, &|_| {
                ran.fetch_add(1, Relaxed);
            });
            assert_eq!(ran.load(Relaxed), 10);
        }
    }
}

/// Run with `RUSTFLAGS="--cfg loom" cargo test -p kernels --lib loom_models`.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;

    /// Every interleaving with at most this many preemptions; more find nothing new and take hours.
    const PREEMPTIONS: usize = 3;

    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(PREEMPTIONS);
        builder.check(model);
    }

    /// Cells that tasks write without atomics, so that loom sees accesses that are not ordered.
    struct Cells<const N: usize>([UnsafeCell<usize>; N]);
    // SAFETY: loom checks the accesses.
    unsafe impl<const N: usize> Sync for Cells<N> {}
    // SAFETY: as above.
    unsafe impl<const N: usize> Send for Cells<N> {}

    impl<const N: usize> Cells<N> {
        fn new() -> Self {
            Cells(std::array::from_fn(|_| UnsafeCell::new(0)))
        }
        fn add(&self, i: usize) {
            // SAFETY: loom checks the access.
            self.0[i].with_mut(|cell| unsafe { *cell += 1 });
        }
        fn get(&self, i: usize) -> usize {
            // SAFETY: loom checks the access.
            self.0[i].with(|cell| unsafe { *cell })
        }
    }

    #[test]
    fn a_region_runs_every_task_once_and_run_sees_what_tasks_wrote() {
        check(|| {
            let pool = Pool::new(2);
            let cells = Cells::<2>::new();
            pool.run(2, &|i| cells.add(i));
            assert_eq!([cells.get(0), cells.get(1)], [1, 1]);
        });
    }

    #[test]
    fn a_parked_worker_wakes_for_the_next_region() {
        check(|| {
            let pool = Pool::new(2);
            let cells = Cells::<2>::new();
            for round in 1..=2 {
                pool.run(2, &|i| cells.add(i));
                assert_eq!([cells.get(0), cells.get(1)], [round, round]);
            }
        });
    }

    #[test]
    fn regions_of_two_threads_run_one_after_the_other() {
        check(|| {
            let pool = Arc::new(Pool::new(2));
            let cells = Arc::new(Cells::<2>::new());
            let other = thread::spawn({
                let (pool, cells) = (pool.clone(), cells.clone());
                move || pool.run(2, &|i| cells.add(i))
            });
            pool.run(2, &|i| cells.add(i));
            other.join().unwrap();
            assert_eq!([cells.get(0), cells.get(1)], [2, 2]);
        });
    }
}
