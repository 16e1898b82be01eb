//! One buffer for the adapters of all tones, so that one launch reads any of them. It grows when it is full.

use crate::executor::{Buffer, Executor};
use kernels_common::error::KernelError;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const FIRST_WORDS: u64 = 1 << 20;

pub(crate) struct Heap {
    executor: Arc<Executor>,
    state: Mutex<State>,
}

struct State {
    buffer: Buffer,
    /// Free ranges of words: start and length.
    free: BTreeMap<u64, u64>,
    words: u64,
}

/// Words of the heap, freed when dropped.
pub(crate) struct Region {
    heap: Arc<Heap>,
    words: Range<u64>,
}

impl Region {
    pub(crate) fn words(&self) -> Range<u64> {
        self.words.clone()
    }

    /// Writes words of this region.
    ///
    /// # Panics
    /// Words outside it.
    pub(crate) fn write(&self, at: u64, words: &[u32]) {
        assert!(at >= self.words.start && at + words.len() as u64 <= self.words.end);
        // The lock: nobody copies the heap meanwhile.
        let state = self.heap.lock();
        self.heap.executor.write(&state.buffer, 4 * at, words);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut state = self.heap.lock();
        let (mut start, mut end) = (self.words.start, self.words.end);
        if start == end {
            return;
        }
        if let Some((&before, &length)) = state.free.range(..start).next_back()
            && before + length == start
        {
            state.free.remove(&before);
            start = before;
        }
        if let Some(length) = state.free.remove(&end) {
            end += length;
        }
        state.free.insert(start, end - start);
    }
}

impl Heap {
    pub(crate) fn new(executor: Arc<Executor>) -> Result<Heap, KernelError> {
        let words = FIRST_WORDS.min(executor.largest_buffer() / 4);
        let state = Mutex::new(State {
            buffer: executor.buffer(4 * words)?,
            free: BTreeMap::from([(0, words)]),
            words,
        });
        Ok(Heap { executor, state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffer as it is now. One that was replaced still has the adapters that were loaded then.
    pub(crate) fn buffer(&self) -> Buffer {
        self.lock().buffer.clone()
    }

    /// Room for `words` words.
    ///
    /// # Errors
    /// The card has no memory, or a buffer cannot be so large.
    pub(crate) fn allocate(self: &Arc<Heap>, words: u64) -> Result<Region, KernelError> {
        let mut state = self.lock();
        let fits = |state: &State| {
            let found = state.free.iter().find(|(_, length)| **length >= words);
            found.map(|(start, length)| (*start, *length))
        };
        if fits(&state).is_none() {
            self.grow(&mut state, words)?;
        }
        let Some((start, length)) = fits(&state) else {
            return Err(self.full(words));
        };
        state.free.remove(&start);
        if length > words {
            state.free.insert(start + words, length - words);
        }
        Ok(Region {
            heap: self.clone(),
            words: start..start + words,
        })
    }

    fn full(&self, words: u64) -> KernelError {
        KernelError::DeviceMemory {
            bytes: 4 * words,
            reason: format!(
                "adapters share one buffer, which has at most {} bytes on this device; set --adapter-memory below it",
                self.executor.largest_buffer()
            ),
        }
    }

    fn grow(&self, state: &mut State, words: u64) -> Result<(), KernelError> {
        let most = self.executor.largest_buffer() / 4;
        let larger = (state.words + words.max(state.words)).min(most);
        if larger <= state.words {
            return Err(self.full(words));
        }
        let buffer = self.executor.buffer(4 * larger)?;
        self.executor.copy(&state.buffer, &buffer, 4 * state.words);
        let old = state.words;
        state.buffer = buffer;
        state.words = larger;
        match state.free.last_entry() {
            Some(mut last) if last.key() + last.get() == old => *last.get_mut() += larger - old,
            _ => {
                state.free.insert(old, larger - old);
            }
        }
        Ok(())
    }
}
