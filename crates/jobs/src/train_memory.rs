//! The memory of training. It has a limit, and one run or one measured step at a time has all of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::Duration;

use base::memory::{self, AvailableMemory, MemoryLimit};

use crate::error::{EvaluationMemoryError, JobError};

/// Memory of the adapters of an evaluation, in bytes of their files: while losses are computed, each is in memory in f32, twice, and
/// packed, which are two bytes of a 16-bit file's each.
const EVALUATION_COPIES: u64 = 6;
/// An evaluation that needs no more, in bytes, does not count.
const FREE_EVALUATION: u64 = 256 << 20;
/// How often a waiting thread looks whether it is its turn.
const POLL: Duration = Duration::from_millis(20);

/// A lock whose waiting threads can be stopped.
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<()>);

impl Turn {
    /// Takes the lock; `None` if another thread has it.
    pub fn try_take(&self) -> Option<MutexGuard<'_, ()>> {
        match self.0.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// [`JobError::Stopped`] once `stop` is set.
    pub fn take(&self, stop: &AtomicBool) -> Result<MutexGuard<'_, ()>, JobError> {
        loop {
            if let Some(turn) = self.try_take() {
                return Ok(turn);
            }
            if stop.load(Ordering::Relaxed) {
                return Err(JobError::Stopped);
            }
            thread::sleep(POLL);
        }
    }
}

/// The memory of training, in addition to the encoded rows.
#[derive(Debug)]
pub(crate) struct TrainMemory {
    limit: u64,
    /// Held by the run that is trained, or the step that is measured.
    pub turn: Turn,
}

impl TrainMemory {
    /// Memory of `limit` bytes.
    pub fn new(limit: u64) -> TrainMemory {
        TrainMemory {
            limit,
            turn: Turn::default(),
        }
    }

    /// The turn of an evaluation whose adapters have `file_bytes` bytes in their files; none if they need little memory. It does not wait
    /// for a job, because evaluations of other keys would wait behind it.
    ///
    /// # Errors
    /// They need more than training has, or a job has it.
    pub fn take_for_evaluation(
        &self,
        file_bytes: u64,
    ) -> Result<Option<MutexGuard<'_, ()>>, EvaluationMemoryError> {
        let needed = file_bytes.saturating_mul(EVALUATION_COPIES);
        if needed <= FREE_EVALUATION {
            return Ok(None);
        }
        let available = self.available();
        if needed > available.bytes {
            return Err(EvaluationMemoryError::TooLarge {
                needed,
                available: available.bytes,
                whose: available.limit.description(),
            });
        }
        match self.turn.try_take() {
            Some(turn) => Ok(Some(turn)),
            None => Err(EvaluationMemoryError::InUse { needed }),
        }
    }

    /// What a run may take: the limit, or what the machine has left if that is less.
    pub fn available(&self) -> AvailableMemory {
        let limit = AvailableMemory {
            bytes: self.limit,
            limit: MemoryLimit::TrainMemory,
        };
        match memory::available() {
            Some(left) if left.bytes < limit.bytes => left,
            _ => limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_the_flag_or_what_the_machine_has_left() {
        let small = TrainMemory::new(1 << 20).available();
        assert_eq!(
            (small.bytes, small.limit),
            (1 << 20, MemoryLimit::TrainMemory)
        );
        if let Some(left) = memory::available() {
            let all = TrainMemory::new(u64::MAX).available();
            assert_eq!(all.limit, left.limit);
        }
    }

    #[test]
    fn large_evaluation_takes_the_memory_of_training_or_is_refused() {
        let memory = TrainMemory::new(1 << 30);
        let take = |mebibytes: u64| memory.take_for_evaluation(mebibytes << 20);
        let job = memory.turn.try_take().unwrap();
        assert!(take(42).unwrap().is_none());
        let error = take(60).unwrap_err().to_string();
        assert!(
            error.contains("need 360 MiB") && error.contains("a training job has"),
            "{error}"
        );
        drop(job);
        let evaluation = take(60).unwrap().unwrap();
        assert!(memory.turn.try_take().is_none());
        drop(evaluation);
        let error = take(300).unwrap_err().to_string();
        assert!(
            error.contains("need 1800 MiB")
                && error.contains("1024 MiB are allowed by --train-memory"),
            "{error}"
        );
    }

    #[test]
    fn one_thread_at_a_time_has_the_turn_and_a_waiting_one_can_be_stopped() {
        let turn = Turn::default();
        let held = turn.try_take().unwrap();
        assert!(turn.try_take().is_none());
        let stopped = turn.take(&AtomicBool::new(true));
        assert!(matches!(stopped, Err(JobError::Stopped)));
        drop(held);
        drop(turn.take(&AtomicBool::new(false)).unwrap());
    }
}
