//! So many a minute: a bucket that fills evenly and holds a minute's worth, so that a burst after a pause is no offence.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bucket. It may go below nothing, by what one request takes; then nobody gets anything until it has filled again.
#[derive(Debug)]
pub struct Bucket {
    per_minute: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(per_minute: u32) -> Bucket {
        let state = State {
            left: f64::from(per_minute),
            at: Instant::now(),
        };
        Bucket {
            per_minute,
            state: Mutex::new(state),
        }
    }

    /// What it holds when it is full, which is what it gets a minute.
    #[must_use]
    pub fn per_minute(&self) -> u32 {
        self.per_minute
    }

    /// Takes `amount`, if there is as much. What is more than a full bucket is given once the bucket is full, and leaves it
    /// below nothing: no request waits forever.
    ///
    /// # Errors
    /// In how long there will be as much, if nobody else takes of it.
    pub fn take(&self, amount: u64, now: Instant) -> Result<(), Duration> {
        let full = f64::from(self.per_minute);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.left = (state.left + passed * full / 60.0).min(full);
        state.at = state.at.max(now);
        let amount = amount as f64;
        let lacking = amount.min(full) - state.left;
        // Sums of small times leave a few billionths.
        if lacking > 1e-6 {
            return Err(Duration::from_secs_f64(lacking * 60.0 / full));
        }
        state.left -= amount;
        Ok(())
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, amount: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = (state.left + amount as f64).min(f64::from(self.per_minute));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_fills_evenly_and_holds_a_minute() {
        let bucket = Bucket::new(60);
        let start = Instant::now();
        assert_eq!(bucket.take(60, start), Ok(()));
        let wait = bucket.take(3, start).unwrap_err();
        assert!((wait.as_secs_f64() - 3.0).abs() < 0.01, "{wait:?}");
        assert!(bucket.take(3, start + 2 * SECOND).is_err());
        assert_eq!(bucket.take(3, start + 3 * SECOND), Ok(()));
        // After an hour there is a minute's worth and no more.
        let later = start + 3600 * SECOND;
        assert_eq!(bucket.take(60, later), Ok(()));
        assert!(bucket.take(1, later).is_err());
        bucket.give_back(5);
        assert_eq!(bucket.take(5, later), Ok(()));
        bucket.give_back(1000);
        assert_eq!(bucket.take(60, later), Ok(()));
        assert!(bucket.take(1, later).is_err());
    }

    #[test]
    fn more_than_a_minute_s_worth_is_given_once_and_paid_for() {
        let bucket = Bucket::new(60);
        let start = Instant::now();
        assert_eq!(bucket.take(120, start), Ok(()));
        let wait = bucket.take(1, start).unwrap_err();
        assert!((wait.as_secs_f64() - 61.0).abs() < 0.01, "{wait:?}");
    }
}
