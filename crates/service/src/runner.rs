//! The model as the engine runs it: a plan's rows through the decoder, over one paged cache.

use std::sync::Arc;

use engine::{Batch, Limits};
use kernels::{BLOCK_TOKENS, Compute, KernelError, KvCache, KvType, Run, Span, Tensor};
use model::{Adapter, Buffers, Model, YieldPoint};

use crate::sharing::Sharing;

/// Whose turn the machine is while a step runs.
#[derive(Clone)]
pub enum Turns {
    /// The service's own: training waits for it.
    Own(Arc<Sharing>),
    /// Lent, as to a training job: it waits for the service.
    Lent(Arc<dyn YieldPoint>),
}

impl Default for Turns {
    fn default() -> Self {
        Turns::Own(Arc::default())
    }
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Turns::Own(_) => "Own",
            Turns::Lent(_) => "Lent",
        })
    }
}

/// A model with its pages and buffers.
pub struct ModelRunner {
    model: Arc<Model>,
    cache: KvCache,
    buffers: Buffers,
    logits: Tensor,
    turns: Turns,
}

impl ModelRunner {
    /// Pages for as many tokens as fit in `kv_bytes`, at least for one block.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn new(model: Arc<Model>, kv_bytes: u64, turns: Turns) -> Result<ModelRunner, KernelError> {
        let block = model.block_bytes(KvType::F16) as u64;
        let blocks = (kv_bytes / block).clamp(1, u64::from(u32::MAX)) as usize;
        let cache = model.new_cache(model.config().layers, blocks, KvType::F16)?;
        let (buffers, logits) = (Buffers::new(model.device()), model.device().tensor());
        Ok(ModelRunner {
            model,
            cache,
            buffers,
            logits,
            turns,
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
        // Neighbours that carry the same are one run: their adapters are read once.
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
        match &self.turns {
            Turns::Own(sharing) => {
                let _step = sharing.step();
                forward();
            }
            Turns::Lent(yield_point) => {
                if !yield_point.wait() {
                    return Err("stopped before it was done".to_owned());
                }
                forward();
                yield_point.release();
            }
        }
        self.logits.read_into(logits);
        Ok(())
    }
}
