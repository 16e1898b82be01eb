//! Numbers for people and metrics: what the engine holds now, and what it has done since it started.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::event::FinishReason;

/// A snapshot, taken at a step boundary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests submitted and not ended: in the channel, waiting or running.
    pub in_flight: usize,
    /// Requests waiting to be taken up, preempted ones included.
    pub waiting: usize,
    /// Requests with KV blocks, in prefill or decode.
    pub running: usize,
    /// KV blocks in all.
    pub blocks: usize,
    /// KV blocks that nobody holds, those with a cached prefix included.
    pub free_blocks: usize,
    /// Of those, the ones that hold what an earlier request computed.
    pub cached_blocks: usize,
    /// The adapter pool.
    pub adapters: AdapterStats,
    /// Steps that the model ran, failed ones included.
    pub steps: u64,
    /// Rows that the model ran.
    pub rows: u64,
    /// Rows that gave no token: prompts but for their last, and what is computed again after a preemption.
    pub prefill_rows: u64,
    /// Rows that did not run, as the prefix cache had their blocks.
    pub cached_tokens: u64,
    /// Times that a cached block was given to another content.
    pub cache_evictions: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Rows that were guesses of tokens to come.
    pub drafted_tokens: u64,
    /// Those of them that were right: tokens that took no step of their own.
    pub accepted_tokens: u64,
    /// Times that a running request gave its blocks up to an older one, to be recomputed later.
    pub preemptions: u64,
    /// Time spent in the model.
    pub model_time: Duration,
    /// The mean time between the ends of requests, of late; zero if fewer than two have ended.
    pub end_interval: Duration,
    /// Requests that ended on a stop token.
    pub finished_stop: u64,
    /// Requests that ended at `max_new_tokens`.
    pub finished_length: u64,
    /// Requests whose deadline passed.
    pub finished_deadline: u64,
    /// Requests that were cancelled.
    pub finished_cancelled: u64,
    /// Requests that the model failed.
    pub finished_error: u64,
}

/// The adapter pool's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterStats {
    /// Adapters in memory, removed ones that are still leased included.
    pub resident: usize,
    /// Adapters that have room and are being read, or will be next.
    pub loading: usize,
    /// Bytes of both.
    pub bytes: u64,
    /// Bytes that the pool may take.
    pub limit: u64,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Adapters of requests that were in memory when the request came, counted for each request.
    pub hits: u64,
    /// Those that were not.
    pub misses: u64,
    /// Adapters that made room for others.
    pub evictions: u64,
    /// Times that a request had to wait for room.
    pub waits: u64,
    /// Reads that came to nothing.
    pub load_failures: u64,
    /// Bytes of files read.
    pub bytes_read: u64,
    /// How long it took to read and pack an adapter.
    pub loads: LoadTimes,
}

/// A histogram of times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// How many took no longer than each of [`LoadTimes::BOUNDS`] and longer than the one before; the last: longer than all.
    pub counts: [u64; LoadTimes::BOUNDS.len() + 1],
    /// All together.
    pub total: Duration,
    /// The latest.
    pub last: Duration,
    /// The longest.
    pub longest: Duration,
}

impl LoadTimes {
    /// Seconds.
    pub const BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

    /// How many there were.
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
    /// In how long half of those who wait now will probably have been taken up.
    pub fn retry_after(&self) -> Duration {
        let half = u32::try_from(self.waiting.div_ceil(2)).unwrap_or(u32::MAX);
        self.end_interval.saturating_mul(half)
    }

    /// A request ended so long after the one before it.
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
            FinishReason::Error(_) => &mut self.finished_error,
        } += 1;
    }
}

/// Where the engine's thread writes its numbers and handles read them.
#[derive(Default)]
pub(crate) struct Board(Mutex<Stats>);

impl Board {
    pub fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
