//! The engine's settings, and the ranges in which it starts.

use std::time::Duration;

use crate::error::StartError;
use crate::runner::Limits;

/// The engine's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most sequences in one step.
    pub max_batch: usize,
    /// How many requests may wait in addition to the `max_batch` that run; one more is refused.
    pub max_queue: usize,
    /// The most rows (tokens) in one step; at least `max_batch`.
    pub step_tokens: usize,
    /// The most rows of one prompt in one step. Below `step_tokens`, a short prompt need not wait for a long one.
    pub prefill_chunk: usize,
    /// The time limit of a step that has decodes. It bounds the prompt rows of such a step, by the cost of earlier steps,
    /// but never below 8 rows. A step without decodes has `step_tokens` rows; where requests have clients, it keeps to the limit too,
    /// with at least 64 rows.
    pub step_latency: Duration,
    /// A request that has waited this long goes before all that have not, whatever their priority and share.
    pub max_wait: Duration,
    /// Bytes that resident adapters may take.
    pub adapter_memory: u64,
    /// The most adapters that are loaded at once. More hide a slow disk better; each takes a few times its file size while
    /// it loads.
    pub adapter_loads: usize,
    /// The most draft tokens for one sequence in one step (prompt lookup); 0 turns drafting off. The engine drafts as many
    /// as pay, by the cost of a row and the acceptance rate. The sampled tokens are the same either way.
    pub draft_tokens: usize,
    /// Whether KV blocks are kept when their request ends, for requests with the same prefix.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_batch: 32,
            max_queue: 256,
            step_tokens: 256,
            prefill_chunk: 128,
            step_latency: Duration::from_millis(100),
            max_wait: Duration::from_secs(5),
            adapter_memory: 256 << 20,
            adapter_loads: 4,
            draft_tokens: 8,
            prefix_cache: true,
        }
    }
}

impl EngineConfig {
    /// Checks every range, together with the model's sizes.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), StartError> {
        for (field, value) in [
            ("max_batch", self.max_batch),
            ("prefill_chunk", self.prefill_chunk),
            ("adapter_loads", self.adapter_loads),
            ("vocab_size", limits.vocab_size),
            ("context_length", limits.context_length),
            ("block_tokens", limits.block_tokens),
            ("blocks", limits.blocks),
        ] {
            // Ids, positions and rows are u32 in a batch.
            if value == 0 || u32::try_from(value).is_err() {
                let message = format!("must be from 1 to {}, not {value}", u32::MAX);
                return Err(StartError::InvalidConfig { field, message });
            }
        }
        if self.step_tokens < self.max_batch || u32::try_from(self.step_tokens).is_err() {
            let message = format!(
                "must be from max_batch ({}) to {}, not {}",
                self.max_batch,
                u32::MAX,
                self.step_tokens
            );
            return Err(StartError::InvalidConfig {
                field: "step_tokens",
                message,
            });
        }
        Ok(())
    }
}
