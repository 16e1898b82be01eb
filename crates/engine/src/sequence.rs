//! One request under way: its tokens, how far the model has computed them, and the blocks, leases and permit that it holds.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sampling::Sampling;

use crate::adapter_pool::Lease;
use crate::blocks::{BlockPool, BlockTable};
use crate::cache_scope::CacheScope;
use crate::constraint::{Constraint, Progress};
use crate::event::Sink;
use crate::logits::MOST_CANDIDATES;
use crate::logits_processor::{LogitsProcessor, TokenCounts};
use crate::permit::Permit;
use crate::prompt_lookup::{self, Draft, PromptLookup};
use crate::request::{Client, Request};
use crate::response_sink::ResponseSink;
use crate::sampler::SampleParams;

/// The order in which requests arrived; the lower is the older, and goes first.
pub(crate) type Arrival = u64;

/// A request between its submission and its end. Dropped, it releases what it holds: blocks, leases and permit before the
/// response reports the end, so a caller that receives the end may count on what it freed.
///
/// ```text
/// tokens    [ prompt ............... | completion ... ]
/// computed  ^------------------^                          keys and values are in `blocks`
///                               `- pending -------------'  to run; one left: a decode, more: a prefill
/// ```
pub(crate) struct Sequence<A> {
    pub tokens: Vec<u32>,
    /// Tokens whose keys and values are written, by this sequence or by one with the same prefix. A preemption sets it to 0.
    pub computed: usize,
    /// Positions of the prompt tokens whose log-probabilities are yet to be emitted.
    pub prompt_logprobs: Range<usize>,
    pub blocks: BlockTable,
    pub adapters: Vec<(Lease<A>, f32)>,
    /// The same adapters as the prefix cache identifies them, and the salts.
    pub cache_scope: CacheScope,
    pub decoding: Decoding,
    pub prompt_lookup: PromptLookup,
    /// When it must have ended.
    pub deadline: Option<Instant>,
    /// The lower goes first.
    pub priority: i32,
    pub client: Option<Client>,
    /// It was admitted after it had waited for `max_wait`.
    pub overdue: bool,
    /// Steps since its latest decode in which its client had no row, or no time for its grammar, left.
    pub skipped_steps: usize,
    /// When it was last admitted.
    pub admitted: Instant,
    pub cancelled: Arc<AtomicBool>,
    permit: Permit,
    pub response: ResponseSink,
}

/// How a sequence samples its tokens and when it has enough.
pub(crate) struct Decoding {
    pub sampling: Sampling,
    pub seed: u64,
    pub token_counts: TokenCounts,
    /// Which tokens may come next, if the request has a grammar.
    pub constraint: Option<Box<dyn Constraint>>,
    /// How long the constraint took in this step, so far.
    pub constraint_time: Duration,
    /// How long it took in the latest step; none before the first.
    pub latest_constraint_time: Option<Duration>,
    pub top_logprobs: Option<u8>,
    pub stop_tokens: Vec<u32>,
    pub max_new_tokens: usize,
}

impl<A> Sequence<A> {
    /// A request as it was accepted; `adapters` are the leases of its adapters, in its order.
    pub fn new(
        request: Request,
        adapters: Vec<(Lease<A>, f32)>,
        permit: Permit,
        sink: Sink,
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        let arrived = permit.acquired();
        Sequence {
            response: ResponseSink::new(sink, request.prompt.len(), arrived),
            decoding: Decoding {
                seed: request.seed(),
                token_counts: TokenCounts::new(&request.sampling, &request.prompt),
                constraint: request.grammar.as_ref().map(|grammar| grammar.start()),
                constraint_time: Duration::ZERO,
                latest_constraint_time: None,
                sampling: request.sampling,
                top_logprobs: request.top_logprobs,
                stop_tokens: request.stop_tokens,
                max_new_tokens: request.max_new_tokens,
            },
            prompt_logprobs: match request.prompt_logprobs {
                true => 1..request.prompt.len(),
                false => 0..0,
            },
            tokens: request.prompt,
            computed: 0,
            blocks: BlockTable::default(),
            cache_scope: CacheScope {
                adapters: request
                    .adapters
                    .iter()
                    .map(|(id, scale)| (*id, scale.to_bits()))
                    .collect(),
                salt: request.cache_salt,
            },
            adapters,
            prompt_lookup: PromptLookup::default(),
            // A time beyond the clock's range is not a deadline.
            deadline: request
                .deadline
                .and_then(|within| arrived.checked_add(within)),
            priority: request.priority,
            client: request.client,
            overdue: false,
            skipped_steps: 0,
            admitted: arrived,
            cancelled,
            permit,
        }
    }

    /// When the request arrived.
    pub fn arrived(&self) -> Instant {
        self.permit.acquired()
    }

    /// The client's id; requests without a client have none.
    pub fn client_id(&self) -> Option<u64> {
        self.client.map(|client| client.id)
    }

    /// Tokens that the model has yet to run before the next one can be sampled; at least 1.
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

    pub fn is_past_deadline(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Takes the cached blocks of its prefix. Returns the number of tokens that need not run.
    pub fn reuse_blocks(&mut self, pool: &BlockPool) -> usize {
        // The log-probability of a prompt token comes from the row before it, which must run.
        if !self.prompt_logprobs.is_empty() {
            return 0;
        }
        self.computed = self
            .blocks
            .reuse_prefix(&self.tokens, &self.cache_scope, pool);
        self.computed
    }

    /// Releases its blocks; their tokens are computed again later, unless they are still cached then.
    pub fn release_blocks(&mut self) {
        self.blocks.release();
        self.computed = 0;
    }

    /// Its next `rows` tokens ran.
    pub fn mark_computed(&mut self, rows: usize) {
        self.computed += rows;
        self.blocks
            .cache_full_blocks(&self.tokens[..self.computed], &self.cache_scope);
    }

    /// The positions among the next `rows` whose logits give the log-probability of a prompt token.
    pub fn prompt_logprob_positions(&self, rows: usize) -> Range<usize> {
        let next = self.computed..self.computed + rows;
        // The logits of a row are those of the token after it.
        let wanted = &self.prompt_logprobs;
        let wanted = wanted.start.saturating_sub(1)..wanted.end.saturating_sub(1);
        next.start.max(wanted.start)..next.end.min(wanted.end)
    }

    /// A draft of at most `most` next tokens; none goes past the last that may be sampled.
    pub fn draft(&self, most: usize) -> Option<Draft<'_>> {
        let sampled = self.response.completion_tokens();
        let after_next = self.decoding.max_new_tokens.saturating_sub(sampled + 1);
        prompt_lookup::draft(&self.tokens, most.min(after_next))
    }

    /// Writes the tokens that may come next into `mask`. Returns false for a request without a grammar.
    ///
    /// # Errors
    /// The constraint's.
    pub fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, String> {
        let Some(constraint) = &mut self.decoding.constraint else {
            return Ok(false);
        };
        mask.fill(0);
        let started = Instant::now();
        let filled = constraint.mask(mask);
        self.decoding.constraint_time += started.elapsed();
        filled.map(|()| true)
    }

    /// How long the constraint took since the last call; none for a request without a grammar.
    pub fn take_constraint_time(&mut self) -> Option<Duration> {
        self.decoding.constraint.as_ref()?;
        let took = std::mem::take(&mut self.decoding.constraint_time);
        self.decoding.latest_constraint_time = Some(took);
        Some(took)
    }

    /// How to sample the next token, among those `allowed`.
    pub fn sample_params<'a>(&'a self, allowed: Option<&'a [u32]>) -> SampleParams<'a> {
        SampleParams {
            processor: LogitsProcessor {
                sampling: &self.decoding.sampling,
                token_counts: &self.decoding.token_counts,
                allowed,
            },
            seed: self.decoding.seed,
            position: self.tokens.len(),
            top_logprobs: self.decoding.top_logprobs,
        }
    }

    /// How many of the most probable tokens sampling looks at; 0: at the whole row, for the constraint, penalties and biases too.
    pub fn candidates(&self, vocab_size: usize) -> usize {
        let params = self.sample_params(None);
        if self.decoding.constraint.is_some() || !params.processor.is_noop() {
            return 0;
        }
        let count = match self.decoding.sampling.top_k {
            _ if self.decoding.sampling.temperature == 0.0 => 1,
            0 => return 0,
            top_k => top_k,
        };
        let count = count.max(usize::from(params.top_logprobs.unwrap_or(0)));
        match count <= MOST_CANDIDATES && count < vocab_size {
            true => count,
            false => 0,
        }
    }

    /// Appends a sampled token. Returns whether the constraint allows more.
    ///
    /// # Errors
    /// The constraint's.
    pub fn append(&mut self, token: u32) -> Result<Progress, String> {
        self.tokens.push(token);
        self.decoding.token_counts.push(token);
        match &mut self.decoding.constraint {
            Some(constraint) => {
                let started = Instant::now();
                let progress = constraint.commit(token);
                self.decoding.constraint_time += started.elapsed();
                progress
            }
            None => Ok(Progress::Open),
        }
    }

    /// Releases everything but the response.
    pub fn into_response(self) -> ResponseSink {
        self.response
    }
}
