//! Who runs in the next step. Knows tokens, blocks and the order of arrival; runs nothing itself.
//!
//! The rules, all in order of arrival:
//! 1. Every running sequence that lacks only its latest token decodes it: one row each.
//! 2. Prompts under way get chunks of what is left of the step's budget.
//! 3. Waiting sequences are admitted while there is budget, a seat in the batch, and blocks; none overtakes another.
//!
//! When blocks run out, the youngest running sequence gives its own up and is computed again later. The oldest is never
//! preempted, so there is always progress; every running sequence is older than every waiting one.

use std::collections::BTreeMap;

use crate::blocks::BlockPool;
use crate::handle::EngineConfig;
use crate::plan::Plan;
use crate::runner::Limits;
use crate::sequence::{Arrival, Sequence};

pub(crate) struct Scheduler<A> {
    waiting: BTreeMap<Arrival, Sequence<A>>,
    running: BTreeMap<Arrival, Sequence<A>>,
    blocks: BlockPool,
    max_batch: usize,
    step_tokens: usize,
    prefill_chunk: usize,
    arrivals: Arrival,
    preemptions: u64,
    cached_tokens: u64,
}

impl<A> Scheduler<A> {
    pub fn new(config: &EngineConfig, limits: &Limits) -> Self {
        Scheduler {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            blocks: BlockPool::new(limits.blocks, limits.block_tokens, config.prefix_cache),
            max_batch: config.max_batch,
            step_tokens: config.step_tokens,
            prefill_chunk: config.prefill_chunk,
            arrivals: 0,
            preemptions: 0,
            cached_tokens: 0,
        }
    }

    pub fn enqueue(&mut self, sequence: Sequence<A>) {
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

    /// Takes a running sequence out.
    pub fn take(&mut self, sequence: Arrival) -> Option<Sequence<A>> {
        self.running.remove(&sequence)
    }

    /// Takes out all that were cancelled.
    pub fn take_cancelled(&mut self) -> Vec<Sequence<A>> {
        let mut cancelled = Vec::new();
        for queue in [&mut self.running, &mut self.waiting] {
            cancelled.extend(
                queue
                    .extract_if(.., |_, sequence| sequence.is_cancelled())
                    .map(|(_, sequence)| sequence),
            );
        }
        cancelled
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<Sequence<A>> {
        let running = std::mem::take(&mut self.running);
        let waiting = std::mem::take(&mut self.waiting);
        running.into_values().chain(waiting.into_values()).collect()
    }

    /// Decides the next step. Without rows only if nothing runs or waits.
    pub fn plan(&mut self) -> Plan<A> {
        let mut plan = Plan::new();
        let preempted = self.plan_decodes(&mut plan);
        self.plan_prefills(&mut plan);
        if !preempted {
            self.admit(&mut plan);
        }
        plan
    }

    /// One row for each sequence that lacks only its latest token. `step_tokens >= max_batch`, so all fit.
    fn plan_decodes(&mut self, plan: &mut Plan<A>) -> bool {
        let mut preempted = false;
        let arrivals: Vec<Arrival> = self.running.keys().copied().collect();
        for arrival in arrivals {
            // Absent: preempted a moment ago for an older one.
            while let Some(sequence) = self.running.get_mut(&arrival) {
                if sequence.in_prefill() {
                    break;
                }
                if sequence
                    .blocks
                    .cover(sequence.tokens.len(), &self.blocks)
                    .is_ok()
                {
                    plan.add(arrival, sequence, 1);
                    break;
                }
                self.preempt_youngest();
                preempted = true;
            }
        }
        preempted
    }

    /// The youngest gives its blocks up; possibly the very sequence that lacks one.
    fn preempt_youngest(&mut self) {
        if let Some((arrival, mut sequence)) = self.running.pop_last() {
            sequence.give_up_blocks();
            self.preemptions += 1;
            self.waiting.insert(arrival, sequence);
        }
    }

    fn plan_prefills(&mut self, plan: &mut Plan<A>) {
        for (arrival, sequence) in &self.running {
            let rows = self.chunk(plan, sequence);
            if sequence.in_prefill() && rows > 0 {
                plan.add(*arrival, sequence, rows);
            }
        }
    }

    /// How many of its pending tokens a sequence may run in what is left of this step.
    fn chunk(&self, plan: &Plan<A>, sequence: &Sequence<A>) -> usize {
        let left = self.step_tokens - plan.batch.rows();
        sequence.pending().min(self.prefill_chunk).min(left)
    }

    /// Takes up waiting sequences, with blocks for all tokens that they have, cached ones as far as there are. One block for each running sequence stays
    /// free: without it a newcomer would be thrown out again a few steps later.
    fn admit(&mut self, plan: &mut Plan<A>) {
        while self.running.len() < self.max_batch && plan.batch.rows() < self.step_tokens {
            let Some((arrival, mut sequence)) = self.waiting.pop_first() else {
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
            self.cached_tokens += cached as u64;
            sequence.outlet.start(cached);
            let rows = self.chunk(plan, &sequence);
            plan.add(arrival, &sequence, rows);
            self.running.insert(arrival, sequence);
        }
    }
}
