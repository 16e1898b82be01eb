//! Bounds the time that one client's grammars take from the others. Masks are computed on the engine's thread between two steps, so
//! a slow grammar delays every running sequence.
//!
//! While several clients have requests, the grammars of each may take a quarter of a step's time. What they take above it is a debt:
//! until later steps have paid it, rows of that client with a grammar are left out of steps. A row's tokens do not depend on that.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client_id::ClientId;

/// The part of a step's time that one client's grammars may take: one in this many.
const PART: u32 = 4;
/// The least time that they may take in a step.
const MIN_TIME: Duration = Duration::from_millis(1);

/// The grammar time of each client.
#[derive(Debug, Default)]
pub(crate) struct GrammarBudget {
    /// What clients took and have not paid.
    debts: BTreeMap<ClientId, Duration>,
    /// What the rows of the step that is being planned are expected to take.
    planned: BTreeMap<ClientId, Duration>,
    /// How long the model took for the latest step.
    step: Duration,
    /// Whether several clients have requests.
    limits: bool,
}

impl GrammarBudget {
    /// Begins to plan a step; a step pays each client's debt by its part. With one client there is no limit.
    pub fn begin_step(&mut self, several_clients: bool) {
        self.limits = several_clients;
        self.planned.clear();
        let part = self.part();
        self.debts.retain(|_, debt| {
            *debt = debt.saturating_sub(part);
            !debt.is_zero()
        });
    }

    /// The model took so long for a step.
    pub fn observe_step(&mut self, took: Duration) {
        self.step = took;
    }

    /// Whether there is a limit in this step.
    pub fn has_limits(&self) -> bool {
        self.limits
    }

    /// Whether the step has time for a row of a client with a grammar, which is expected to take `estimate`; if it has never run, a
    /// part of the budget. If so, the time is reserved.
    pub fn reserve(&mut self, client: ClientId, estimate: Option<Duration>) -> bool {
        if !self.limits {
            return true;
        }
        let part = self.part();
        let debt = self.debts.get(&client).copied().unwrap_or_default();
        let planned = self.planned.entry(client).or_default();
        if debt + *planned >= part {
            return false;
        }
        *planned += estimate.unwrap_or(part / 2);
        true
    }

    /// Whether a row that took `latest` may run draft tokens, each of which takes a mask.
    pub fn allows_drafts(&self, latest: Option<Duration>) -> bool {
        !self.limits || latest.is_some_and(|latest| latest < self.part() / 16)
    }

    /// The grammar of a client took so long.
    pub fn charge(&mut self, client: ClientId, took: Duration) {
        *self.debts.entry(client).or_default() += took;
    }

    fn part(&self) -> Duration {
        (self.step / PART).max(MIN_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Plans steps of 40 ms with `rows` rows whose masks take `mask`, and returns the time of masks in each step.
    fn steps(rows: usize, mask: Duration, several_clients: bool) -> Vec<Duration> {
        let mut budget = GrammarBudget::default();
        let mut latest = vec![None; rows];
        let mut next = 0;
        (0..200)
            .map(|_| {
                budget.observe_step(40 * MS);
                budget.begin_step(several_clients);
                let mut took = Duration::ZERO;
                let mut ran = Vec::new();
                for n in 0..rows {
                    let row = (next + n) % rows;
                    if budget.reserve(Some(1), latest[row]) {
                        ran.push(row);
                    }
                }
                for row in &ran {
                    latest[*row] = Some(mask);
                    budget.charge(Some(1), mask);
                    took += mask;
                    next = row + 1;
                }
                took
            })
            .collect()
    }

    #[test]
    fn slow_masks_take_a_quarter_of_the_time_next_to_other_clients() {
        for mask in [2 * MS, 7 * MS, 20 * MS, 160 * MS] {
            let steps = steps(16, mask, true);
            let total: Duration = steps.iter().sum();
            assert!(total <= 200 * 10 * MS + 2 * mask, "{mask:?}: {total:?}");
            assert!(total >= 200 * 5 * MS, "{mask:?}: {total:?}");
            // Rows that have not run yet are expected to take half of the part.
            let longest = steps.iter().max().unwrap();
            assert!(*longest <= 10 * MS + 2 * mask, "{mask:?}: {longest:?}");
        }
    }

    #[test]
    fn fast_masks_and_a_client_alone_are_not_limited() {
        let fast = steps(16, MS / 10, true);
        assert!(
            fast[20..].iter().all(|took| *took == 16 * MS / 10),
            "{fast:?}"
        );
        let alone = steps(16, 20 * MS, false);
        assert!(alone.iter().all(|took| *took == 320 * MS));
    }
}
