//! Gives out the prompt rows of a step: chunks of the prefills that run, and the admission of sequences that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Scheduler, Turn};
use crate::client_id::ClientId;
use crate::client_shares::ClientShares;
use crate::plan::Plan;
use crate::prompt_rows::PromptRows;
use crate::sequence::{Arrival, Sequence};

/// A sequence that needs more blocks than its client's share may be overtaken for this many times `max_wait`.
const LARGE_WAITS_LONGER: u32 = 4;

impl<A> Scheduler<A> {
    /// Gives out the step's prompt rows: first to the clients by turns, the one that was served least before the others, then what
    /// they leave.
    pub(super) fn plan_prompts(
        &mut self,
        plan: &mut Plan<A>,
        budget: usize,
        shares: &mut ClientShares,
        admit: bool,
        now: Instant,
    ) {
        let mut rows = PromptRows {
            left: budget.saturating_sub(plan.batch.rows()),
            turn: None,
            only: None,
            chunks: Vec::new(),
        };
        if !shares.is_single() {
            rows.only = self.large_that_keeps_others_out(shares, now);
            for client in self.clients_by_service(shares, now) {
                rows.turn = Some(client);
                self.continue_prefills(&mut rows, shares);
                if admit && rows.only.is_none() {
                    self.admit(&mut rows, shares, now);
                }
            }
            rows.turn = None;
        }
        self.continue_prefills(&mut rows, shares);
        if admit {
            self.admit(&mut rows, shares, now);
        }
        for (arrival, chunk) in rows.chunks {
            if let Some(sequence) = self.running.get(&arrival) {
                plan.add(arrival, sequence, chunk);
            }
        }
    }

    /// The clients with prompts. First those without a row of which a sequence has waited for `max_wait` for its first turn, by its arrival: with more
    /// clients than rows, the others' shares must not keep them out for longer. Then the least served; of equals the one that runs least.
    fn clients_by_service(&self, shares: &ClientShares, now: Instant) -> Vec<ClientId> {
        let mut overdue: BTreeMap<ClientId, Arrival> = BTreeMap::new();
        for (arrival, sequence) in &self.waiting {
            let client = sequence.client_id();
            // One that was preempted has had a turn.
            let waits = sequence.priority <= 0 && !sequence.response.is_scheduled();
            if waits && shares.running(client) == 0 && self.is_overdue(sequence, now) {
                overdue.entry(client).or_insert(*arrival);
            }
        }
        let prefills = self.running.values().filter(|s| s.in_prefill());
        let clients: BTreeSet<ClientId> = prefills
            .chain(self.waiting.values())
            .map(Sequence::client_id)
            .collect();
        let mut clients: Vec<ClientId> = clients.into_iter().collect();
        clients.sort_by_key(|client| {
            (
                overdue.get(client).copied().unwrap_or(Arrival::MAX),
                self.fair_share.client_served(*client),
                shares.running(*client),
            )
        });
        clients
    }

    /// The earliest sequence with more blocks than its client's share that has waited so long that nobody may overtake it, also those
    /// who arrived before it: their client has had its share since.
    fn large_that_keeps_others_out(&self, shares: &ClientShares, now: Instant) -> Option<Arrival> {
        let keeps_out = |(arrival, sequence): &(&Arrival, &Sequence<A>)| {
            let client = sequence.client_id();
            shares.running(client) == 0
                && shares.is_large(client, self.blocks.needed(sequence.tokens.len()))
                && !self.may_be_overtaken(**arrival, now)
        };
        let found = self.waiting.iter().find(keeps_out);
        found.map(|(arrival, _)| *arrival)
    }

    fn continue_prefills(&mut self, rows: &mut PromptRows, shares: &ClientShares) {
        let mut turns: Vec<Turn> = self
            .running
            .iter()
            .filter(|(_, sequence)| sequence.in_prefill())
            .map(|(arrival, sequence)| self.turn(*arrival, sequence, sequence.overdue, shares))
            .collect();
        turns.sort_unstable();
        for (.., arrival) in turns {
            let Some(sequence) = self.running.get(&arrival) else {
                continue;
            };
            let chunk = self.chunk(rows, arrival, sequence);
            if chunk > 0 {
                self.fair_share.charge(sequence, chunk);
                rows.give(arrival, chunk);
            }
        }
    }

    /// How many more of its pending tokens a sequence may run in this step.
    fn chunk(&self, rows: &PromptRows, arrival: Arrival, sequence: &Sequence<A>) -> usize {
        // Under a limit, the row that needs a mask is left for a later step, as a decode.
        let constrained = sequence.decoding.constraint.is_some();
        let last = usize::from(constrained && self.grammar_budget.has_limits());
        let most = (sequence.pending() - last).min(self.prefill_chunk);
        most.saturating_sub(rows.of(arrival))
            .min(rows.most(sequence))
    }

    /// Whether other clients may still overtake an overdue sequence that needs more blocks than its client's share.
    fn may_be_overtaken(&self, arrival: Arrival, now: Instant) -> bool {
        let limit = self.max_wait.saturating_mul(LARGE_WAITS_LONGER);
        self.waiting
            .get(&arrival)
            .is_some_and(|sequence| now.saturating_duration_since(sequence.arrived()) < limit)
    }

    /// Admits waiting sequences, with blocks for all of their tokens, from the prefix cache where possible. One block for
    /// each running sequence stays free: otherwise a new sequence would be preempted a few steps later.
    fn admit(&mut self, rows: &mut PromptRows, shares: &mut ClientShares, now: Instant) {
        // Clients whose first sequence does not fit.
        let mut blocked: BTreeSet<ClientId> = BTreeSet::new();
        while self.running.len() < self.max_batch && rows.left > 0 {
            let candidates = self.waiting.iter().filter(|(arrival, sequence)| {
                rows.only.is_none_or(|only| only == **arrival)
                    && rows.most(sequence) > 0
                    && !blocked.contains(&sequence.client_id())
            });
            let first = candidates
                .map(|(arrival, sequence)| {
                    let overdue = self.is_overdue(sequence, now);
                    self.turn(*arrival, sequence, overdue, shares)
                })
                .min();
            let Some((above, in_time, .., arrival)) = first else {
                return;
            };
            if above && rows.turn.is_some() {
                // Clients below their shares come first.
                return;
            }
            let Some(mut sequence) = self.waiting.remove(&arrival) else {
                return;
            };
            let cached = sequence.reuse_blocks(&self.blocks);
            let held = sequence.blocks.ids().len();
            let all = self.blocks.needed(sequence.tokens.len());
            let client = sequence.client_id();
            let may_overtake = blocked.is_empty() || shares.fits_block_share(client, all);
            let fits = may_overtake && all - held + self.running.len() <= self.blocks.free();
            if !fits
                || sequence
                    .blocks
                    .grow_to(sequence.tokens.len(), &self.blocks)
                    .is_err()
            {
                sequence.release_blocks();
                self.waiting.insert(arrival, sequence);
                let is_large = shares.is_large(client, all);
                if !(in_time || is_large && self.may_be_overtaken(arrival, now)) {
                    return;
                }
                blocked.insert(client);
                continue;
            }
            sequence.overdue = !in_time;
            sequence.admitted = now;
            self.cached_tokens += cached as u64;
            sequence.response.mark_scheduled(cached);
            let chunk = self.chunk(rows, arrival, &sequence);
            if chunk > 0 {
                self.fair_share.charge(&sequence, chunk);
            }
            rows.give(arrival, chunk);
            shares.count_admitted(&sequence);
            self.running.insert(arrival, sequence);
        }
    }
}
