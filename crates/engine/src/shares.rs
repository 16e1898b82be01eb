//! How much each client and each tone has been served, so that one with a hundred requests waiting leaves the others their
//! part. Clients come first, by their weights; among the requests of one client, and where nobody says who asks, tones.
//!
//! Virtual token counters, after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): a share's counter
//! grows with the rows that run for it, the share with the lowest goes first, and one that comes back after a rest starts
//! level with the least served of those that are there, so that rest is not saved up.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;

use crate::prefix::Root;
use crate::sequence::Sequence;

/// What a row of a prompt costs.
const PROMPT_ROW: u64 = 1;
/// What a row of a decode costs: it reads all weights for few rows.
const DECODE_ROW: u64 = 2;

/// What a counter grows by for a cost of 1 at a weight of 1: weights up to 100 divide it without much of a rest.
const UNIT: u64 = 1000;

/// Who among those that share the engine asks, and for how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The same for all of its requests.
    pub id: u64,
    /// Twice the weight, twice the rows, where requests wait.
    pub weight: NonZeroU32,
}

/// Both kinds of shares.
#[derive(Default)]
pub(crate) struct Served {
    /// Requests of nobody in particular are one share.
    clients: Shares<Option<u64>>,
    /// By what requests run under: each tone is one share, the base alone too.
    tones: Shares<Root>,
}

impl Served {
    /// A request came.
    pub fn join<A>(&mut self, sequence: &Sequence<A>) {
        self.clients.join(&sequence.client.map(|client| client.id));
        self.tones.join(&sequence.root);
    }

    /// A request went.
    pub fn leave<A>(&mut self, sequence: &Sequence<A>) {
        self.clients.leave(&sequence.client.map(|client| client.id));
        self.tones.leave(&sequence.root);
    }

    /// So many rows of a request run.
    pub fn charge<A>(&mut self, sequence: &Sequence<A>, rows: usize) {
        let weight = sequence.client.map_or(1, |client| client.weight.get());
        let id = sequence.client.map(|client| client.id);
        self.clients.charge(&id, rows, weight);
        self.tones.charge(&sequence.root, rows, 1);
    }

    /// What the request's client has had, and its tone; the lower, the sooner its turn.
    pub fn of<A>(&self, sequence: &Sequence<A>) -> (u64, u64) {
        let id = sequence.client.map(|client| client.id);
        (self.clients.served(&id), self.tones.served(&sequence.root))
    }
}

/// The counters of one kind of shares.
struct Shares<K>(HashMap<K, Share>);

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Shares(HashMap::new())
    }
}

#[derive(Default)]
struct Share {
    served: u64,
    /// Its requests that wait or run.
    requests: usize,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// A request of the share came.
    fn join(&mut self, key: &K) {
        let floor = self.floor();
        let share = self.0.entry(key.clone()).or_default();
        if share.requests == 0 {
            share.served = share.served.max(floor);
        }
        share.requests += 1;
    }

    /// A request of the share went. Counters of absent shares are kept only while they say more than that of a newcomer
    /// would.
    fn leave(&mut self, key: &K) {
        if let Some(share) = self.0.get_mut(key) {
            share.requests = share.requests.saturating_sub(1);
        }
        if self.0.values().all(|share| share.requests == 0) {
            self.0.clear();
            return;
        }
        let floor = self.floor();
        self.0
            .retain(|_, share| share.requests > 0 || share.served > floor);
    }

    /// So many rows of a request of the share run, at this weight.
    fn charge(&mut self, key: &K, rows: usize, weight: u32) {
        if let Some(share) = self.0.get_mut(key) {
            let each = if rows > 1 { PROMPT_ROW } else { DECODE_ROW };
            share.served += each * rows as u64 * UNIT / u64::from(weight);
        }
    }

    /// What the share has had; the lower, the sooner its turn.
    fn served(&self, key: &K) -> u64 {
        self.0.get(key).map_or(0, |share| share.served)
    }

    /// The least served of those that have requests here.
    fn floor(&self) -> u64 {
        let present = self.0.values().filter(|share| share.requests > 0);
        present.map(|share| share.served).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::AdapterId;

    fn root(n: u8) -> Root {
        [(AdapterId([n; 32]), 0)].into_iter().collect()
    }

    #[test]
    fn rows_count_and_a_decode_counts_twice() {
        let mut shares = Shares::default();
        shares.join(&root(1));
        shares.charge(&root(1), 10, 1);
        shares.charge(&root(1), 1, 1);
        assert_eq!(
            (shares.served(&root(1)), shares.served(&root(2))),
            (12 * UNIT, 0)
        );
    }

    #[test]
    fn a_larger_weight_pays_less() {
        let mut shares = Shares::default();
        shares.join(&1);
        shares.charge(&1, 30, 3);
        assert_eq!(shares.served(&1), 10 * UNIT);
    }

    #[test]
    fn a_newcomer_starts_level_with_the_least_served_and_rest_is_not_saved_up() {
        let mut shares = Shares::default();
        shares.join(&root(1));
        shares.join(&root(2));
        shares.charge(&root(1), 100, 1);
        shares.charge(&root(2), 40, 1);
        shares.join(&root(3));
        assert_eq!(shares.served(&root(3)), 40 * UNIT);
        shares.leave(&root(2));
        shares.charge(&root(3), 50, 1);
        shares.join(&root(2));
        assert_eq!(shares.served(&root(2)), 90 * UNIT);
    }

    #[test]
    fn who_had_more_than_others_has_it_still_after_a_short_absence() {
        let mut shares = Shares::default();
        shares.join(&root(1));
        shares.join(&root(2));
        shares.charge(&root(1), 100, 1);
        shares.leave(&root(1));
        shares.join(&root(1));
        assert_eq!(shares.served(&root(1)), 100 * UNIT);
    }

    #[test]
    fn what_says_nothing_is_forgotten() {
        let mut shares = Shares::default();
        shares.join(&root(0));
        for n in 1..100 {
            shares.join(&root(n));
            shares.charge(&root(n), 2, 1);
            shares.charge(&root(0), 10, 1);
            shares.leave(&root(n));
        }
        assert_eq!(shares.0.len(), 1);
        shares.leave(&root(0));
        assert!(shares.0.is_empty());
    }
}
