//! Decides which sequences run in the next step. Knows tokens, blocks and whose turn it is; does not run anything and does not
//! read a clock.
//!
//! The rules:
//! 1. Every running sequence with one pending token decodes it: one row each, and its draft tokens. Only while another client has a
//!    prompt to run, a client decodes no more rows in a step than its share of the batch, and its sequences take turns: a step full of
//!    its rows would have room for a few prompt rows only.
//! 2. Running prefills get chunks of what is left of the step's budget. In a step with decodes the budget keeps the step within
//!    `step_latency`, with at least [`MIN_PROMPT_ROWS`] prompt rows, so that prefills make progress. The client that was served least
//!    takes its rows first, so long prompts do not delay a short one of another client.
//! 3. Waiting sequences are admitted while there is budget, room in the batch, and blocks.
//!
//! The order, for 2 and 3: clients that run fewer sequences than their share (`client_shares`) go first; then sequences that have
//! waited for `max_wait`, by arrival; then by priority; then by fair share (the client that has been served least for its weight,
//! then its adapter set that has); then by arrival. If the first does not fit into the cache, no other of its client overtakes it,
//! and other clients do so only within their share of the blocks.
//!
//! A client below its share does not wait for others to end: where the batch is full, the client furthest above its share
//! gives up rows, a few in each step, and likewise blocks. With more clients than rows, a client without a row gets that of a
//! sequence that has run for `max_wait`.
//!
//! When blocks run out, the least urgent running sequence is preempted: it releases its blocks and is computed again later.
//! Clients above their share of the blocks come first, then the youngest or lowest in priority. One that is not overdue (admitted
//! after `max_wait`) is preempted before one that is. The oldest overdue sequence is never preempted, and as every sequence becomes
//! that one in time, each ends.

mod prompts;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::blocks::BlockPool;
use crate::client_id::ClientId;
use crate::client_shares::ClientShares;
use crate::config::EngineConfig;
use crate::fair_share::FairShare;
use crate::grammar_budget::GrammarBudget;
use crate::plan::Plan;
use crate::preemption;
use crate::runner::Limits;
use crate::sequence::{Arrival, Sequence};
use crate::step_cost::StepCost;

/// The prompt rows that a step has room for, however slow the model is.
pub(crate) const MIN_PROMPT_ROWS: usize = 8;
/// The rows that a step without decodes has room for where requests have clients: the next client's request waits for its end.
const MIN_PREFILL_ROWS: usize = 64;
/// The most rows that clients above their share give up in one step. More could not start in it: their prompts share its budget.
const MAX_PREEMPTIONS: usize = 4;
/// The least time that a sequence runs before it gives its row to a client without one.
const MIN_TURN: Duration = Duration::from_secs(1);

pub(crate) struct Scheduler<A> {
    waiting: BTreeMap<Arrival, Sequence<A>>,
    running: BTreeMap<Arrival, Sequence<A>>,
    blocks: BlockPool,
    fair_share: FairShare,
    step_cost: StepCost,
    grammar_budget: GrammarBudget,
    max_batch: usize,
    step_tokens: usize,
    vocab_size: usize,
    prefill_chunk: usize,
    draft_tokens: usize,
    step_latency: Duration,
    max_wait: Duration,
    next_arrival: Arrival,
    preemptions: u64,
    cached_tokens: u64,
}

/// The order of sequences, as (not below its share, not overdue, priority, fair share, arrival); the lower goes first.
type Turn = (bool, bool, i32, (u64, u64), Arrival);

impl<A> Scheduler<A> {
    pub fn new(config: &EngineConfig, limits: &Limits) -> Self {
        Scheduler {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            blocks: BlockPool::new(limits.blocks, limits.block_tokens, config.prefix_cache),
            fair_share: FairShare::default(),
            step_cost: StepCost::default(),
            grammar_budget: GrammarBudget::default(),
            max_batch: config.max_batch,
            step_tokens: config.step_tokens,
            vocab_size: limits.vocab_size,
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
        self.grammar_budget.observe_step(took);
    }

    /// How long the grammar of a running sequence is expected to take; those that have never run come last.
    pub fn grammar_time(&self, sequence: Arrival) -> Duration {
        let decoding = self
            .running
            .get(&sequence)
            .map(|sequence| &sequence.decoding);
        let constrained = decoding.filter(|decoding| decoding.constraint.is_some());
        constrained.map_or(Duration::ZERO, |decoding| {
            decoding.latest_constraint_time.unwrap_or(Duration::MAX)
        })
    }

    /// Charges the time that the grammar of a sequence took in this step to its client.
    pub fn charge_grammar(&mut self, sequence: Arrival) {
        let Some(sequence) = self.running.get_mut(&sequence) else {
            return;
        };
        if let Some(took) = sequence.take_constraint_time() {
            self.grammar_budget.charge(sequence.client_id(), took);
            let rows = self.step_cost.rows_in(took);
            self.fair_share.charge_time(sequence, rows);
        }
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
        let mut plan = Plan::new(self.vocab_size);
        let mut shares = self.client_shares();
        if !shares.is_single() {
            self.preempt_for_rows(&mut shares, now);
            self.preempt_for_blocks(&mut shares, now);
        }
        self.grammar_budget.begin_step(!shares.is_single());
        let preempted = self.plan_decodes(&mut plan, &shares);
        if preempted {
            shares = self.client_shares();
        }
        let budget = self.budget(plan.batch.rows(), &shares);
        self.plan_prompts(&mut plan, budget, &mut shares, !preempted, now);
        if plan.batch.rows() == 0 && !self.running.is_empty() {
            // Only rows that owe time for their grammars are left, so they delay no others.
            self.grammar_budget.begin_step(false);
            self.plan_decodes(&mut plan, &shares);
        }
        plan
    }

    fn client_shares(&self) -> ClientShares {
        ClientShares::new(
            self.running.values(),
            self.waiting.values(),
            self.max_batch,
            self.blocks.blocks(),
        )
    }

    /// How many rows a step with `decodes` decode rows may have.
    fn budget(&self, decodes: usize, shares: &ClientShares) -> usize {
        let least = match decodes {
            0 if !shares.has_clients() => return self.step_tokens,
            0 => MIN_PREFILL_ROWS,
            _ => decodes + MIN_PROMPT_ROWS,
        };
        self.step_cost
            .rows_within(self.step_latency)
            .max(least)
            .min(self.step_tokens)
    }

    /// One row for each decode; `step_tokens >= max_batch`, so all fit. Returns whether a sequence was preempted.
    fn plan_decodes(&mut self, plan: &mut Plan<A>, shares: &ClientShares) -> bool {
        let mut preempted = false;
        let mut decodes: Vec<_> = self
            .running
            .iter()
            .filter(|(_, sequence)| !sequence.in_prefill())
            .map(|(arrival, sequence)| preemption::urgency(*arrival, sequence))
            .collect();
        // The most urgent allocate blocks first, and clients within their share before those above it: what is in the plan
        // keeps its blocks.
        let protected = preemption::oldest_overdue(&self.running);
        let above: BTreeSet<ClientId> = shares.above_blocks().into_iter().collect();
        decodes.sort_by_key(|urgency| {
            let (_, _, arrival) = *urgency;
            let sequence = self.running.get(&arrival);
            let above = sequence.is_some_and(|sequence| above.contains(&sequence.client_id()));
            // Of one client, those go first that were left out of the latest steps.
            let skipped = sequence.map_or(0, |sequence| sequence.skipped_steps);
            (
                Some(arrival) != protected,
                above,
                Reverse(skipped),
                *urgency,
            )
        });
        let mut planned: BTreeSet<Arrival> = BTreeSet::new();
        let mut rows_left = self.decode_limits(shares);
        let row_cost = self.step_cost.relative_row_cost(decodes.len());
        let mut room = self.step_tokens - decodes.len();
        for (_, _, arrival) in decodes {
            // It is absent if it was preempted in this loop.
            while let Some(sequence) = self.running.get_mut(&arrival) {
                let rows_left = rows_left.get_mut(&sequence.client_id());
                if rows_left.as_deref() == Some(&0) {
                    sequence.skipped_steps += 1;
                    break;
                }
                if sequence
                    .blocks
                    .grow_to(sequence.tokens.len(), &self.blocks)
                    .is_ok()
                {
                    let constrained = sequence.decoding.constraint.is_some();
                    let latest = sequence.decoding.latest_constraint_time;
                    if constrained && !self.grammar_budget.reserve(sequence.client_id(), latest) {
                        sequence.skipped_steps += 1;
                        break;
                    }
                    sequence.skipped_steps = 0;
                    if let Some(rows_left) = rows_left {
                        *rows_left -= 1;
                    }
                    self.fair_share.charge(sequence, 1);
                    let drafting = !constrained || self.grammar_budget.allows_drafts(latest);
                    let most = if drafting {
                        self.draft_tokens.min(room)
                    } else {
                        0
                    };
                    let drafts = drafts(sequence, &self.blocks, row_cost, most);
                    room -= drafts.len();
                    plan.add_with_drafts(arrival, sequence, 1, drafts);
                    planned.insert(arrival);
                    break;
                }
                self.preempt(arrival, &planned);
                preempted = true;
            }
        }
        preempted
    }

    /// The decode rows that clients may have in the next step, for those with a limit: each client next to which another one has a
    /// prompt that runs, or that waits and may begin.
    fn decode_limits(&self, shares: &ClientShares) -> BTreeMap<ClientId, usize> {
        if shares.is_single() {
            return BTreeMap::new();
        }
        let has_row = self.running.len() < self.max_batch;
        let waiting = self.waiting.values().filter(|sequence| {
            let needed = self.blocks.needed(sequence.tokens.len());
            has_row
                && sequence.priority <= 0
                && shares.is_below_rows(sequence.client_id())
                && needed + self.running.len() <= self.blocks.free()
        });
        let prefills = self.running.values().filter(|s| s.in_prefill());
        let prompts: BTreeSet<ClientId> =
            prefills.chain(waiting).map(Sequence::client_id).collect();
        let others = |client: &ClientId| prompts.iter().any(|other| other != client);
        let limited = shares.row_shares().filter(|(client, _)| others(client));
        limited.collect()
    }

    /// Preempts a sequence for the blocks that `needs` lacks: one that is not in the plan yet, which may be `needs` itself.
    fn preempt(&mut self, needs: Arrival, planned: &BTreeSet<Arrival>) {
        let shares = self.client_shares();
        let mut above = shares.above_blocks().into_iter().filter_map(|client| {
            preemption::victim(&self.running, |arrival, sequence| {
                sequence.client_id() == client && !planned.contains(&arrival)
            })
        });
        let all = || preemption::victim(&self.running, |arrival, _| !planned.contains(&arrival));
        let victim = above.next().or_else(all).unwrap_or(needs);
        self.release(victim);
    }

    /// Takes the blocks and the row of a running sequence, which waits from here on.
    fn release(&mut self, arrival: Arrival) {
        if let Some(mut sequence) = self.running.remove(&arrival) {
            sequence.release_blocks();
            self.preemptions += 1;
            self.waiting.insert(arrival, sequence);
        }
    }

    /// Frees rows for waiting clients below their share of a full batch.
    fn preempt_for_rows(&mut self, shares: &mut ClientShares, now: Instant) {
        let free = self.max_batch - self.running.len();
        let lacking = shares.wanted_rows().saturating_sub(free);
        for _ in 0..lacking.min(MAX_PREEMPTIONS) {
            let above = preemption::victim_of(&self.running, &shares.above_rows());
            let Some(arrival) = above.or_else(|| self.row_of_longest_turn(shares, now)) else {
                return;
            };
            if let Some(sequence) = self.running.get(&arrival) {
                shares.count_preempted(sequence);
            }
            self.release(arrival);
        }
    }

    /// With more clients than rows: a row whose turn has ended, if a client without one has waited for too long.
    fn row_of_longest_turn(&self, shares: &ClientShares, now: Instant) -> Option<Arrival> {
        let turn = self.max_wait.max(MIN_TURN);
        let waits = |sequence: &Sequence<A>| {
            sequence.priority <= 0
                && shares.running(sequence.client_id()) == 0
                && self.is_overdue(sequence, now)
        };
        if !self.waiting.values().any(waits) {
            return None;
        }
        preemption::longest_turn(&self.running, turn, now)
    }

    /// Frees blocks for a waiting sequence of a client below its shares, from clients above their share of the blocks. It must be the
    /// next of its client: another one could not use the blocks, as no sequence overtakes the next one of its own client.
    fn preempt_for_blocks(&mut self, shares: &mut ClientShares, now: Instant) {
        let mut next: BTreeMap<ClientId, (Turn, &Sequence<A>)> = BTreeMap::new();
        for (arrival, sequence) in &self.waiting {
            let overdue = self.is_overdue(sequence, now);
            let turn = self.turn(*arrival, sequence, overdue, shares);
            let first = next.entry(sequence.client_id()).or_insert((turn, sequence));
            if turn < first.0 {
                *first = (turn, sequence);
            }
        }
        let turns = next.into_iter().filter_map(|(client, (turn, sequence))| {
            let needed = self.blocks.needed(sequence.tokens.len());
            let may_preempt = sequence.priority <= 0
                && shares.is_below_rows(client)
                && shares.fits_block_share(client, needed);
            may_preempt.then_some((turn, needed))
        });
        let Some((_, needed)) = turns.min() else {
            return;
        };
        if self.running.len() >= self.max_batch {
            return;
        }
        for _ in 0..MAX_PREEMPTIONS {
            if needed + self.running.len() <= self.blocks.free() {
                return;
            }
            let above = shares.above_blocks();
            let Some(arrival) = preemption::victim_of(&self.running, &above) else {
                return;
            };
            if let Some(sequence) = self.running.get(&arrival) {
                shares.count_preempted(sequence);
            }
            self.release(arrival);
        }
    }

    fn is_overdue(&self, sequence: &Sequence<A>, now: Instant) -> bool {
        sequence.overdue || now.saturating_duration_since(sequence.arrived()) >= self.max_wait
    }

    fn turn(
        &self,
        arrival: Arrival,
        sequence: &Sequence<A>,
        overdue: bool,
        shares: &ClientShares,
    ) -> Turn {
        let client = sequence.client_id();
        let needed = match self.running.contains_key(&arrival) {
            true => 0,
            false => self.blocks.needed(sequence.tokens.len()),
        };
        let fits = shares.running(client) == 0 || shares.fits_block_share(client, needed);
        let above = !(shares.is_single() || fits && shares.is_below_rows(client));
        if overdue {
            return (above, false, 0, (0, 0), arrival);
        }
        let served = self.fair_share.served(sequence);
        (above, true, sequence.priority, served, arrival)
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
