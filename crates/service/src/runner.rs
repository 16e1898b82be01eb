//! Implements the engine's `Runner`: runs the rows of a plan through the decoder, over one paged KV cache.

use std::sync::Arc;

use engine::{Batch, Limits, Logits};
use kernels::{
    BLOCK_TOKENS, Compute, KernelError, KvCache, KvType, MOST_CANDIDATES, Run, Search, Span, Tensor,
};
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
    search: Search,
    /// Rows of logits that are read whole.
    whole: Tensor,
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
        let device = model.device();
        let (logits, whole) = (device.tensor(), device.tensor());
        Ok(ModelRunner {
            cache,
            buffers: Buffers::new(device),
            logits,
            search: device.search(),
            whole,
            model,
            priority,
        })
    }

    /// Reads the rows that the step computed: their candidates where whole rows would have to be copied from the device.
    fn read_logits(&mut self, counts: &[usize], logits: &mut Logits) {
        let device = self.model.device();
        let few = |count: usize| (1..=MOST_CANDIDATES).contains(&count);
        if device.shares_memory() || !counts.iter().any(|count| few(*count)) {
            return self.logits.read_into(logits.whole());
        }
        let rows = || counts.iter().copied().enumerate();
        let searched: Vec<(usize, usize)> = rows().filter(|(_, count)| few(*count)).collect();
        let found = device.candidates(&mut self.search, &self.logits, &searched);
        let mut found = found.into_iter().map(|found| engine::Candidates {
            tokens: found.tokens,
            log_sum: found.log_sum,
        });
        let each = rows().map(|(_, count)| if few(count) { found.next() } else { None });
        let values = logits.mixed(each);
        let whole = rows().filter(|(_, count)| !few(*count));
        let whole: Vec<u32> = whole.map(|(row, _)| row as u32).collect();
        if whole.is_empty() {
            return values.clear();
        }
        device.gather_rows(&self.logits, &whole, &mut self.whole);
        self.whole.read_into(values);
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

    fn run(&mut self, batch: &Batch<Adapter>, logits: &mut Logits) -> Result<(), String> {
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
        self.read_logits(&batch.candidates, logits);
        Ok(())
    }
}
