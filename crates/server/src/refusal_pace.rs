//! Slows down a key whose requests are refused all the time. A refusal is cheap, but a client that repeats it as fast as it can still takes
//! a core from the steps of the engine. Beyond a burst, the key's refusals are sent at an even rate.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals of a key that are sent at once.
const MAX_BURST: u32 = 100;
/// The time between two refusals of a key beyond the burst.
const INTERVAL: Duration = Duration::from_millis(10);
/// The longest time that a refusal is held back.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub(crate) struct RefusalPace {
    /// When the key has no refusals left over. Only keys that exist are counted, so it is as small as the list of keys.
    until: Mutex<HashMap<String, Instant>>,
}

impl RefusalPace {
    /// Counts a refusal of a key, and returns how long it must be held back.
    pub fn delay(&self, key: &str, now: Instant) -> Duration {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let burst = INTERVAL * MAX_BURST;
        let Some(time) = until.get_mut(key) else {
            until.retain(|_, time| *time > now);
            until.insert(key.to_owned(), now + INTERVAL);
            return Duration::ZERO;
        };
        *time = ((*time).max(now) + INTERVAL).min(now + burst + MAX_DELAY);
        (*time).saturating_duration_since(now + burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_a_key_are_held_back_beyond_a_burst() {
        let pace = RefusalPace::default();
        let now = Instant::now();
        for _ in 0..MAX_BURST {
            assert_eq!(pace.delay("hostile", now), Duration::ZERO);
        }
        assert_eq!(pace.delay("hostile", now), INTERVAL);
        assert_eq!(pace.delay("hostile", now), 2 * INTERVAL);
        assert_eq!(pace.delay("other", now), Duration::ZERO);
        // One for each interval goes out at once.
        let later = now + 3 * INTERVAL;
        assert_eq!(pace.delay("hostile", later), Duration::ZERO);
        assert_eq!(pace.delay("hostile", later), INTERVAL);
    }

    #[test]
    fn refusal_is_held_back_for_a_second_at_most_and_quiet_keys_are_forgotten() {
        let pace = RefusalPace::default();
        let now = Instant::now();
        let longest = (0..10_000).map(|_| pace.delay("hostile", now)).max();
        assert_eq!(longest, Some(MAX_DELAY));
        assert_eq!(pace.delay("hostile", now + 2 * MAX_DELAY), Duration::ZERO);
        pace.delay("other", now + Duration::from_secs(60));
        assert_eq!(pace.until.lock().unwrap().len(), 1);
    }
}
