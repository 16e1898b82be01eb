//! A model without weights, for tests of the engine: it runs thousands of steps a second and checks every batch.
//!
//! Its keys and values are a hash chain over (token, adapters and scales), stored slot by slot in the batch's blocks; its
//! logits are random numbers seeded by the end of the chain. So one wrong block, a missing or repeated prefill, or a row with
//! another row's adapter changes every later logit. Reading a slot that was never written, or by another sequence, panics.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::{Batch, Candidates, Limits, Logits, Runner, SequenceRows};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// An adapter: a number that changes every logit.
#[derive(Debug, PartialEq, Eq)]
pub struct FakeAdapter(pub u64);

/// How a [`FakeModel`] fails in a step that has a chosen token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `run` panics.
    Panic,
    /// `run` returns an error.
    Error,
    /// The logits of the token's sequence are NaN.
    NotNumbers,
    /// `run` returns one logit too few.
    TooFewLogits,
}

/// One executed step, as the model saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSeen {
    /// (tokens past, rows) of each sequence, in the plan's order.
    pub sequences: Vec<(usize, usize)>,
    /// The token of each row.
    pub tokens: Vec<u32>,
    /// Distinct adapters.
    pub slots: usize,
    /// Rows of logits that it could give as candidates.
    pub candidate_rows: usize,
}

/// A model without weights; see the module.
pub struct FakeModel {
    limits: Limits,
    slots: Vec<Option<Slot>>,
    faults: Vec<(u32, Fault)>,
    gate: Option<Arc<GateInner>>,
    row_time: Duration,
    step_time: Duration,
    candidates: bool,
    seen: Arc<Mutex<Vec<StepSeen>>>,
}

/// The keys and values of one token.
#[derive(Clone, Copy, Debug)]
struct Slot {
    position: usize,
    /// The chain before this token.
    before: u64,
    /// The chain after this token.
    after: u64,
}

const START: u64 = 0x5eed;

impl FakeModel {
    /// A model of these sizes, its blocks unwritten.
    pub fn new(limits: Limits) -> Self {
        FakeModel {
            limits,
            slots: vec![None; limits.blocks * limits.block_tokens],
            faults: Vec::new(),
            gate: None,
            row_time: Duration::ZERO,
            step_time: Duration::ZERO,
            candidates: false,
            seen: Arc::default(),
        }
    }

    /// Makes each row of a step take `row_time`.
    #[must_use]
    pub fn with_row_time(mut self, row_time: Duration) -> Self {
        self.row_time = row_time;
        self
    }

    /// Makes each step take `step_time`.
    #[must_use]
    pub fn with_step_time(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }

    /// Gives no more of a row than the candidates that are needed, as a graphics card does.
    #[must_use]
    pub fn with_candidates(mut self) -> Self {
        self.candidates = true;
        self
    }

    /// Fails with `fault` in every step that has `token` in a row. Its logit is always -inf, so it is never sampled.
    #[must_use]
    pub fn with_fault(mut self, token: u32, fault: Fault) -> Self {
        self.faults.push((token, fault));
        self
    }

    /// Holds every step until the gate lets it through.
    #[must_use]
    pub fn gated(mut self) -> (Self, Gate) {
        let inner = Arc::new(GateInner::default());
        self.gate = Some(Arc::clone(&inner));
        (self, Gate(inner))
    }

    /// The steps so far; keep a clone before the engine takes the model.
    pub fn seen(&self) -> Arc<Mutex<Vec<StepSeen>>> {
        Arc::clone(&self.seen)
    }

    /// The slow, obvious reference: the greedy answer of a model without faults, one token after the other, without blocks.
    pub fn greedy(
        vocab_size: usize,
        prompt: &[u32],
        adapters: &[(&FakeAdapter, f32)],
        new_tokens: usize,
    ) -> Vec<u32> {
        let mark = adapter_mark(adapters.iter().copied());
        let mut chain = prompt.iter().fold(START, |chain, t| link(chain, *t, mark));
        let mut answer = Vec::new();
        for _ in 0..new_tokens {
            let logits: Vec<f32> = (0..vocab_size).map(|id| logit(chain, id)).collect();
            let mut best = 0;
            for id in 1..vocab_size {
                if logits[id] > logits[best] {
                    best = id;
                }
            }
            answer.push(best as u32);
            chain = link(chain, best as u32, mark);
        }
        answer
    }

    /// Reads a sequence's past and writes its rows; returns the chain after each row.
    fn attend(
        &mut self,
        batch: &Batch<FakeAdapter>,
        sequence: &SequenceRows,
        written: &mut HashSet<usize>,
    ) -> Vec<u64> {
        let adapters = sequence
            .adapters
            .iter()
            .map(|(slot, scale)| (&*batch.slots[*slot as usize], *scale));
        let mark = adapter_mark(adapters);
        let mut chain = START;
        for position in 0..sequence.past {
            let at = self.slot_at(sequence, position);
            let slot = self.slots[at].unwrap_or_else(|| panic!("slot {at} was never written"));
            assert_eq!(
                (slot.position, slot.before),
                (position, chain),
                "slot {at} belongs to another sequence"
            );
            chain = slot.after;
        }
        let mut chains = Vec::with_capacity(sequence.rows);
        for row in sequence.first_row..sequence.first_row + sequence.rows {
            let position = sequence.past + (row - sequence.first_row);
            assert_eq!(
                batch.positions[row] as usize, position,
                "row {row}: position"
            );
            let at = self.slot_at(sequence, position);
            assert!(written.insert(at), "slot {at} is written twice in one step");
            let before = chain;
            chain = link(chain, batch.tokens[row], mark);
            self.slots[at] = Some(Slot {
                position,
                before,
                after: chain,
            });
            chains.push(chain);
        }
        chains
    }

    fn slot_at(&self, sequence: &SequenceRows, position: usize) -> usize {
        let block = sequence.blocks[position / self.limits.block_tokens] as usize;
        assert!(block < self.limits.blocks, "block {block} does not exist");
        block * self.limits.block_tokens + position % self.limits.block_tokens
    }

    fn fault_in(&self, tokens: &[u32]) -> Option<Fault> {
        let fault = self.faults.iter().find(|(token, _)| tokens.contains(token));
        fault.map(|(_, fault)| *fault)
    }

    fn record(&self, batch: &Batch<FakeAdapter>) {
        let step = StepSeen {
            sequences: batch.sequences.iter().map(|s| (s.past, s.rows)).collect(),
            tokens: batch.tokens.clone(),
            slots: batch.slots.len(),
            candidate_rows: batch.candidates.iter().filter(|count| **count > 0).count(),
        };
        lock(&self.seen).push(step);
    }
}

impl Runner for FakeModel {
    type Adapter = FakeAdapter;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn run(&mut self, batch: &Batch<FakeAdapter>, logits: &mut Logits) -> Result<(), String> {
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        let takes = self.step_time + self.row_time * batch.rows() as u32;
        if !takes.is_zero() {
            std::thread::sleep(takes);
        }
        self.record(batch);
        assert!(batch.rows() > 0, "a step without rows");
        assert_eq!(batch.positions.len(), batch.rows());
        let fault = self.fault_in(&batch.tokens);
        match fault {
            Some(Fault::Panic) => panic!("a fault that the test set"),
            Some(Fault::Error) => return Err("a fault that the test set".to_owned()),
            _ => {}
        }
        let mut written = HashSet::new();
        let mut chains = Vec::with_capacity(batch.rows());
        for sequence in &batch.sequences {
            assert_eq!(sequence.first_row, chains.len(), "rows are not contiguous");
            assert!(sequence.rows > 0, "a sequence without rows");
            chains.extend(self.attend(batch, sequence, &mut written));
        }
        assert_eq!(chains.len(), batch.rows(), "rows without a sequence");
        let whole = logits.whole();
        whole.clear();
        for row in &batch.logit_rows {
            let chain = chains[*row as usize];
            let first = whole.len();
            whole.extend((0..self.limits.vocab_size).map(|id| logit(chain, id)));
            for (token, _) in &self.faults {
                whole[first + *token as usize] = f32::NEG_INFINITY;
            }
            if fault == Some(Fault::NotNumbers)
                && self.fault_in(row_tokens(batch, *row)) == Some(Fault::NotNumbers)
            {
                whole[first..].fill(f32::NAN);
            }
        }
        if fault == Some(Fault::TooFewLogits) {
            whole.pop();
        } else if self.candidates {
            let values = std::mem::take(whole);
            let rows = || values.chunks(self.limits.vocab_size).zip(&batch.candidates);
            let chosen = rows().map(|(row, count)| (*count > 0).then(|| candidates(row, *count)));
            let whole = logits.mixed(chosen);
            whole.extend(
                rows()
                    .filter(|(_, count)| **count == 0)
                    .flat_map(|(row, _)| row),
            );
        }
        Ok(())
    }
}

/// The tokens, in this step, of the sequence that has `row`.
fn row_tokens(batch: &Batch<FakeAdapter>, row: u32) -> &[u32] {
    let row = row as usize;
    let rows = batch
        .sequences
        .iter()
        .map(|s| s.first_row..s.first_row + s.rows);
    let mut rows = rows.filter(|rows| rows.contains(&row));
    rows.next().map_or(&[], |rows| &batch.tokens[rows])
}

/// The most probable tokens of a row, by sorting it.
fn candidates(row: &[f32], count: usize) -> Candidates {
    let log_sum = row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
    if !log_sum.is_finite() {
        return Candidates::default();
    }
    let mut tokens: Vec<(u32, f32)> = (0u32..).zip(row.iter().copied()).collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    tokens.truncate(count);
    Candidates { tokens, log_sum }
}

fn adapter_mark<'a>(adapters: impl Iterator<Item = (&'a FakeAdapter, f32)>) -> u64 {
    adapters.fold(0, |mark, (adapter, scale)| {
        mix(mix(mark ^ adapter.0) ^ u64::from(scale.to_bits()))
    })
}

fn link(chain: u64, token: u32, mark: u64) -> u64 {
    mix(mix(chain ^ mark) ^ u64::from(token))
}

/// A number from -4 to 4.
fn logit(chain: u64, id: usize) -> f32 {
    let bits = mix(chain ^ mix(id as u64));
    (bits >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0
}

/// One step of SplitMix64 from `state`.
fn mix(state: u64) -> u64 {
    SplitMix64::seed_from_u64(state).next_u64()
}

/// Lets a test stop the model between steps. Dropped, it stays open.
pub struct Gate(Arc<GateInner>);

#[derive(Default)]
struct GateInner {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    open: bool,
    permits: usize,
    /// Steps that arrived at the gate, let through or not.
    arrived: usize,
}

impl Gate {
    /// Lets `steps` more steps through.
    pub fn allow(&self, steps: usize) {
        lock(&self.0.state).permits += steps;
        self.0.changed.notify_all();
    }

    /// Lets everything through from here on.
    pub fn open(&self) {
        lock(&self.0.state).open = true;
        self.0.changed.notify_all();
    }

    /// Waits until `steps` steps have arrived at the gate, counted from the start.
    pub fn wait_for(&self, steps: usize) {
        let state = lock(&self.0.state);
        let waited = self.0.changed.wait_while(state, |s| s.arrived < steps);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl GateInner {
    fn pass(&self) {
        let mut state = lock(&self.state);
        state.arrived += 1;
        self.changed.notify_all();
        let closed = |s: &mut GateState| !s.open && s.permits == 0;
        let mut state = self
            .changed
            .wait_while(state, closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.permits = state.permits.saturating_sub(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
