//! What a request is, and whether the engine can run it.

use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use sampling::Sampling;

use crate::adapter_id::AdapterId;
use crate::cache_scope::CacheSalt;
use crate::constraint::Grammar;
use crate::error::SubmitError;
use crate::runner::Limits;

/// The most alternatives for which a request may ask for log-probabilities.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// The most adapters that one request may blend.
const MAX_ADAPTERS: usize = 32;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Adapters with their scales, added in this order. Empty: the base alone.
    pub adapters: Vec<(AdapterId, f32)>,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// The most tokens to sample, at least 1. With the prompt it must fit the context.
    pub max_new_tokens: usize,
    /// Tokens that end the request when sampled, and are not emitted. Empty: only the length ends it.
    pub stop_tokens: Vec<u32>,
    /// `Some(n)`: every token carries its log-probability and those of the `n` most probable tokens (0 to 20).
    pub top_logprobs: Option<u8>,
    /// Whether the prompt's tokens are emitted too, with as many log-probabilities as `top_logprobs` asks for. The prompt
    /// is then computed even where the prefix cache holds it.
    pub prompt_logprobs: bool,
    /// Constrains which tokens may be sampled; the caller defines it.
    pub grammar: Option<Arc<dyn Grammar>>,
    /// The lower goes first, among waiting requests and where blocks run out; the default is 0.
    pub priority: i32,
    /// Which client sent it, where several share the engine. Requests without one share a single client's part.
    pub client: Option<Client>,
    /// Which requests may use its cached KV blocks.
    pub cache_salt: CacheSalt,
    /// The time from its submission after which it ends as [`FinishReason::Deadline`], waiting or running.
    ///
    /// [`FinishReason::Deadline`]: crate::FinishReason::Deadline
    pub deadline: Option<Duration>,
}

/// One of the clients that share the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The same for all of its requests.
    pub id: u64,
    /// Its part of permits, rows, KV blocks and adapter memory: twice the weight, twice the rows.
    pub weight: NonZeroU32,
}

impl Request {
    /// The seed, or a random one.
    pub(crate) fn seed(&self) -> u64 {
        self.sampling.seed.unwrap_or_else(|| {
            // The standard library keys every `RandomState` from the system's randomness.
            std::hash::RandomState::new().build_hasher().finish()
        })
    }

    /// Whether a model of these sizes can run it; does not look at the queue or at the adapters in memory.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), SubmitError> {
        let prompt = self.prompt.len();
        let limit = limits.context_length;
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt >= limit {
            let tokens = prompt;
            return Err(SubmitError::PromptTooLong { tokens, limit });
        }
        let outside = |token: &u32| *token as usize >= limits.vocab_size;
        if let Some(position) = self.prompt.iter().position(outside) {
            return Err(SubmitError::TokenOutOfRange {
                position,
                token: self.prompt[position],
                vocab_size: limits.vocab_size,
            });
        }
        self.check_settings()?;
        let biases = &self.sampling.logit_bias;
        if let Some((token, _)) = biases.iter().find(|(token, _)| outside(token)) {
            let message = format!(
                "names the token {token}; the vocabulary's are 0 to {}",
                limits.vocab_size.saturating_sub(1)
            );
            return Err(SubmitError::invalid("logit_bias", message));
        }
        let max_new_tokens = self.max_new_tokens;
        if max_new_tokens > limit - prompt {
            return Err(SubmitError::PastContext {
                prompt,
                max_new_tokens,
                limit,
            });
        }
        // The last sampled token is never run, so it needs no room.
        let needed = (prompt + max_new_tokens - 1).div_ceil(limits.block_tokens);
        let blocks = limits.blocks;
        if needed > blocks {
            return Err(SubmitError::TooLargeForMemory { needed, blocks });
        }
        Ok(())
    }

    fn check_settings(&self) -> Result<(), SubmitError> {
        self.sampling.check()?;
        if self.max_new_tokens == 0 {
            return Err(SubmitError::invalid(
                "max_new_tokens",
                "must be at least 1".to_owned(),
            ));
        }
        if let Some(n) = self.top_logprobs.filter(|n| *n > MAX_TOP_LOGPROBS) {
            let message = format!("must be at most {MAX_TOP_LOGPROBS}, not {n}");
            return Err(SubmitError::invalid("top_logprobs", message));
        }
        if self.prompt_logprobs && self.top_logprobs.is_none() {
            let message = "needs top_logprobs".to_owned();
            return Err(SubmitError::invalid("prompt_logprobs", message));
        }
        if self.adapters.len() > MAX_ADAPTERS {
            let n = self.adapters.len();
            let message = format!("may be at most {MAX_ADAPTERS} in one request, not {n}");
            return Err(SubmitError::invalid("adapters", message));
        }
        match self.adapters.iter().find(|(_, s)| !s.is_finite()) {
            Some((id, scale)) => {
                let message = format!("must have finite scales; that of {id} is {scale}");
                Err(SubmitError::invalid("adapters", message))
            }
            None => Ok(()),
        }
    }
}
