//! Pools for blocking work, shared fairly between API keys.
//!
//! A pool has slots; each piece of work needs one. A key waits behind itself: it has a bounded number of slots and a bounded queue, and
//! keys with waiting work take turns. Work whose client has disconnected leaves the queue. Pools do not share slots, so that a flood in
//! one delays no other.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use service::compute_arbiter::lower_thread_priority;
use tokio::sync::oneshot;

use crate::error::ApiError;

/// The name of the key that pays for work; none on a server without keys.
pub(crate) type KeyName = Option<Arc<str>>;

/// The limits of a pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolLimits {
    /// What its work is, for messages: "requests to prepare".
    pub work: &'static str,
    /// Pieces of work that run at once.
    pub slots: usize,
    /// Of these, the most of one key. On a server without keys, the caller may take all slots.
    pub slots_per_key: usize,
    /// The most waiting pieces of work of one key.
    pub queue_per_key: usize,
    /// Whether the work runs at low thread priority, so that it takes no time from steps of the engine.
    pub low_priority: bool,
}

/// See the module.
pub(crate) struct WorkPool {
    limits: PoolLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    keys: HashMap<KeyName, KeyState>,
    /// The keys with waiting work, the next one first.
    turns: VecDeque<KeyName>,
    next_id: u64,
}

#[derive(Default)]
struct KeyState {
    running: usize,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl WorkPool {
    pub fn new(limits: PoolLimits) -> Arc<WorkPool> {
        Arc::new(WorkPool {
            limits,
            state: Mutex::default(),
        })
    }

    /// Waits for a slot and runs `work` on another thread. If the returned future is dropped, work that waits never starts, and work
    /// that runs can learn it from [`RunningWork::cancelled`].
    ///
    /// # Errors
    /// The key's queue is full; or the work panicked.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        key: &KeyName,
        work: impl FnOnce(&RunningWork) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let running = RunningWork {
            slot: Mutex::new(Some(self.slot(key).await?)),
            cancelled: Arc::default(),
        };
        let _client = ClientGuard(Arc::clone(&running.cancelled));
        let failed = || ApiError::internal("the work failed unexpectedly; see the server's log");
        if !self.limits.low_priority {
            let done = tokio::task::spawn_blocking(move || work(&running));
            return done.await.map_err(|_| failed());
        }
        // The priority of a thread cannot be raised again, so this work needs its own.
        let (sender, done) = oneshot::channel();
        let started = std::thread::Builder::new()
            .name("lory-work".to_owned())
            .spawn(move || {
                lower_thread_priority();
                let _ = sender.send(work(&running));
            });
        started.map_err(|error| ApiError::internal(format!("cannot start a thread: {error}")))?;
        done.await.map_err(|_| failed())
    }

    /// Waits for a slot.
    async fn slot(self: &Arc<Self>, key: &KeyName) -> Result<Slot, ApiError> {
        let (sender, granted) = oneshot::channel();
        let mut waiting = self.enqueue(key, sender)?;
        // The sender is dropped only after it has granted the slot.
        let _ = granted.await;
        Ok(waiting.granted())
    }

    fn enqueue(
        self: &Arc<Self>,
        key: &KeyName,
        granted: oneshot::Sender<()>,
    ) -> Result<Waiting, ApiError> {
        let mut state = self.lock();
        let id = state.next_id;
        let of_key = state.keys.entry(key.clone()).or_default();
        if of_key.waiting.len() >= self.limits.queue_per_key {
            return Err(ApiError::work_queue_full(
                self.limits.work,
                self.limits.queue_per_key,
            ));
        }
        of_key.waiting.push_back((id, granted));
        if of_key.waiting.len() == 1 {
            state.turns.push_back(key.clone());
        }
        state.next_id += 1;
        self.grant(&mut state);
        Ok(Waiting {
            pool: Arc::clone(self),
            key: key.clone(),
            id,
            ended: false,
        })
    }

    /// Gives free slots to waiting work, one key after the other.
    fn grant(&self, state: &mut State) {
        let mut passed_over = 0;
        while state.running < self.limits.slots && passed_over < state.turns.len() {
            let Some(key) = state.turns.pop_front() else {
                return;
            };
            let Some(of_key) = state.keys.get_mut(&key) else {
                continue;
            };
            if of_key.running >= self.slots_of(&key) {
                state.turns.push_back(key);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            if let Some((_, granted)) = of_key.waiting.pop_front() {
                of_key.running += 1;
                state.running += 1;
                // If its client leaves in this moment, the slot is released when the `Waiting` is dropped.
                let _ = granted.send(());
            }
            if !of_key.waiting.is_empty() {
                state.turns.push_back(key);
            }
        }
    }

    /// The most slots of a key.
    fn slots_of(&self, key: &KeyName) -> usize {
        match key {
            Some(_) => self.limits.slots_per_key,
            None => self.limits.slots,
        }
    }

    fn release(&self, key: &KeyName) {
        let mut state = self.lock();
        state.running -= 1;
        if let Some(of_key) = state.keys.get_mut(key) {
            of_key.running -= 1;
        }
        State::forget_if_idle(&mut state, key);
        self.grant(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_if_idle(&mut self, key: &KeyName) {
        let Some(of_key) = self.keys.get(key) else {
            return;
        };
        if of_key.waiting.is_empty() {
            self.turns.retain(|other| other != key);
            if of_key.running == 0 {
                self.keys.remove(key);
            }
        }
    }
}

/// Work in the queue. Dropping it takes the work out.
struct Waiting {
    pool: Arc<WorkPool>,
    key: KeyName,
    id: u64,
    /// Whether the work has its slot and takes care of it.
    ended: bool,
}

impl Waiting {
    /// The slot that was granted.
    fn granted(&mut self) -> Slot {
        self.ended = true;
        Slot {
            pool: Arc::clone(&self.pool),
            key: self.key.clone(),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.pool.lock();
        let waiting = state.keys.get_mut(&self.key).and_then(|of_key| {
            let at = of_key.waiting.iter().position(|(id, _)| *id == self.id)?;
            of_key.waiting.remove(at)
        });
        State::forget_if_idle(&mut state, &self.key);
        drop(state);
        // The slot was granted in the same moment.
        if waiting.is_none() {
            self.pool.release(&self.key);
        }
    }
}

/// A slot, until it is dropped.
struct Slot {
    pool: Arc<WorkPool>,
    key: KeyName,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.release(&self.key);
    }
}

/// Work that has a slot.
pub(crate) struct RunningWork {
    slot: Mutex<Option<Slot>>,
    cancelled: Arc<AtomicBool>,
}

impl RunningWork {
    /// Set once the client has disconnected. Long work polls it and stops.
    pub fn cancelled(&self) -> &Arc<AtomicBool> {
        &self.cancelled
    }

    /// Frees the slot, for work that only waits from now on.
    pub fn free_slot(&self) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        drop(slot.take());
    }
}

/// Cancels the work when the client no longer waits for it.
struct ClientGuard(Arc<AtomicBool>);

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn pool(slots: usize, slots_per_key: usize, queue_per_key: usize) -> Arc<WorkPool> {
        WorkPool::new(PoolLimits {
            work: "pieces of test work",
            slots,
            slots_per_key,
            queue_per_key,
            low_priority: false,
        })
    }

    fn key(name: &str) -> KeyName {
        Some(name.into())
    }

    /// Lets spawned tasks run until they wait.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn keys_with_waiting_work_take_turns() {
        let pool = pool(1, 1, 100);
        let first = pool.slot(&key("busy")).await.unwrap();
        let (sender, order) = channel();
        for n in 0..20 {
            // The quiet key comes last and has one piece of work.
            let name = if n == 19 { "quiet" } else { "busy" };
            let (pool, sender) = (Arc::clone(&pool), sender.clone());
            tokio::spawn(async move {
                let slot = pool.slot(&key(name)).await.unwrap();
                sender.send(name).unwrap();
                drop(slot);
            });
        }
        settle().await;
        drop(first);
        settle().await;
        let order: Vec<&str> = order.try_iter().collect();
        assert_eq!(order.len(), 20);
        let quiet = order.iter().position(|name| *name == "quiet").unwrap();
        assert!(quiet <= 1, "{order:?}");
    }

    #[tokio::test]
    async fn one_key_leaves_slots_for_others() {
        let pool = pool(2, 1, 8);
        let busy = key("busy");
        let _held = pool.slot(&busy).await.unwrap();
        let again = pool.slot(&busy);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), again)
                .await
                .is_err()
        );
        pool.slot(&key("quiet")).await.unwrap();
        // Without keys nobody else needs the slots.
        let open = super::WorkPool::new(pool.limits);
        let _one = open.slot(&None).await.unwrap();
        let _two = open.slot(&None).await.unwrap();
    }

    #[tokio::test]
    async fn full_queue_of_a_key_is_refused_and_names_the_limit() {
        let pool = pool(1, 1, 2);
        let _held = pool.slot(&key("busy")).await.unwrap();
        for _ in 0..2 {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.slot(&key("busy")).await.map(drop) });
        }
        settle().await;
        let refused = pool.slot(&key("busy")).await.map(drop).unwrap_err();
        let refused = serde_json::json!(refused.body());
        assert_eq!(refused["error"]["code"], "queue_full");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("2 pieces of test work"), "{message}");
        // Another key has its own queue.
        let quiet = key("quiet");
        let other = tokio::time::timeout(Duration::from_millis(20), pool.slot(&quiet));
        assert!(other.await.is_err());
    }

    #[tokio::test]
    async fn slot_that_is_granted_while_its_client_leaves_is_released_once() {
        let pool = pool(1, 1, 8);
        let held = pool.slot(&key("busy")).await.unwrap();
        let (sender, granted) = oneshot::channel();
        let waiting = pool.enqueue(&key("gone"), sender).unwrap();
        // A dropped future drops its receiver first; the slot is granted before it drops the rest.
        drop(granted);
        drop(held);
        drop(waiting);
        assert_eq!(pool.lock().running, 0);
        pool.slot(&key("busy")).await.unwrap();
    }

    #[tokio::test]
    async fn work_of_a_disconnected_client_never_starts() {
        let pool = pool(1, 1, 2000);
        let held = pool.slot(&key("busy")).await.unwrap();
        let (sender, started) = channel();
        let mut clients = Vec::new();
        for _ in 0..1000 {
            let (pool, sender) = (Arc::clone(&pool), sender.clone());
            clients.push(tokio::spawn(async move {
                let work = move |_: &RunningWork| sender.send(()).unwrap();
                pool.run(&key("busy"), work).await.map(drop)
            }));
        }
        settle().await;
        assert_eq!(pool.lock().keys[&key("busy")].waiting.len(), 1000);
        for client in &clients {
            client.abort();
        }
        for client in clients {
            let _ = client.await;
        }
        assert!(pool.lock().turns.is_empty());
        drop(held);
        pool.run(&key("busy"), |_| ()).await.unwrap();
        drop(sender);
        assert_eq!(started.iter().count(), 0);
        // A worker drops its slot just after it has returned its result.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !pool.lock().keys.is_empty() {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(pool.lock().running, 0);
    }

    #[tokio::test]
    async fn running_work_learns_that_its_client_has_disconnected() {
        for low_priority in [false, true] {
            let pool = WorkPool::new(PoolLimits {
                low_priority,
                ..pool(1, 1, 1).limits
            });
            let (sender, stopped) = channel();
            let of_client = Arc::clone(&pool);
            let client = tokio::spawn(async move {
                let work = move |running: &RunningWork| {
                    while !running.cancelled().load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    sender.send(()).unwrap();
                };
                of_client.run(&None, work).await.map(drop)
            });
            while pool.lock().running == 0 {
                tokio::task::yield_now().await;
            }
            settle().await;
            client.abort();
            let _ = client.await;
            let wait = move || stopped.recv_timeout(Duration::from_secs(10));
            tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn panic_in_work_is_an_error_and_frees_the_slot() {
        let pool = pool(1, 1, 1);
        let broken = pool.run(&None, |_| panic!("broken")).await;
        let broken: Result<(), ApiError> = broken;
        assert!(broken.is_err());
        pool.run(&None, |_| ()).await.unwrap();
    }
}
