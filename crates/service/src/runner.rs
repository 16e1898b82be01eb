//! Implements the engine's `Runner`: runs the rows of a plan through the decoder, over one paged KV cache.

use std::sync::Arc;

use engine::{Batch, Limits};
use kernels::{BLOCK_TOKENS, Compute, KernelError, KvCache, KvType, Run, Span, Tensor};
use model::{Adapter, Buffers, Model, YieldPoint};

use crate::compute_arbiter::ComputeArbiter;

/// How the steps of an engine share the machine with other engines and with training.
#[derive(Clone)]
pub enum StepPriority {
    /// Steps run as soon as the current background layer ends: the engine that answers clients.
    Foreground(Arc<ComputeArbiter>),
    /// Steps wait at the yield point until foreground work leaves time: an engine that a job or an evaluation runs.
    Background(Arc<dyn YieldPoint>),
}

impl Default for StepPriority {
    fn default() -> Self {
        StepPriority::Foreground(Arc::default())
    }
}

impl std::fmt::Debug for StepPriority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StepPriority::Foreground(_) => "Foreground",
            StepPriority::Background(_) => "Background",
        })
    }
}

/// A model with its KV cache and buffers.
pub struct ModelRunner {
    model: Arc<Model>,
    cache: KvCache,
    buffers: Buffers,
    logits: Tensor,
    priority: StepPriority,
}

impl ModelRunner {
    /// Allocates a KV cache of `kv_bytes`, at least one block.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn new(
        model: Arc<Model>,
        kv_bytes: u64,
        priority: StepPriority,
    ) -> Result<ModelRunner, KernelError> {
        let block = model.block_bytes(KvType::F16) as u64;
        let blocks = (kv_bytes / block).clamp(1, u64::from(u32::MAX)) as usize;
        let cache = model.new_cache(model.config().layers, blocks, KvType::F16)?;
        if cache.blocks() < blocks {
            tracing::warn!(
                "the KV cache has {} of {blocks} blocks: a buffer of this device holds no more of a layer",
                cache.blocks()
            );
        }
        let (buffers, logits) = (Buffers::new(model.device()), model.device().tensor());
        Ok(ModelRunner {
            model,
            cache,
            buffers,
            logits,
            priority,
        })
    }
}

impl engine::Runner for ModelRunner {
    type Adapter = Adapter;

    fn limits(&self) -> Limits {
        let config = self.model.config();
        Limits {
            vocab_size: config.vocab_size,
            context_length: config.context_length,
            block_tokens: BLOCK_TOKENS,
            blocks: self.cache.blocks(),
        }
    }

    fn run(&mut self, batch: &Batch<Adapter>, logits: &mut Vec<f32>) -> Result<(), String> {
        if let Some(fault) = self.model.device().fault() {
            return Err(fault);
        }
        let spans: Vec<Span> = batch
            .sequences
            .iter()
            .map(|s| Span {
                first: s.first_row,
                rows: s.rows,
                past: s.past,
                blocks: &s.blocks,
            })
            .collect();
        // Neighbouring rows with the same adapters form one run, so each adapter is read once.
        let mut runs: Vec<Run> = Vec::new();
        for s in batch.sequences.iter().filter(|s| !s.adapters.is_empty()) {
            match runs.last_mut() {
                Some(last) if last.first + last.rows == s.first_row && last.slots == s.adapters => {
                    last.rows += s.rows;
                }
                _ => runs.push(Run {
                    first: s.first_row,
                    rows: s.rows,
                    slots: s.adapters.clone(),
                }),
            }
        }
        let adapters: Vec<&Adapter> = batch.slots.iter().map(Arc::as_ref).collect();
        let rows = model::Batch {
            tokens: &batch.tokens,
            spans: &spans,
            runs: &runs,
            adapters: &adapters,
            dropout: &[],
        };
        let mut forward = || {
            self.model.forward(
                rows,
                &mut self.cache,
                &mut self.buffers,
                &batch.logit_rows,
                Compute::Int8,
                &mut self.logits,
            );
            // A turn ends when the device has computed the step.
            self.model.device().wait();
        };
        match &self.priority {
            StepPriority::Foreground(arbiter) => {
                let _step = arbiter.begin_step();
                forward();
            }
            StepPriority::Background(yield_point) => {
                if !yield_point.wait() {
                    return Err("stopped before it was done".to_owned());
                }
                forward();
                yield_point.release();
            }
        }
        if let Some(fault) = self.model.device().fault() {
            return Err(fault);
        }
        self.logits.read_into(logits);
        Ok(())
    }
}
