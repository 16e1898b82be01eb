//! Who runs in the next step. Knows tokens, blocks and whose turn it is; runs nothing itself and asks no clock.
//!
//! The rules:
//! 1. Every running sequence that lacks only its latest token decodes it: one row each.
//! 2. Prompts under way get chunks of what is left of the step's budget. Where answers are under way too, the budget is what
//!    keeps the step within its latency, [`MIN_PROMPT_ROWS`] at least, so that prompts go on.
//! 3. Waiting sequences are admitted while there is budget, a seat in the batch, and blocks.
//!
//! Turns, for 2 and 3: those that have waited for `max_wait`, in order of arrival; then by priority; then the client that
//! has been served least for its weight, and of its tones the one that has been; then by arrival. Where the first does not fit, none overtakes it.
//!
//! When blocks run out, the least urgent running sequence gives its own up and is computed again later: one that was not
//! admitted for its long wait before one that was, then by priority, then the youngest. So the oldest of those that waited
//! too long is never preempted, and as every sequence becomes that one in time, each ends.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::blocks::BlockPool;
use crate::handle::EngineConfig;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::runner::Limits;
use crate::sequence::{Arrival, Sequence};
use crate::shares::Served;

/// Rows of prompts that a step has room for, however slow the model is.
pub(crate) const MIN_PROMPT_ROWS: usize = 8;

pub(crate) struct Scheduler<A> {
    waiting: BTreeMap<Arrival, Sequence<A>>,
    running: BTreeMap<Arrival, Sequence<A>>,
    blocks: BlockPool,
    served: Served,
    pace: Pace,
    max_batch: usize,
    step_tokens: usize,
    prefill_chunk: usize,
    draft_tokens: usize,
    step_latency: Duration,
    max_wait: Duration,
    arrivals: Arrival,
    preemptions: u64,
    cached_tokens: u64,
}

/// Whose turn it is; the lower goes first.
type Turn = (bool, i32, (u64, u64), Arrival);

impl<A> Scheduler<A> {
    pub fn new(config: &EngineConfig, limits: &Limits) -> Self {
        Scheduler {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            blocks: BlockPool::new(limits.blocks, limits.block_tokens, config.prefix_cache),
            served: Served::default(),
            pace: Pace::default(),
            max_batch: config.max_batch,
            step_tokens: config.step_tokens,
            prefill_chunk: config.prefill_chunk,
            draft_tokens: config.draft_tokens,
            step_latency: config.step_latency,
            max_wait: config.max_wait,
            arrivals: 0,
            preemptions: 0,
            cached_tokens: 0,
        }
    }

    pub fn enqueue(&mut self, sequence: Sequence<A>) {
        self.served.join(&sequence);
        self.waiting.insert(self.arrivals, sequence);
        self.arrivals += 1;
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Tokens that were not computed because the cache had them.
    pub fn cached_tokens(&self) -> u64 {
        self.cached_tokens
    }

    pub fn get(&mut self, sequence: Arrival) -> Option<&mut Sequence<A>> {
        self.running.get_mut(&sequence)
    }

    /// A step of so many rows took so long.
    pub fn observe(&mut self, rows: usize, took: Duration) {
        self.pace.observe(rows, took);
    }

    /// Takes a running sequence out.
    pub fn take(&mut self, sequence: Arrival) -> Option<Sequence<A>> {
        let sequence = self.running.remove(&sequence)?;
        self.served.leave(&sequence);
        Some(sequence)
    }

    /// Takes out all, running or waiting, that are as `which` says.
    pub fn take_if(&mut self, which: impl Fn(&Sequence<A>) -> bool) -> Vec<Sequence<A>> {
        let mut taken = Vec::new();
        for queue in [&mut self.running, &mut self.waiting] {
            taken.extend(
                queue
                    .extract_if(.., |_, sequence| which(sequence))
                    .map(|(_, sequence)| sequence),
            );
        }
        for sequence in &taken {
            self.served.leave(sequence);
        }
        taken
    }

    /// Decides the next step. Without rows only if nothing runs or waits.
    pub fn plan(&mut self, now: Instant) -> Plan<A> {
        let mut plan = Plan::new();
        let preempted = self.plan_decodes(&mut plan);
        let budget = self.budget(plan.batch.rows());
        self.plan_prefills(&mut plan, budget);
        if !preempted {
            self.admit(&mut plan, budget, now);
        }
        plan
    }

    /// How many rows a step with so many decodes may have.
    fn budget(&self, decodes: usize) -> usize {
        if decodes == 0 {
            return self.step_tokens;
        }
        self.pace
            .rows_within(self.step_latency)
            .max(decodes + MIN_PROMPT_ROWS)
            .min(self.step_tokens)
    }

    /// One row for each sequence that lacks only its latest token. `step_tokens >= max_batch`, so all fit.
    fn plan_decodes(&mut self, plan: &mut Plan<A>) -> bool {
        let mut preempted = false;
        let mut decodes: Vec<_> = self
            .running
            .iter()
            .filter(|(_, sequence)| !sequence.in_prefill())
            .map(|(arrival, sequence)| urgency(*arrival, sequence))
            .collect();
        // The most urgent take blocks first.
        decodes.sort_unstable();
        let price = self.pace.price_of_row(decodes.len());
        let mut room = self.step_tokens - decodes.len();
        for (_, _, arrival) in decodes {
            // Absent: preempted a moment ago for another one.
            while let Some(sequence) = self.running.get_mut(&arrival) {
                if sequence
                    .blocks
                    .cover(sequence.tokens.len(), &self.blocks)
                    .is_ok()
                {
                    self.served.charge(sequence, 1);
                    let most = self.draft_tokens.min(room);
                    let drafts = drafts(sequence, &self.blocks, price, most);
                    room -= drafts.len();
                    plan.add_drafted(arrival, sequence, 1, drafts);
                    break;
                }
                self.preempt();
                preempted = true;
            }
        }
        preempted
    }

    /// The least urgent gives its blocks up; possibly the very sequence that lacks one.
    fn preempt(&mut self) {
        let running = self.running.iter();
        let last = running
            .map(|(arrival, sequence)| urgency(*arrival, sequence))
            .max();
        if let Some((_, _, arrival)) = last
            && let Some(mut sequence) = self.running.remove(&arrival)
        {
            sequence.give_up_blocks();
            self.preemptions += 1;
            self.waiting.insert(arrival, sequence);
        }
    }

    fn plan_prefills(&mut self, plan: &mut Plan<A>, budget: usize) {
        let mut turns: Vec<Turn> = self
            .running
            .iter()
            .filter(|(_, sequence)| sequence.in_prefill())
            .map(|(arrival, sequence)| self.turn(*arrival, sequence, sequence.overdue))
            .collect();
        turns.sort_unstable();
        for (.., arrival) in turns {
            let Some(sequence) = self.running.get(&arrival) else {
                continue;
            };
            let rows = self.chunk(plan, budget, sequence);
            if rows > 0 {
                self.served.charge(sequence, rows);
                plan.add(arrival, sequence, rows);
            }
        }
    }

    /// How many of its pending tokens a sequence may run in what is left of this step.
    fn chunk(&self, plan: &Plan<A>, budget: usize, sequence: &Sequence<A>) -> usize {
        let left = budget.saturating_sub(plan.batch.rows());
        sequence.pending().min(self.prefill_chunk).min(left)
    }

    fn turn(&self, arrival: Arrival, sequence: &Sequence<A>, overdue: bool) -> Turn {
        if overdue {
            return (false, 0, (0, 0), arrival);
        }
        let served = self.served.of(sequence);
        (true, sequence.priority, served, arrival)
    }

    /// Takes up waiting sequences, with blocks for all tokens that they have, cached ones as far as there are. One block
    /// for each running sequence stays free: without it a newcomer would be thrown out again a few steps later.
    fn admit(&mut self, plan: &mut Plan<A>, budget: usize, now: Instant) {
        while self.running.len() < self.max_batch && plan.batch.rows() < budget {
            let waited = |sequence: &Sequence<A>| {
                sequence.overdue || now.saturating_duration_since(sequence.came) >= self.max_wait
            };
            let first = self
                .waiting
                .iter()
                .map(|(arrival, sequence)| self.turn(*arrival, sequence, waited(sequence)))
                .min();
            let Some((in_time, .., arrival)) = first else {
                return;
            };
            let Some(mut sequence) = self.waiting.remove(&arrival) else {
                return;
            };
            let cached = sequence.reuse_blocks(&self.blocks);
            let held = sequence.blocks.ids().len();
            let needed = self.blocks.needed(sequence.tokens.len()) - held;
            let fits = needed + self.running.len() <= self.blocks.free();
            if !fits
                || sequence
                    .blocks
                    .cover(sequence.tokens.len(), &self.blocks)
                    .is_err()
            {
                sequence.give_up_blocks();
                self.waiting.insert(arrival, sequence);
                return;
            }
            sequence.overdue = !in_time;
            self.cached_tokens += cached as u64;
            sequence.outlet.start(cached);
            let rows = self.chunk(plan, budget, &sequence);
            self.served.charge(&sequence, rows);
            plan.add(arrival, &sequence, rows);
            self.running.insert(arrival, sequence);
        }
    }
}

/// Guesses of the tokens that follow, as many as pay, fit in the blocks that the sequence has or may have without taking
/// one that another will need.
fn drafts<A>(sequence: &mut Sequence<A>, pool: &BlockPool, price: f64, most: usize) -> Vec<u32> {
    let Some(guess) = sequence.guess(most) else {
        return Vec::new();
    };
    let mut drafts = sequence.lookup.worth(guess, price).to_vec();
    let tokens = sequence.tokens.len();
    let spare = pool.free() > pool.blocks() / 8;
    if spare && sequence.blocks.cover(tokens + drafts.len(), pool).is_ok() {
        return drafts;
    }
    drafts.truncate(sequence.blocks.room(pool).saturating_sub(tokens));
    drafts
}

/// Who keeps blocks; the lower, the longer.
fn urgency<A>(arrival: Arrival, sequence: &Sequence<A>) -> (Reverse<bool>, i32, Arrival) {
    let priority = if sequence.overdue {
        0
    } else {
        sequence.priority
    };
    (Reverse(sequence.overdue), priority, arrival)
}
