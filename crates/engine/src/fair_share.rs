//! Fair share: how much each client and each adapter set has been served, so that one with a hundred waiting requests leaves
//! the others their part. Clients count first, by their weights; adapter sets count among the requests of one client, and
//! among requests without a client.
//!
//! Virtual token counters, after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): a counter grows with
//! the rows that run for its owner, and the owner with the lowest goes first. One that returns after a pause starts at the
//! lowest counter of those that have requests, so a pause is not saved up.

use std::collections::HashMap;
use std::hash::Hash;

use crate::cache_scope::AdapterSet;
use crate::client_id::ClientId;
use crate::sequence::Sequence;

/// The cost of a prompt row.
const PROMPT_ROW: u64 = 1;
/// The cost of a decode row: it reads all weights for few rows.
const DECODE_ROW: u64 = 2;

/// What a counter grows by for a cost of 1 at a weight of 1: large enough for a division by weights up to 100.
const UNIT: u64 = 1000;

/// The counters of clients and of adapter sets.
#[derive(Default)]
pub(crate) struct FairShare {
    /// Requests without a client share one counter.
    clients: Counters<ClientId>,
    /// The base without adapters has a counter too.
    adapter_sets: Counters<AdapterSet>,
}

impl FairShare {
    /// A request arrived.
    pub fn join<A>(&mut self, sequence: &Sequence<A>) {
        self.clients.join(&sequence.client_id());
        self.adapter_sets.join(&sequence.cache_scope.adapters);
    }

    /// A request ended.
    pub fn leave<A>(&mut self, sequence: &Sequence<A>) {
        self.clients.leave(&sequence.client_id());
        self.adapter_sets.leave(&sequence.cache_scope.adapters);
    }

    /// `rows` rows of a request run.
    pub fn charge<A>(&mut self, sequence: &Sequence<A>, rows: usize) {
        let weight = sequence.client.map_or(1, |client| client.weight.get());
        let id = sequence.client_id();
        self.clients.charge(&id, rows, weight);
        self.adapter_sets
            .charge(&sequence.cache_scope.adapters, rows, 1);
    }

    /// A request took as much of the engine's time as `rows` rows of prompts.
    pub fn charge_time<A>(&mut self, sequence: &Sequence<A>, rows: usize) {
        if rows > 0 {
            // Two rows or more are charged as a prompt.
            self.charge(sequence, rows.max(2));
        }
    }

    /// The counter of a client; the lower goes first.
    pub fn client_served(&self, client: ClientId) -> u64 {
        self.clients.served(&client)
    }

    /// The counters of the request's client and of its adapter set; the lower goes first.
    pub fn served<A>(&self, sequence: &Sequence<A>) -> (u64, u64) {
        let id = sequence.client_id();
        (
            self.clients.served(&id),
            self.adapter_sets.served(&sequence.cache_scope.adapters),
        )
    }
}

/// One counter for each key.
struct Counters<K>(HashMap<K, Counter>);

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Counters(HashMap::new())
    }
}

#[derive(Default)]
struct Counter {
    served: u64,
    /// Requests that wait or run.
    requests: usize,
}

impl<K: Hash + Eq + Clone> Counters<K> {
    /// A request of `key` arrived.
    fn join(&mut self, key: &K) {
        let floor = self.floor();
        let counter = self.0.entry(key.clone()).or_default();
        if counter.requests == 0 {
            counter.served = counter.served.max(floor);
        }
        counter.requests += 1;
    }

    /// A request of `key` ended. The counter of a key without requests is kept only while it is above that of a newcomer.
    fn leave(&mut self, key: &K) {
        if let Some(counter) = self.0.get_mut(key) {
            counter.requests = counter.requests.saturating_sub(1);
        }
        if self.0.values().all(|counter| counter.requests == 0) {
            self.0.clear();
            return;
        }
        let floor = self.floor();
        self.0
            .retain(|_, counter| counter.requests > 0 || counter.served > floor);
    }

    /// `rows` rows of a request of `key` run, at this weight.
    fn charge(&mut self, key: &K, rows: usize, weight: u32) {
        if let Some(counter) = self.0.get_mut(key) {
            let each = if rows > 1 { PROMPT_ROW } else { DECODE_ROW };
            counter.served += each * rows as u64 * UNIT / u64::from(weight);
        }
    }

    /// The counter of `key`; the lower goes first.
    fn served(&self, key: &K) -> u64 {
        self.0.get(key).map_or(0, |counter| counter.served)
    }

    /// The lowest counter of the keys that have requests.
    fn floor(&self) -> u64 {
        let present = self.0.values().filter(|counter| counter.requests > 0);
        present.map(|counter| counter.served).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter_id::AdapterId;

    fn adapters(n: u8) -> AdapterSet {
        [(AdapterId([n; 32]), 0)].into_iter().collect()
    }

    #[test]
    fn decode_row_costs_twice_a_prompt_row() {
        let mut counters = Counters::default();
        counters.join(&adapters(1));
        counters.charge(&adapters(1), 10, 1);
        counters.charge(&adapters(1), 1, 1);
        assert_eq!(
            (counters.served(&adapters(1)), counters.served(&adapters(2))),
            (12 * UNIT, 0)
        );
    }

    #[test]
    fn counter_grows_less_for_a_larger_weight() {
        let mut counters = Counters::default();
        counters.join(&1);
        counters.charge(&1, 30, 3);
        assert_eq!(counters.served(&1), 10 * UNIT);
    }

    #[test]
    fn newcomer_starts_at_the_lowest_counter() {
        let mut counters = Counters::default();
        counters.join(&adapters(1));
        counters.join(&adapters(2));
        counters.charge(&adapters(1), 100, 1);
        counters.charge(&adapters(2), 40, 1);
        counters.join(&adapters(3));
        assert_eq!(counters.served(&adapters(3)), 40 * UNIT);
        counters.leave(&adapters(2));
        counters.charge(&adapters(3), 50, 1);
        counters.join(&adapters(2));
        assert_eq!(counters.served(&adapters(2)), 90 * UNIT);
    }

    #[test]
    fn counter_above_the_lowest_survives_a_short_absence() {
        let mut counters = Counters::default();
        counters.join(&adapters(1));
        counters.join(&adapters(2));
        counters.charge(&adapters(1), 100, 1);
        counters.leave(&adapters(1));
        counters.join(&adapters(1));
        assert_eq!(counters.served(&adapters(1)), 100 * UNIT);
    }

    #[test]
    fn counters_that_no_longer_matter_are_dropped() {
        let mut counters = Counters::default();
        counters.join(&adapters(0));
        for n in 1..100 {
            counters.join(&adapters(n));
            counters.charge(&adapters(n), 2, 1);
            counters.charge(&adapters(0), 10, 1);
            counters.leave(&adapters(n));
        }
        assert_eq!(counters.0.len(), 1);
        counters.leave(&adapters(0));
        assert!(counters.0.is_empty());
    }
}
