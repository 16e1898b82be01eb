//! Divides the machine between steps of the engine and layers of background work, so that inter-token latency stays within a
//! budget while a job trains. A part of a long layer counts as a layer. Must not know engine or trainer, only when their steps and
//! layers begin and end.
//!
//! Either a step or a layer runs at a time: each uses every core, so in parallel neither would be faster, and their costs could
//! not be measured. A step waits for the layer that is running, and never for a second layer that does not fit. While the engine
//! has requests, a layer starts only between two steps, and only
//!
//! - if the time of a step, of the layers since the last step, and of the longest recent layer together are within the budget,
//!   which is then the inter-token latency of a stream;
//! - or, if a layer alone exceeds the budget, once in [`RARE`] steps: 19 of 20 gaps are then as they are without it.
//!
//! Without requests every layer starts at once. Several background clients take turns.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A layer that exceeds the budget may start once in so many steps: fewer than 1 in 20, with some room for noise.
pub const RARE: u32 = 32;
/// The default budget: the target p95 inter-token latency while a job trains.
pub const DEFAULT_BUDGET: Duration = Duration::from_millis(100);
/// The number of recent steps; the longest of them is the estimate for the next one.
const STEPS: usize = 8;
/// A longer pause between two steps does not count as inter-token latency.
const PAUSE: Duration = Duration::from_millis(50);
/// Requests that run no step for this long wait for something other than compute, such as an adapter from a bucket.
const STALLED: Duration = Duration::from_millis(100);
/// How often a waiting layer checks whether there are still requests.
const POLL: Duration = Duration::from_millis(5);
/// The decay of the longest recent layer, for each layer.
const FADE: f64 = 0.995;

/// Lowers the priority of this thread and of those that it will start. A step has one thread for each core and waits for the
/// slowest, so other work must not take time from them.
pub fn lower_thread_priority() {
    /// A tenth of the share of a normal thread, by Linux's weights.
    #[cfg(target_os = "linux")]
    const NICE: i32 = 10;
    // On Linux this changes one thread only. If it is not permitted, the thread keeps its priority.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Grants compute to steps and layers, one at a time.
#[derive(Debug)]
pub struct ComputeArbiter {
    budget: Duration,
    state: Mutex<State>,
    changed: Condvar,
    clients: AtomicU64,
}

/// A job or an evaluation that computes in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundClient(u64);

#[derive(Debug, Default)]
struct State {
    /// When the running step began.
    step: Option<Instant>,
    /// Whether a step waits for the running layer.
    step_waits: bool,
    /// The client of the running layer, and when it began.
    layer: Option<(BackgroundClient, Instant)>,
    /// Clients that wait, in order of arrival.
    waiting: VecDeque<BackgroundClient>,
    /// When the last step ended.
    last_end: Option<Instant>,
    /// The times of recent steps, from the end of the previous step to their own end, without the layers in between.
    steps: VecDeque<Duration>,
    /// The total time of layers since the last step.
    layers: Duration,
    /// The longest recent layer, decaying.
    longest: Duration,
    /// Steps since a layer exceeded the budget.
    since_rare: u32,
}

impl Default for ComputeArbiter {
    fn default() -> Self {
        ComputeArbiter::within(DEFAULT_BUDGET)
    }
}

impl ComputeArbiter {
    /// Keeps inter-token latency within `budget` for 19 of 20 tokens, as far as the steps themselves do.
    #[must_use]
    pub fn within(budget: Duration) -> ComputeArbiter {
        ComputeArbiter {
            budget,
            state: Mutex::default(),
            changed: Condvar::new(),
            clients: AtomicU64::new(0),
        }
    }

    /// A new background client.
    pub fn background_client(&self) -> BackgroundClient {
        BackgroundClient(self.clients.fetch_add(1, Ordering::Relaxed))
    }

    /// The budget.
    #[must_use]
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// Begins a step, which ends when the guard is dropped. Waits for the running layer, if there is one.
    pub fn begin_step(&self) -> StepGuard<'_> {
        let mut state = self.lock();
        state.step_waits = true;
        while state.layer.is_some() {
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.step_waits = false;
        state.step = Some(Instant::now());
        StepGuard(self)
    }

    /// Begins a layer, which lasts until the client's next call or [`ComputeArbiter::end_layer`]. Waits until it fits between the
    /// steps, and for other clients. `busy` returns whether there are requests; `stopped` whether to give up, which returns
    /// false.
    pub fn begin_layer(
        &self,
        client: BackgroundClient,
        busy: &dyn Fn() -> bool,
        stopped: &dyn Fn() -> bool,
    ) -> bool {
        self.end_layer(client);
        self.lock().waiting.push_back(client);
        let requested = Instant::now();
        loop {
            if stopped() {
                self.lock().waiting.retain(|other| *other != client);
                self.changed.notify_all();
                return false;
            }
            // Called outside the lock, which a step needs to begin.
            let idle = !busy();
            let mut state = self.lock();
            let now = Instant::now();
            let next = state.layer.is_none() && state.waiting.front() == Some(&client);
            if next && state.may_start(idle, requested, now, self.budget) {
                state.waiting.pop_front();
                state.layer = Some((client, now));
                return true;
            }
            drop(
                self.changed
                    .wait_timeout(state, POLL)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    /// Ends the running layer of this client, if it has one.
    pub fn end_layer(&self, client: BackgroundClient) {
        let mut state = self.lock();
        if let Some((_, began)) = state.layer.take_if(|(other, _)| *other == client) {
            state.layer_ended(began.elapsed());
            drop(state);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a layer that was requested at `requested` may start now; `idle`: there are no requests.
    fn may_start(
        &mut self,
        idle: bool,
        requested: Instant,
        now: Instant,
        budget: Duration,
    ) -> bool {
        if self.step.is_some() {
            return false;
        }
        let last = self.last_end.map_or(requested, |end| end.max(requested));
        if !self.step_waits && (idle || now.saturating_duration_since(last) > STALLED) {
            return true;
        }
        let step = self.steps.iter().max().copied().unwrap_or_default();
        if step + self.layers + self.longest <= budget {
            return true;
        }
        // Not after a layer that fitted: the gap would exceed the budget twice.
        if self.layers.is_zero() && self.since_rare >= RARE {
            self.since_rare = 0;
            return true;
        }
        false
    }

    fn layer_ended(&mut self, took: Duration) {
        self.layers += took;
        self.longest = took.max(self.longest.mul_f64(FADE));
    }

    fn step_ended(&mut self, began: Instant, now: Instant) {
        let between = self.last_end.map_or(Duration::ZERO, |end| {
            began
                .saturating_duration_since(end)
                .saturating_sub(self.layers)
        });
        let between = if between > PAUSE {
            Duration::ZERO
        } else {
            between
        };
        self.steps.push_back(now - began + between);
        if self.steps.len() > STEPS {
            self.steps.pop_front();
        }
        self.layers = Duration::ZERO;
        self.last_end = Some(now);
        self.since_rare = self.since_rare.saturating_add(1);
    }
}

/// A running step.
#[must_use = "dropping it ends the step"]
pub struct StepGuard<'s>(&'s ComputeArbiter);

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Some(began) = state.step.take() {
            state.step_ended(began, Instant::now());
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;

    const BUDGET: Duration = Duration::from_millis(100);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Simulates `steps` steps of `step`, with as many layers of `layer` in between as may start. Returns the gaps from step to
    /// step, and the number of layers.
    fn simulate(step: Duration, layer: Duration, steps: usize) -> (Vec<Duration>, usize) {
        let mut state = State {
            longest: layer,
            ..State::default()
        };
        let (mut now, mut gaps, mut layers) = (Instant::now(), Vec::new(), 0);
        let mut last = now;
        for _ in 0..steps {
            // There are always requests.
            while state.may_start(false, now, now, BUDGET) {
                now += layer;
                state.layer_ended(layer);
                layers += 1;
            }
            let began = now;
            state.step = Some(began);
            assert!(!state.may_start(true, now, now, BUDGET));
            state.step = None;
            now += step;
            state.step_ended(began, now);
            gaps.push(now - last);
            last = now;
        }
        (gaps, layers)
    }

    #[test]
    fn layers_fill_the_budget_and_do_not_exceed_it() {
        // The time of the first step is unknown.
        let (gaps, layers) = simulate(ms(20), ms(30), 200);
        assert!(gaps[2..].iter().all(|gap| *gap == ms(80)), "{gaps:?}");
        assert!((395..=405).contains(&layers), "{layers}");
    }

    #[test]
    fn layer_over_the_budget_runs_rarely_but_never_starves() {
        for (step, layer) in [(20, 90), (70, 40), (150, 10)] {
            let (gaps, layers) = simulate(ms(step), ms(layer), 1000);
            let slow = gaps[2..].iter().filter(|gap| **gap > ms(step)).count();
            assert!(slow * 20 < gaps.len(), "{slow} of {} gaps", gaps.len());
            assert!(layers >= 1000 / RARE as usize, "{layers} layers");
            assert!(gaps[2..].iter().all(|gap| *gap <= ms(step + layer)));
        }
    }

    #[test]
    fn every_layer_starts_without_requests_or_with_stalled_ones() {
        let now = Instant::now();
        let mut state = State {
            longest: ms(500),
            ..State::default()
        };
        assert!(state.may_start(true, now, now, BUDGET));
        assert!(!state.may_start(false, now, now + ms(90), BUDGET));
        assert!(state.may_start(false, now, now + ms(110), BUDGET));
        // But not while a step waits.
        state.step_waits = true;
        assert!(!state.may_start(true, now, now + ms(110), BUDGET));
    }

    #[test]
    fn steps_and_layers_of_several_clients_never_overlap() {
        let arbiter = ComputeArbiter::within(ms(2));
        let (inside, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let alone = |work: Duration| {
            assert!(!inside.swap(true, SeqCst), "two ran at once");
            std::thread::sleep(work);
            inside.store(false, SeqCst);
        };
        let layers = [AtomicU64::new(0), AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for layers in &layers {
                let client = arbiter.background_client();
                let (arbiter, stop, alone) = (&arbiter, &stop, &alone);
                scope.spawn(move || {
                    while arbiter.begin_layer(client, &|| true, &|| stop.load(SeqCst)) {
                        alone(Duration::from_micros(300));
                        layers.fetch_add(1, SeqCst);
                    }
                });
            }
            for _ in 0..200 {
                let _step = arbiter.begin_step();
                alone(Duration::from_micros(100));
            }
            // Neither client starves.
            while layers.iter().any(|layers| layers.load(SeqCst) < 20) {
                std::thread::yield_now();
            }
            stop.store(true, SeqCst);
        });
        // Stopped clients end their layers.
        drop(arbiter.begin_step());
        let client = arbiter.background_client();
        assert!(arbiter.begin_layer(client, &|| false, &|| false));
        arbiter.end_layer(client);
    }
}
