//! One request under way: its tokens, how far the model has computed them, and what it holds meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::adapters::Lease;
use crate::blocks::{BlockPool, BlockTable};
use crate::constraint::{Constraint, Progress};
use crate::event::Outlet;
use crate::lookup::{self, Guess, Lookup};
use crate::prefix::Root;
use crate::sampler::{Draw, History};
use crate::sampling::Sampling;
use crate::shares::Client;

/// The order in which requests came; the lower is the older, and goes first.
pub(crate) type Arrival = u64;

/// A request between its submission and its end. What it holds it gives back when dropped, blocks, leases and place
/// before the outlet says that it ended: who hears of the end may count on what it freed.
///
/// ```text
/// tokens    [ prompt ............... | completion ... ]
/// computed  ^------------------^                          keys and values lie in `blocks`
///                               `- pending -------------'  to run; one left: a decode, more: a prefill
/// ```
pub(crate) struct Sequence<A> {
    pub tokens: Vec<u32>,
    /// Tokens whose keys and values are written, by this sequence or one that began alike. A preemption sets it to 0.
    pub computed: usize,
    /// Where in the prompt the tokens stand whose log-probabilities are yet to be told.
    pub untold: Range<usize>,
    pub blocks: BlockTable,
    pub adapters: Vec<(Lease<A>, f32)>,
    /// What the cache knows those by.
    pub root: Root,
    pub choice: Choice,
    /// What guesses of its next tokens are worth.
    pub lookup: Lookup,
    /// When it came.
    pub came: Instant,
    /// When it must have ended.
    pub deadline: Option<Instant>,
    /// The lower goes first.
    pub priority: i32,
    /// For whom it runs.
    pub client: Option<Client>,
    /// It was admitted because it had waited too long.
    pub overdue: bool,
    pub cancelled: Arc<AtomicBool>,
    #[expect(dead_code, reason = "held for its Drop")]
    pub place: Place,
    pub outlet: Outlet,
}

/// How a sequence picks its tokens and when it has enough.
pub(crate) struct Choice {
    pub sampling: Sampling,
    pub seed: u64,
    pub history: History,
    /// What may come next, where the request's grammar decides it.
    pub constraint: Option<Box<dyn Constraint>>,
    pub top_logprobs: Option<u8>,
    pub stop_tokens: Vec<u32>,
    pub max_new_tokens: usize,
}

impl<A> Sequence<A> {
    /// Tokens that the model has yet to run before the next one can be sampled; 1 at least.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether the pending tokens are more than the latest one.
    pub fn in_prefill(&self) -> bool {
        self.pending() > 1
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Holds the blocks that are known to begin as its tokens do, and says how many tokens need not run.
    pub fn reuse_blocks(&mut self, pool: &BlockPool) -> usize {
        // What is to be told of a token comes from the row before it, which must run.
        if !self.untold.is_empty() {
            return 0;
        }
        self.computed = self.blocks.reuse(&self.tokens, &self.root, pool);
        self.computed
    }

    /// Gives its blocks up; what they held is computed again later, unless the cache still has it then.
    pub fn give_up_blocks(&mut self) {
        self.blocks.release();
        self.computed = 0;
    }

    /// Notes that its next `rows` tokens ran.
    pub fn advance(&mut self, rows: usize) {
        self.computed += rows;
        self.blocks.keep(&self.tokens[..self.computed], &self.root);
    }

    /// The positions among the next `rows` whose logits tell of a token of the prompt.
    pub fn telling(&self, rows: usize) -> Range<usize> {
        let next = self.computed..self.computed + rows;
        let telling = self.untold.start.saturating_sub(1)..self.untold.end.saturating_sub(1);
        next.start.max(telling.start)..next.end.min(telling.end)
    }

    /// A guess of at most `most` of the tokens that come next; none goes past the last that may be sampled.
    pub fn guess(&self, most: usize) -> Option<Guess<'_>> {
        let sampled = self.outlet.completion_tokens();
        let after_next = self.choice.max_new_tokens.saturating_sub(sampled + 1);
        lookup::guess(&self.tokens, most.min(after_next))
    }

    /// Writes into `mask` what may come next; false if all may.
    ///
    /// # Errors
    /// The constraint's.
    pub fn constrain(&mut self, mask: &mut [u32]) -> Result<bool, String> {
        let Some(constraint) = &mut self.choice.constraint else {
            return Ok(false);
        };
        mask.fill(0);
        constraint.mask(mask)?;
        Ok(true)
    }

    /// The draw of the next token, among those `allowed`.
    pub fn draw<'a>(&'a self, allowed: Option<&'a [u32]>) -> Draw<'a> {
        Draw {
            sampling: &self.choice.sampling,
            seed: self.choice.seed,
            position: self.tokens.len(),
            history: &self.choice.history,
            allowed,
            top_logprobs: self.choice.top_logprobs,
        }
    }

    /// Appends a sampled token, and says whether more may come.
    ///
    /// # Errors
    /// The constraint's.
    pub fn push(&mut self, token: u32) -> Result<Progress, String> {
        self.tokens.push(token);
        self.choice.history.push(token);
        match &mut self.choice.constraint {
            Some(constraint) => constraint.commit(token),
            None => Ok(Progress::Open),
        }
    }

    /// Gives everything back and leaves the way out.
    pub fn release(self) -> Outlet {
        self.outlet
    }
}

/// A place among the requests that the engine takes, given back when dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    /// Takes a place if fewer than `limit` are taken.
    pub fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Place> {
        taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then_some(n + 1)
            })
            .ok()
            .map(|_| Place(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
