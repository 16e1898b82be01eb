//! Who has the machine, a step of the engine or a layer of training, so that answers under way keep their pace while a job
//! trains. Knows neither engine nor trainer, only when their state begin and end.
//!
//! One computes at a time: both use every core, so side by side neither would be faster, and nobody could say what a turn
//! costs. A step waits for the layer that is running, and never for a second one that would not fit: with steps under way a
//! layer starts only between two of them, and
//!
//! - if the time of a step, the layers that were let in since the last one, and the longest layer of late are within the
//!   budget together, which is then what a stream sees from token to token;
//! - or, where a layer is longer than that, once in [`RARE`] steps: 19 of 20 gaps are then as they are without it.
//!
//! Without requests every layer starts at once. Several who compute beside the answers take their layers in turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A layer that breaks the budget may start once in so many steps: fewer than 1 in 20, with some room for the machine's own
/// noise.
pub const RARE: u32 = 32;
/// The budget where nobody says.
pub const DEFAULT_BUDGET: Duration = Duration::from_millis(100);
/// Steps whose times are kept; the longest of them is what the next is expected to take.
const STEPS: usize = 8;
/// A longer rest between two steps is no part of an answer's pace.
const REST: Duration = Duration::from_millis(50);
/// Requests that run no step for so long wait for something else than the machine, such as an adapter from a bucket.
const STALLED: Duration = Duration::from_millis(100);
/// How often a waiting layer looks whether anybody still has requests, if nobody wakes it.
const LOOK: Duration = Duration::from_millis(5);
/// How fast the longest layer is forgotten, a layer.
const FADE: f64 = 0.995;

/// Lets this thread, and those that it starts, run where the threads of a step leave time, for the most part: the machine has as
/// many of those as cores, and a step is done when the last of them is.
pub fn lower_thread_priority() {
    /// A tenth of a step's thread's share, by Linux's weights.
    #[cfg(target_os = "linux")]
    const NICE: i32 = 10;
    // Of this thread alone, on Linux. Without leave to do that, it runs like the others.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// The machine's state.
#[derive(Debug)]
pub struct ComputeArbiter {
    budget: Duration,
    state: Mutex<State>,
    changed: Condvar,
    clients: AtomicU64,
}

/// Somebody who computes beside the answers, a job or an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundClient(u64);

#[derive(Debug, Default)]
struct State {
    /// A step runs since.
    step: Option<Instant>,
    /// A step waits for the layer that runs.
    step_waits: bool,
    /// Whose layer runs, and since when.
    layer: Option<(BackgroundClient, Instant)>,
    /// Who waits for a layer's turn, in the order of asking.
    waiting: VecDeque<BackgroundClient>,
    /// When the last step ended.
    last_end: Option<Instant>,
    /// What the latest steps took, from the end of the one before to their own, without the layers in between.
    steps: VecDeque<Duration>,
    /// What the layers since the last step took.
    layers: Duration,
    /// The longest layer of late.
    longest: Duration,
    /// Steps since a layer broke the budget.
    since_rare: u32,
}

impl Default for ComputeArbiter {
    fn default() -> Self {
        ComputeArbiter::within(DEFAULT_BUDGET)
    }
}

impl ComputeArbiter {
    /// State that keep the time from token to token within `budget` for 19 of 20 tokens, as far as the steps themselves do.
    #[must_use]
    pub fn within(budget: Duration) -> ComputeArbiter {
        ComputeArbiter {
            budget,
            state: Mutex::default(),
            changed: Condvar::new(),
            clients: AtomicU64::new(0),
        }
    }

    /// Somebody new.
    pub fn background_client(&self) -> BackgroundClient {
        BackgroundClient(self.clients.fetch_add(1, Ordering::Relaxed))
    }

    /// The budget.
    #[must_use]
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// A step's turn, which ends when it is dropped. Waits for the layer that runs, if one does.
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

    /// A layer's turn, which lasts until the same one's next call, or [`ComputeArbiter::end_layer`]. Waits until it fits beside the steps, and
    /// for the layers of others, who take state; `busy` says whether anybody has requests, `stopped` whether to give up, which is
    /// false.
    pub fn begin_layer(
        &self,
        client: BackgroundClient,
        busy: &dyn Fn() -> bool,
        stopped: &dyn Fn() -> bool,
    ) -> bool {
        self.end_layer(client);
        self.lock().waiting.push_back(client);
        let asked = Instant::now();
        loop {
            if stopped() {
                self.lock().waiting.retain(|other| *other != client);
                self.changed.notify_all();
                return false;
            }
            // Asked outside the lock, which a step needs to begin.
            let idle = !busy();
            let mut state = self.lock();
            let now = Instant::now();
            let next = state.layer.is_none() && state.waiting.front() == Some(&client);
            if next && state.may_start(idle, asked, now, self.budget) {
                state.waiting.pop_front();
                state.layer = Some((client, now));
                return true;
            }
            drop(
                self.changed
                    .wait_timeout(state, LOOK)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    /// No layer of this one runs for now.
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
    /// Whether a layer that was asked for at `asked` may start now; `idle`: nobody has requests.
    fn may_start(&mut self, idle: bool, asked: Instant, now: Instant, budget: Duration) -> bool {
        if self.step.is_some() {
            return false;
        }
        let last = self.last_end.map_or(asked, |end| end.max(asked));
        if !self.step_waits && (idle || now.saturating_duration_since(last) > STALLED) {
            return true;
        }
        let step = self.steps.iter().max().copied().unwrap_or_default();
        if step + self.layers + self.longest <= budget {
            return true;
        }
        // Not behind a layer that fitted: that one would be over the budget too, then.
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
        let between = if between > REST {
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

/// A step's turn.
#[must_use = "dropping it ends the turn"]
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

    /// Steps and layers on a clock of their own: `steps` steps of `step`, and as many layers of `layer` between them as are let
    /// in. The gaps from step to step, and how many layers ran.
    fn played(step: Duration, layer: Duration, steps: usize) -> (Vec<Duration>, usize) {
        let mut state = State {
            longest: layer,
            ..State::default()
        };
        let (mut now, mut gaps, mut layers) = (Instant::now(), Vec::new(), 0);
        let mut last = now;
        for _ in 0..steps {
            // The step after this one is there already: somebody always has requests.
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
    fn layers_that_fit_fill_the_budget_and_no_more() {
        // The first step's time is not known before it ran.
        let (gaps, layers) = played(ms(20), ms(30), 200);
        assert!(gaps[2..].iter().all(|gap| *gap == ms(80)), "{gaps:?}");
        assert!((395..=405).contains(&layers), "{layers}");
    }

    #[test]
    fn a_layer_that_does_not_fit_is_rare_and_never_starves() {
        for (step, layer) in [(20, 90), (70, 40), (150, 10)] {
            let (gaps, layers) = played(ms(step), ms(layer), 1000);
            let slow = gaps[2..].iter().filter(|gap| **gap > ms(step)).count();
            assert!(slow * 20 < gaps.len(), "{slow} of {} gaps", gaps.len());
            assert!(layers >= 1000 / RARE as usize, "{layers} layers");
            assert!(gaps[2..].iter().all(|gap| *gap <= ms(step + layer)));
        }
    }

    #[test]
    fn without_requests_every_layer_starts_and_with_stalled_ones_too() {
        let now = Instant::now();
        let mut state = State {
            longest: ms(500),
            ..State::default()
        };
        assert!(state.may_start(true, now, now, BUDGET));
        assert!(!state.may_start(false, now, now + ms(90), BUDGET));
        assert!(state.may_start(false, now, now + ms(110), BUDGET));
        // But not while a step waits for its turn.
        state.step_waits = true;
        assert!(!state.may_start(true, now, now + ms(110), BUDGET));
    }

    #[test]
    fn a_step_and_the_layers_of_several_never_run_at_once() {
        let arbiter = ComputeArbiter::within(ms(2));
        let (inside, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let alone = |work: Duration| {
            assert!(!inside.swap(true, SeqCst), "two at once");
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
            // Neither keeps the other out.
            while layers.iter().any(|layers| layers.load(SeqCst) < 20) {
                std::thread::yield_now();
            }
            stop.store(true, SeqCst);
        });
        // Stopped, they let go of their state.
        drop(arbiter.begin_step());
        let client = arbiter.background_client();
        assert!(arbiter.begin_layer(client, &|| false, &|| false));
        arbiter.end_layer(client);
    }
}
