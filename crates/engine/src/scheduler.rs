//! Decides which sequences run in the next step. Knows tokens, blocks and whose turn it is; does not run anything and does not
//! read a clock.
//!
//! The rules:
//! 1. Every running sequence with one pending token decodes it: one row each, and its draft tokens.
//! 2. Running prefills get chunks of what is left of the step's budget. In a step with decodes the budget keeps the step within
//!    `step_latency`, with at least [`MIN_PROMPT_ROWS`] prompt rows, so that prefills make progress.
//! 3. Waiting sequences are admitted while there is budget, room in the batch, and blocks.
//!
//! The order, for 2 and 3: sequences that have waited for `max_wait`, by arrival; then by priority; then by fair share (the
//! client that has been served least for its weight, then its adapter set that has); then by arrival. If the first does not
//! fit, no other overtakes it.
//!
//! When blocks run out, the least urgent running sequence is preempted: it releases its blocks and is computed again later.
//! One that is not overdue (admitted after `max_wait`) is preempted before one that is, then by priority, then the youngest.
//! So the oldest overdue sequence is never preempted, and as every sequence becomes that one in time, each ends.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::blocks::BlockPool;
use crate::config::EngineConfig;
use crate::fair_share::FairShare;
use crate::plan::Plan;
use crate::runner::Limits;
use crate::sequence::{Arrival, Sequence};
use crate::step_cost::StepCost;

/// The prompt rows that a step has room for, however slow the model is.
pub(crate) const MIN_PROMPT_ROWS: usize = 8;

pub(crate) struct Scheduler<A> {
    waiting: BTreeMap<Arrival, Sequence<A>>,
    running: BTreeMap<Arrival, Sequence<A>>,
    blocks: BlockPool,
    fair_share: FairShare,
    step_cost: StepCost,
    max_batch: usize,
    step_tokens: usize,
    prefill_chunk: usize,
    draft_tokens: usize,
    step_latency: Duration,
    max_wait: Duration,
    next_arrival: Arrival,
    preemptions: u64,
    cached_tokens: u64,
}

/// The order of sequences, as (not overdue, priority, fair share, arrival); the lower goes first.
type Turn = (bool, i32, (u64, u64), Arrival);

impl<A> Scheduler<A> {
    pub fn new(config: &EngineConfig, limits: &Limits) -> Self {
        Scheduler {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            blocks: BlockPool::new(limits.blocks, limits.block_tokens, config.prefix_cache),
            fair_share: FairShare::default(),
            step_cost: StepCost::default(),
            max_batch: config.max_batch,
            step_tokens: config.step_tokens,
            prefill_chunk: config.prefill_chunk,
            draft_tokens: config.draft_tokens,
            step_latency: config.step_latency,
            max_wait: config.max_wait,
            next_arrival: 0,
            preemptions: 0,
            cached_tokens: 0,
        }
    }

    pub fn enqueue(&mut self, sequence: Sequence<A>) {
        self.fair_share.join(&sequence);
        self.waiting.insert(self.next_arrival, sequence);
        self.next_arrival += 1;
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

    /// Tokens that came from the prefix cache.
    pub fn cached_tokens(&self) -> u64 {
        self.cached_tokens
    }

    pub fn get(&mut self, sequence: Arrival) -> Option<&mut Sequence<A>> {
        self.running.get_mut(&sequence)
    }

    /// A step of `rows` rows took so long.
    pub fn observe_step(&mut self, rows: usize, took: Duration) {
        self.step_cost.observe(rows, took);
    }

    /// Removes a running sequence.
    pub fn take(&mut self, sequence: Arrival) -> Option<Sequence<A>> {
        let sequence = self.running.remove(&sequence)?;
        self.fair_share.leave(&sequence);
        Some(sequence)
    }

    /// Removes all sequences, running or waiting, that match `which`.
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
            self.fair_share.leave(sequence);
        }
        taken
    }

    /// Decides the next step. The plan has no rows only if no sequence runs or waits.
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

    /// How many rows a step with `decodes` decode rows may have.
    fn budget(&self, decodes: usize) -> usize {
        if decodes == 0 {
            return self.step_tokens;
        }
        self.step_cost
            .rows_within(self.step_latency)
            .max(decodes + MIN_PROMPT_ROWS)
            .min(self.step_tokens)
    }

    /// One row for each decode; `step_tokens >= max_batch`, so all fit. Returns whether a sequence was preempted.
    fn plan_decodes(&mut self, plan: &mut Plan<A>) -> bool {
        let mut preempted = false;
        let mut decodes: Vec<_> = self
            .running
            .iter()
            .filter(|(_, sequence)| !sequence.in_prefill())
            .map(|(arrival, sequence)| urgency(*arrival, sequence))
            .collect();
        // The most urgent allocate blocks first.
        decodes.sort_unstable();
        let row_cost = self.step_cost.relative_row_cost(decodes.len());
        let mut room = self.step_tokens - decodes.len();
        for (_, _, arrival) in decodes {
            // It is absent if it was preempted in this loop.
            while let Some(sequence) = self.running.get_mut(&arrival) {
                if sequence
                    .blocks
                    .grow_to(sequence.tokens.len(), &self.blocks)
                    .is_ok()
                {
                    self.fair_share.charge(sequence, 1);
                    let most = self.draft_tokens.min(room);
                    let drafts = drafts(sequence, &self.blocks, row_cost, most);
                    room -= drafts.len();
                    plan.add_with_drafts(arrival, sequence, 1, drafts);
                    break;
                }
                self.preempt();
                preempted = true;
            }
        }
        preempted
    }

    /// Preempts the least urgent sequence, which may be the one that needs a block.
    fn preempt(&mut self) {
        let running = self.running.iter();
        let last = running
            .map(|(arrival, sequence)| urgency(*arrival, sequence))
            .max();
        if let Some((_, _, arrival)) = last
            && let Some(mut sequence) = self.running.remove(&arrival)
        {
            sequence.release_blocks();
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
                self.fair_share.charge(sequence, rows);
                plan.add(arrival, sequence, rows);
            }
        }
    }

    /// How many of its pending tokens a sequence may run in what is left of the budget.
    fn chunk(&self, plan: &Plan<A>, budget: usize, sequence: &Sequence<A>) -> usize {
        let left = budget.saturating_sub(plan.batch.rows());
        sequence.pending().min(self.prefill_chunk).min(left)
    }

    fn turn(&self, arrival: Arrival, sequence: &Sequence<A>, overdue: bool) -> Turn {
        if overdue {
            return (false, 0, (0, 0), arrival);
        }
        let served = self.fair_share.served(sequence);
        (true, sequence.priority, served, arrival)
    }

    /// Admits waiting sequences, with blocks for all of their tokens, from the prefix cache where possible. One block for
    /// each running sequence stays free: otherwise a new sequence would be preempted a few steps later.
    fn admit(&mut self, plan: &mut Plan<A>, budget: usize, now: Instant) {
        while self.running.len() < self.max_batch && plan.batch.rows() < budget {
            let waited = |sequence: &Sequence<A>| {
                sequence.overdue
                    || now.saturating_duration_since(sequence.arrived()) >= self.max_wait
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
                    .grow_to(sequence.tokens.len(), &self.blocks)
                    .is_err()
            {
                sequence.release_blocks();
                self.waiting.insert(arrival, sequence);
                return;
            }
            sequence.overdue = !in_time;
            self.cached_tokens += cached as u64;
            sequence.response.mark_scheduled(cached);
            let rows = self.chunk(plan, budget, &sequence);
            self.fair_share.charge(&sequence, rows);
            plan.add(arrival, &sequence, rows);
            self.running.insert(arrival, sequence);
        }
    }
}

/// Draft tokens for a decode: as many as pay, within the blocks that the sequence has. It gets another block only while an
/// eighth of all blocks is free.
fn drafts<A>(sequence: &mut Sequence<A>, pool: &BlockPool, row_cost: f64, most: usize) -> Vec<u32> {
    let Some(draft) = sequence.draft(most) else {
        return Vec::new();
    };
    let mut drafts = sequence.prompt_lookup.profitable(draft, row_cost).to_vec();
    let tokens = sequence.tokens.len();
    let spare = pool.free() > pool.blocks() / 8;
    if spare && sequence.blocks.grow_to(tokens + drafts.len(), pool).is_ok() {
        return drafts;
    }
    drafts.truncate(sequence.blocks.capacity(pool).saturating_sub(tokens));
    drafts
}

/// The order in which sequences keep their blocks; the highest is preempted first.
fn urgency<A>(arrival: Arrival, sequence: &Sequence<A>) -> (Reverse<bool>, i32, Arrival) {
    let priority = if sequence.overdue {
        0
    } else {
        sequence.priority
    };
    (Reverse(sequence.overdue), priority, arrival)
}
