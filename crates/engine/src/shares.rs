//! How much each tone has been served, so that one with a hundred requests waiting leaves the others their part.
//!
//! Virtual token counters, after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): a share's counter
//! grows with the rows that run for it, the share with the lowest goes first, and one that comes back after a rest starts
//! level with the least served of those that are there, so that rest is not saved up.

use std::collections::HashMap;

use crate::prefix::Root;

/// What a row of a prompt costs.
const PROMPT_ROW: u64 = 1;
/// What a row of a decode costs: it reads all weights for few rows.
const DECODE_ROW: u64 = 2;

/// The counters, by what requests run under: each tone is one share, the base alone too.
#[derive(Default)]
pub(crate) struct Shares(HashMap<Root, Share>);

#[derive(Default)]
struct Share {
    served: u64,
    /// Its requests that wait or run.
    requests: usize,
}

impl Shares {
    /// A request of the share came.
    pub fn join(&mut self, root: &Root) {
        let floor = self.floor();
        let share = self.0.entry(Root::clone(root)).or_default();
        if share.requests == 0 {
            share.served = share.served.max(floor);
        }
        share.requests += 1;
    }

    /// A request of the share went. Counters of absent shares are kept only while they say more than that of a newcomer
    /// would.
    pub fn leave(&mut self, root: &Root) {
        if let Some(share) = self.0.get_mut(root) {
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

    /// So many rows of a request of the share run.
    pub fn charge(&mut self, root: &Root, rows: usize) {
        if let Some(share) = self.0.get_mut(root) {
            let each = if rows > 1 { PROMPT_ROW } else { DECODE_ROW };
            share.served += each * rows as u64;
        }
    }

    /// What the share has had; the lower, the sooner its turn.
    pub fn served(&self, root: &Root) -> u64 {
        self.0.get(root).map_or(0, |share| share.served)
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
        shares.charge(&root(1), 10);
        shares.charge(&root(1), 1);
        assert_eq!((shares.served(&root(1)), shares.served(&root(2))), (12, 0));
    }

    #[test]
    fn a_newcomer_starts_level_with_the_least_served_and_rest_is_not_saved_up() {
        let mut shares = Shares::default();
        shares.join(&root(1));
        shares.join(&root(2));
        shares.charge(&root(1), 100);
        shares.charge(&root(2), 40);
        shares.join(&root(3));
        assert_eq!(shares.served(&root(3)), 40);
        shares.leave(&root(2));
        shares.charge(&root(3), 50);
        shares.join(&root(2));
        assert_eq!(shares.served(&root(2)), 90);
    }

    #[test]
    fn who_had_more_than_others_has_it_still_after_a_short_absence() {
        let mut shares = Shares::default();
        shares.join(&root(1));
        shares.join(&root(2));
        shares.charge(&root(1), 100);
        shares.leave(&root(1));
        shares.join(&root(1));
        assert_eq!(shares.served(&root(1)), 100);
    }

    #[test]
    fn what_says_nothing_is_forgotten() {
        let mut shares = Shares::default();
        shares.join(&root(0));
        for n in 1..100 {
            shares.join(&root(n));
            shares.charge(&root(n), 2);
            shares.charge(&root(0), 10);
            shares.leave(&root(n));
        }
        assert_eq!(shares.0.len(), 1);
        shares.leave(&root(0));
        assert!(shares.0.is_empty());
    }
}
