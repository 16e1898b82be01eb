//! Statistics for people and metrics: what the engine holds now, and what it has done since it started.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::event::FinishReason;

/// A snapshot, taken at a step boundary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests accepted and not ended: without their adapters yet, in the channel, waiting or running.
    pub in_flight: usize,
    /// Requests waiting to be scheduled, including preempted ones.
    pub waiting: usize,
    /// Requests with KV blocks, in prefill or decode.
    pub running: usize,
    /// All KV blocks.
    pub blocks: usize,
    /// KV blocks that no request holds, including those with a cached prefix.
    pub free_blocks: usize,
    /// Free KV blocks with a cached prefix.
    pub cached_blocks: usize,
    /// The adapter pool.
    pub adapters: AdapterStats,
    /// Steps that the model ran, including failed ones.
    pub steps: u64,
    /// Rows that the model ran.
    pub rows: u64,
    /// Rows without a sampled token: prompts except their last row, and tokens computed again after a preemption.
    pub prefill_rows: u64,
    /// Tokens that came from the prefix cache and did not run.
    pub cached_tokens: u64,
    /// Cached blocks that were evicted for another content.
    pub cache_evictions: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Rows of draft tokens.
    pub drafted_tokens: u64,
    /// Draft tokens that were accepted: tokens that took no further step.
    pub accepted_tokens: u64,
    /// Running requests that released their blocks to a more urgent one, to be computed again later.
    pub preemptions: u64,
    /// Time spent in the model.
    pub model_time: Duration,
    /// The recent mean time between the ends of requests; zero if fewer than two have ended.
    pub end_interval: Duration,
    /// Requests that ended on a stop token.
    pub finished_stop: u64,
    /// Requests that ended at `max_new_tokens`.
    pub finished_length: u64,
    /// Requests whose deadline passed.
    pub finished_deadline: u64,
    /// Requests that were cancelled.
    pub finished_cancelled: u64,
    /// Requests that ended in an error of the model or of their grammar.
    pub finished_error: u64,
}

/// Statistics of the adapter pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterStats {
    /// Adapters in memory, including removed ones that are still leased.
    pub resident: usize,
    /// Adapters that have reserved room and load, or will load next.
    pub loading: usize,
    /// Bytes of resident and loading adapters.
    pub bytes: u64,
    /// Bytes that the pool may take.
    pub limit: u64,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Adapters that were in memory when their request arrived, counted for each request.
    pub hits: u64,
    /// Adapters that were not.
    pub misses: u64,
    /// Adapters that were evicted for others.
    pub evictions: u64,
    /// Requests that had to wait for room.
    pub waits: u64,
    /// Loads that failed or were given up.
    pub load_failures: u64,
    /// Bytes of files read.
    pub bytes_read: u64,
    /// How long it took to load an adapter: to read and pack it.
    pub loads: LoadTimes,
}

/// A histogram of times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// The number of times in each bucket: at most a bound of [`LoadTimes::BOUNDS`] and above the one before. The last bucket
    /// has no bound.
    pub counts: [u64; LoadTimes::BOUNDS.len() + 1],
    /// The sum of all times.
    pub total: Duration,
    /// The latest.
    pub last: Duration,
    /// The longest.
    pub longest: Duration,
}

impl LoadTimes {
    /// The upper bounds of the buckets, in seconds.
    pub const BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

    /// The number of all times.
    pub fn count_all(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(crate) fn count(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = Self::BOUNDS.iter().position(|bound| seconds <= *bound);
        self.counts[bucket.unwrap_or(Self::BOUNDS.len())] += 1;
        self.total += took;
        self.last = took;
        self.longest = self.longest.max(took);
    }
}

impl Stats {
    /// The estimated time until half of the waiting requests have been scheduled.
    pub fn retry_after(&self) -> Duration {
        let half = u32::try_from(self.waiting.div_ceil(2)).unwrap_or(u32::MAX);
        self.end_interval.saturating_mul(half)
    }

    /// A request ended `interval` after the one before it.
    pub(crate) fn count_interval(&mut self, interval: Duration) {
        self.end_interval = match self.end_interval {
            Duration::ZERO => interval,
            mean => (mean * 7 + interval) / 8,
        };
    }

    pub(crate) fn count_finished(&mut self, reason: &FinishReason) {
        *match reason {
            FinishReason::Stop => &mut self.finished_stop,
            FinishReason::Length => &mut self.finished_length,
            FinishReason::Deadline => &mut self.finished_deadline,
            FinishReason::Cancelled => &mut self.finished_cancelled,
            FinishReason::Constraint(_) | FinishReason::Error(_) => &mut self.finished_error,
        } += 1;
    }
}

/// The statistics that the engine's thread writes and handles read.
#[derive(Default)]
pub(crate) struct SharedStats(Mutex<Stats>);

impl SharedStats {
    pub fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
