//! Bounds the log-probabilities of all responses, and those of one key. A response holds them until its client has read it, so a key with
//! many requests, or with clients that read slowly, could fill the memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::RequestError;

/// The most log-probabilities of all responses that have not ended, alternatives included.
pub const MAX_HELD_LOGPROBS: usize = 4_000_000;
/// The most of one key.
pub const MAX_KEY_LOGPROBS: usize = 1_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LogprobBudget {
    /// By client; those without a key are one.
    held: Mutex<BTreeMap<Option<u64>, usize>>,
}

impl LogprobBudget {
    /// Reserves room for `count` log-probabilities of a client.
    ///
    /// # Errors
    /// [`RequestError::LogprobsInUse`].
    pub fn reserve(
        self: &Arc<Self>,
        client: Option<u64>,
        count: usize,
    ) -> Result<LogprobReservation, RequestError> {
        let reservation = |count| LogprobReservation {
            budget: Arc::clone(self),
            client,
            count,
        };
        if count == 0 {
            return Ok(reservation(0));
        }
        let mut held = self.lock();
        let all: usize = held.values().sum();
        let own = held.get(&client).copied().unwrap_or_default();
        // Without keys there is one owner, who may have everything.
        let (limit, used) = match client {
            Some(_) if own + count > MAX_KEY_LOGPROBS => (MAX_KEY_LOGPROBS, own),
            _ => (MAX_HELD_LOGPROBS, all),
        };
        if used + count > limit {
            return Err(RequestError::LogprobsInUse {
                used,
                asked: count,
                limit,
            });
        }
        *held.entry(client).or_default() += count;
        Ok(reservation(count))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<u64>, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for log-probabilities, until it is dropped.
#[derive(Debug)]
pub(crate) struct LogprobReservation {
    budget: Arc<LogprobBudget>,
    client: Option<u64>,
    count: usize,
}

impl Drop for LogprobReservation {
    fn drop(&mut self) {
        let mut held = self.budget.lock();
        if let Some(of_client) = held.get_mut(&self.client) {
            *of_client -= self.count;
            if *of_client == 0 {
                held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::MAX_LOGPROBS;

    #[test]
    fn one_key_cannot_hold_the_log_probabilities_of_others() {
        let budget = Arc::new(LogprobBudget::default());
        let fill = |client| -> Vec<LogprobReservation> {
            let reserved = (0..100).map_while(|_| budget.reserve(client, MAX_LOGPROBS).ok());
            reserved.collect()
        };
        let first = fill(Some(1));
        assert_eq!(first.len(), MAX_KEY_LOGPROBS / MAX_LOGPROBS);
        let refused = budget.reserve(Some(1), 1).unwrap_err().to_string();
        assert!(refused.contains("1000000"), "{refused}");
        // Requests without log-probabilities need no room.
        budget.reserve(Some(1), 0).unwrap();
        let others: Vec<_> = (2..5).flat_map(|client| fill(Some(client))).collect();
        assert_eq!(others.len(), 12);
        let refused = budget.reserve(Some(9), 1).unwrap_err().to_string();
        assert!(refused.contains("4000000"), "{refused}");
        drop(first);
        budget.reserve(Some(9), MAX_LOGPROBS).unwrap();
        drop(others);
        assert!(budget.lock().is_empty());
        assert_eq!(fill(None).len(), MAX_HELD_LOGPROBS / MAX_LOGPROBS);
    }
}
