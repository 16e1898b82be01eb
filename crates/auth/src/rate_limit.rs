//! Limits per minute, as a token bucket: it fills evenly and holds one minute's amount, so a burst after a pause is allowed.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A token limiter. One large request may take it below zero; the next requests then wait until it has filled again.
#[derive(Debug)]
pub struct RateLimiter {
    per_minute: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: f64,
    at: Instant,
}

impl RateLimiter {
    /// A full limiter.
    #[must_use]
    pub fn new(per_minute: u32) -> RateLimiter {
        let state = State {
            left: f64::from(per_minute),
            at: Instant::now(),
        };
        RateLimiter {
            per_minute,
            state: Mutex::new(state),
        }
    }

    /// The limit: what it holds when it is full, and what it gains a minute.
    #[must_use]
    pub fn per_minute(&self) -> u32 {
        self.per_minute
    }

    /// Takes `amount` if the bucket holds it. An amount above the limit is granted when the bucket is full and takes it below zero, so
    /// that no request waits forever.
    ///
    /// # Errors
    /// How long until the bucket holds the amount, if nobody else takes from it.
    pub fn try_acquire(&self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.try_acquire_more(0, amount, now)
    }

    /// [`RateLimiter::try_acquire`] for a request that has taken `taken` already: both together count as one amount.
    ///
    /// # Errors
    /// As [`RateLimiter::try_acquire`].
    pub fn try_acquire_more(&self, taken: u64, amount: u64, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(&mut state, taken, amount, now)?;
        state.left -= amount as f64;
        Ok(())
    }

    /// Whether [`RateLimiter::try_acquire_more`] would succeed now. Takes nothing.
    ///
    /// # Errors
    /// As [`RateLimiter::try_acquire`].
    pub fn has_room(&self, taken: u64, amount: u64, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(&mut state, taken, amount, now)
    }

    fn check(
        &self,
        state: &mut State,
        taken: u64,
        amount: u64,
        now: Instant,
    ) -> Result<(), Duration> {
        let full = f64::from(self.per_minute);
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.left = (state.left + passed * full / 60.0).min(full);
        state.at = state.at.max(now);
        // The bucket refills while the request is read.
        let lacking = (amount as f64).min(full - taken as f64) - state.left;
        // Sums of short times have rounding errors.
        if lacking > 1e-6 {
            return Err(Duration::from_secs_f64(lacking * 60.0 / full));
        }
        Ok(())
    }

    /// Returns what was taken and not used.
    pub fn refund(&self, amount: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = (state.left + amount as f64).min(f64::from(self.per_minute));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bucket_fills_evenly_and_holds_one_minute() {
        let limiter = RateLimiter::new(60);
        let start = Instant::now();
        assert_eq!(limiter.try_acquire(60, start), Ok(()));
        let wait = limiter.try_acquire(3, start).unwrap_err();
        assert!((wait.as_secs_f64() - 3.0).abs() < 0.01, "{wait:?}");
        assert!(limiter.try_acquire(3, start + 2 * SECOND).is_err());
        assert_eq!(limiter.try_acquire(3, start + 3 * SECOND), Ok(()));
        // After an hour it holds one minute's amount and no more.
        let later = start + 3600 * SECOND;
        assert_eq!(limiter.try_acquire(60, later), Ok(()));
        assert!(limiter.try_acquire(1, later).is_err());
        limiter.refund(5);
        assert_eq!(limiter.try_acquire(5, later), Ok(()));
        limiter.refund(1000);
        assert_eq!(limiter.try_acquire(60, later), Ok(()));
        assert!(limiter.try_acquire(1, later).is_err());
    }

    #[test]
    fn asking_for_room_takes_nothing() {
        let limiter = RateLimiter::new(60);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(limiter.has_room(0, 60, start), Ok(()));
        }
        assert_eq!(limiter.try_acquire(59, start), Ok(()));
        assert_eq!(
            limiter.has_room(0, 2, start),
            Err(limiter.try_acquire(2, start).unwrap_err())
        );
    }

    #[test]
    fn amount_above_the_limit_is_granted_once_and_delays_the_next() {
        let limiter = RateLimiter::new(60);
        let start = Instant::now();
        assert_eq!(limiter.try_acquire(120, start), Ok(()));
        let wait = limiter.try_acquire(1, start).unwrap_err();
        assert!((wait.as_secs_f64() - 61.0).abs() < 0.01, "{wait:?}");
    }
}
