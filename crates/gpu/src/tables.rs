//! Words that launches look up by row or slot: lists of row numbers, and the packs of a linear layer's slots. The same ones
//! return in every step, so each is written once.

use crate::executor::{Buffer, Executor};
use kernels_common::error::KernelError;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

const WORDS: usize = 1 << 18;

pub(crate) struct Tables(Mutex<State>);

struct State {
    buffer: Buffer,
    at: usize,
    placed: HashMap<Vec<u32>, u32>,
}

impl Tables {
    pub(crate) fn new(executor: &Executor) -> Result<Tables, KernelError> {
        Ok(Tables(Mutex::new(State {
            buffer: executor.buffer(4 * WORDS as u64)?,
            at: 0,
            placed: HashMap::new(),
        })))
    }

    /// The buffer that has the words, and where.
    ///
    /// # Panics
    /// The card has no memory for them.
    pub(crate) fn place(&self, executor: &Executor, words: Vec<u32>) -> (Buffer, u32) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&at) = state.placed.get(&words) {
            return (state.buffer.clone(), at);
        }
        if state.at + words.len() > WORDS {
            // Recorded launches may still read the old one.
            let bytes = 4 * words.len().max(WORDS) as u64;
            state.buffer = executor.buffer(bytes).unwrap_or_else(|e| panic!("{e}"));
            state.at = 0;
            state.placed.clear();
        }
        let at = state.at;
        executor.write_unused(&state.buffer, 4 * at as u64, &words);
        state.at += words.len();
        state.placed.insert(words, at as u32);
        (state.buffer.clone(), at as u32)
    }
}
