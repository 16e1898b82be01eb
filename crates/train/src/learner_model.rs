//! The decoder as a [`Learner`]: rows of several adapters in one pass over the frozen base.
//!
//! Examples are laid end to end, no padding, the rows of one adapter together. Only rows whose next token is trained go
//! through the head.

use std::sync::Arc;

use kernels::{BLOCK_TOKENS, Compute, KvCache, KvType, LoraType, RowDropout, Run, Span, Tensor};
use model::{Adapter, Batch, Buffers, Model, YieldPoint};

use crate::backward::{Pass, Scratch, Slots, places};
use crate::error::TrainError;
use crate::kept::ActivationCache;
use crate::learner::{BatchItem, Learner, LossSum, Weigh, weights};
use crate::params::{LoraGrads, LoraParams};
use crate::yield_guard::YieldGuard;

/// Rows that go through the head at once: the logits of so many rows are in memory.
pub(crate) const HEAD_ROWS: usize = 256;
/// The same behind a gate: whoever waits there waits for one piece of the head no longer than for a layer. Rows do not depend on
/// each other, so the results are the same.
const YIELDING_HEAD_ROWS: usize = 32;

/// Bytes of activations that are kept for the backward, unless [`ModelLearner::keep`] says otherwise.
pub const KEPT: u64 = 640 << 20;

/// A model that learns adapters.
pub struct ModelLearner {
    model: Arc<Model>,
    forward: Compute,
    backward: Compute,
    cache: Option<KvCache>,
    kept: ActivationCache,
    /// Every layer's input, from the forward to the backward.
    inputs: Vec<Tensor>,
    buffers: Buffers,
    scratch: Scratch,
    logits: Tensor,
    yield_point: Option<Arc<dyn YieldPoint>>,
}

/// Where a batch's examples lie in the rows.
struct Layout {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<(usize, usize)>,
    blocks: Vec<Vec<u32>>,
    runs: Vec<Run>,
    trained: Vec<TrainedRow>,
    /// By row; empty where nobody drops anything.
    dropout: Vec<RowDropout>,
}

/// A row whose next token is trained.
#[derive(Clone, Copy)]
struct TrainedRow {
    row: u32,
    next: u32,
    adapter: usize,
    /// Its example's place in the batch.
    item: usize,
}

/// What a pass with a backward needs.
struct Gradients<'a> {
    loss_scale: &'a [f32],
    weigh: Weigh<'a>,
    grads: &'a mut [LoraGrads],
}

impl Layout {
    fn new(adapters: usize, batch: &[BatchItem<'_>]) -> Layout {
        let mut layout = Layout {
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
            blocks: Vec::new(),
            runs: Vec::new(),
            trained: Vec::new(),
            dropout: Vec::new(),
        };
        let drops = batch.iter().any(|item| item.mask.is_some());
        let mut next_block = 0u32;
        for adapter in 0..adapters {
            let first = layout.tokens.len();
            let of_adapter = |(_, item): &(usize, &BatchItem<'_>)| item.adapter == adapter;
            for (index, item) in batch.iter().enumerate().filter(of_adapter) {
                // The last token predicts nothing that is trained: it needs no row.
                let tokens = &item.example.tokens[..item.example.tokens.len().saturating_sub(1)];
                let at = layout.tokens.len();
                layout.tokens.extend_from_slice(tokens);
                layout.positions.extend(0..tokens.len() as u32);
                layout.sequences.push((at, tokens.len()));
                match item.mask {
                    Some(mask) => layout.dropout.extend(mask.rows(tokens.len())),
                    None if drops => layout
                        .dropout
                        .resize(layout.tokens.len(), RowDropout::default()),
                    None => {}
                }
                let blocks = tokens.len().div_ceil(BLOCK_TOKENS) as u32;
                layout
                    .blocks
                    .push((next_block..next_block + blocks).collect());
                next_block += blocks;
                for (i, trained) in item.example.trained.iter().enumerate().skip(1) {
                    if *trained {
                        layout.trained.push(TrainedRow {
                            row: (at + i - 1) as u32,
                            next: item.example.tokens[i],
                            adapter,
                            item: index,
                        });
                    }
                }
            }
            let rows = layout.tokens.len() - first;
            if rows > 0 {
                layout.runs.push(Run {
                    first,
                    rows,
                    slots: vec![(adapter as u32, 1.0)],
                });
            }
        }
        layout
    }

    fn blocks(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }

    fn spans(&self) -> Vec<Span<'_>> {
        let each = self.sequences.iter().zip(&self.blocks);
        each.map(|(&(first, rows), blocks)| Span {
            first,
            rows,
            past: 0,
            blocks,
        })
        .collect()
    }
}

impl ModelLearner {
    /// Learns on `model`, its forward in `forward`: with `Int8` an adapter learns on the very products it will be
    /// served with, rounding included, and the gradient passes through the rounding as if it were not there. The
    /// backward, whose values have no such fixed range, is in f32 for `F32` and in 16 bits otherwise.
    pub fn new(model: Arc<Model>, forward: Compute) -> ModelLearner {
        ModelLearner {
            model,
            forward,
            backward: match forward {
                Compute::F32 => Compute::F32,
                Compute::Int8 | Compute::Bits16 => Compute::Bits16,
            },
            cache: None,
            kept: ActivationCache::new(KEPT),
            inputs: Vec::new(),
            buffers: Buffers::default(),
            scratch: Scratch::default(),
            logits: Tensor::default(),
            yield_point: None,
        }
    }

    /// The same learner, with a yield point before each layer.
    #[must_use]
    pub fn yielding(mut self, yield_point: Arc<dyn YieldPoint>) -> ModelLearner {
        self.yield_point = Some(yield_point);
        self
    }

    /// Keeps at most `bytes` of activations from the forward to the backward; layers that find no room are run again, to the
    /// same bits.
    pub fn keep(&mut self, bytes: u64) {
        self.kept = ActivationCache::new(bytes);
    }

    /// Forward; and backward too, where there are gradients to gather. The loss of every item, in the batch's order.
    fn run(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        mut gradients: Option<Gradients<'_>>,
    ) -> Result<Vec<LossSum>, TrainError> {
        let model = self.model.clone();
        let (config, device) = (model.config(), model.device());
        let yield_point = self.yield_point.clone();
        let guard = YieldGuard::new(yield_point.as_deref());
        for item in batch {
            let tokens = &item.example.tokens;
            if tokens.len() > config.context_length {
                return Err(TrainError::Learner(format!(
                    "an example of {} tokens is past the model's context of {}",
                    tokens.len(),
                    config.context_length
                )));
            }
            if let Some(&token) = tokens.iter().find(|&&t| t as usize >= config.vocab_size) {
                return Err(TrainError::Learner(format!(
                    "token {token} is past the vocabulary of {}",
                    config.vocab_size
                )));
            }
        }
        let mut losses = vec![LossSum::default(); batch.len()];
        let layout = Layout::new(params.len(), batch);
        if layout.trained.is_empty() {
            return Ok(losses);
        }
        let packed: Vec<Adapter> = params
            .iter()
            .map(|p| model.pack_adapter(&p.pairs, LoraType::F32))
            .collect::<Result<_, _>>()
            .map_err(|e| TrainError::Learner(e.to_string()))?;
        let adapters: Vec<&Adapter> = packed.iter().collect();
        let places = places(params, config.layers);
        let spans = layout.spans();
        let rows = Batch {
            tokens: &layout.tokens,
            spans: &spans,
            runs: &layout.runs,
            adapters: &adapters,
            dropout: &layout.dropout,
        };
        let mut cache = match self.cache.take() {
            Some(cache) if cache.blocks() >= layout.blocks() => cache,
            _ => model
                .new_cache(1, layout.blocks(), KvType::F32)
                .map_err(|e| TrainError::Learner(e.to_string()))?,
        };

        // Forward, keeping every layer's input where there is a backward, and the last layers' activations.
        self.inputs.resize_with(config.layers, Tensor::default);
        let mut x = Tensor::default();
        device.embed(model.embedding(), rows.tokens, &mut x);
        let first_kept = match gradients {
            Some(_) => self.kept.begin(config, x.rows()),
            None => config.layers,
        };
        for layer in 0..config.layers {
            guard.wait()?;
            if gradients.is_some() {
                self.inputs[layer].copy_from(&x);
            }
            self.buffers.keep_middle = layer >= first_kept;
            let buffers = &mut self.buffers;
            model.layer(layer, &mut x, rows, &mut cache, 0, buffers, self.forward);
            if layer >= first_kept {
                self.kept.swap(config.layers - 1 - layer, &mut self.buffers);
            }
        }

        let mut dx = Tensor::zeros(if gradients.is_some() { x.rows() } else { 0 }, x.columns());
        self.head(
            &x,
            &layout,
            gradients.as_ref().map(|gradients| gradients.loss_scale),
            &mut dx,
            &mut losses,
            &guard,
        )?;

        if let Some(Gradients { weigh, grads, .. }) = &mut gradients {
            weigh_rows(&mut dx, &layout, &weights(*weigh, &losses)?);
            let pass = Pass {
                model: &model,
                batch: rows,
                sequences: &layout.sequences,
                positions: &layout.positions,
                forward: self.forward,
                backward: self.backward,
            };
            let mut slots = Slots {
                params,
                grads,
                places: &places,
            };
            for (layer, x) in self.inputs.iter().enumerate().rev() {
                guard.wait()?;
                pass.layer(
                    layer,
                    x,
                    &mut dx,
                    &mut slots,
                    &mut cache,
                    &mut self.kept,
                    &mut self.buffers,
                    &mut self.scratch,
                );
            }
        }
        self.cache = Some(cache);
        Ok(losses)
    }

    /// Losses of the trained rows, and with scales their gradient by the residual stream, chunk by chunk.
    fn head(
        &mut self,
        x: &Tensor,
        layout: &Layout,
        scale: Option<&[f32]>,
        dx: &mut Tensor,
        losses: &mut [LossSum],
        guard: &YieldGuard<'_>,
    ) -> Result<(), TrainError> {
        let (model, device) = (&self.model, self.model.device());
        let (mut selected, mut dnormed, mut dselected) =
            (Tensor::default(), Tensor::default(), Tensor::default());
        let at_once = if self.yield_point.is_some() {
            YIELDING_HEAD_ROWS
        } else {
            HEAD_ROWS
        };
        for chunk in layout.trained.chunks(at_once) {
            guard.wait()?;
            let rows: Vec<u32> = chunk.iter().map(|t| t.row).collect();
            let targets: Vec<u32> = chunk.iter().map(|t| t.next).collect();
            let scales: Vec<f32> = chunk
                .iter()
                .map(|t| scale.map_or(0.0, |s| s[t.adapter]))
                .collect();
            device.gather(x, &rows, &mut selected);
            model.project_head(
                &selected,
                &mut self.buffers.other_input,
                self.forward,
                &mut self.logits,
            );
            let of_rows = device.cross_entropy(&mut self.logits, &targets, &scales);
            for (loss, trained) in of_rows.iter().zip(chunk) {
                losses[trained.item].add(LossSum {
                    loss: f64::from(*loss),
                    tokens: 1,
                });
            }
            if scale.is_some() {
                let head = model.head();
                device.head_backward(&self.logits, head, &mut dnormed, self.backward);
                dselected.resize(rows.len(), x.columns());
                dselected.clear();
                device.rmsnorm_backward(&dnormed, &selected, model.head_norm(), &mut dselected);
                let columns = x.columns();
                for (i, &row) in rows.iter().enumerate() {
                    let to = &mut dx.values_mut()[row as usize * columns..][..columns];
                    to.copy_from_slice(dselected.row(i));
                }
            }
        }
        Ok(())
    }
}

/// Multiplies the gradient of every trained row by its example's weight. The gradient is linear in the loss, so the head can
/// go back before the weights are known; a weight of 1 leaves the bits alone.
fn weigh_rows(dx: &mut Tensor, layout: &Layout, weights: &[f32]) {
    let columns = dx.columns();
    for trained in &layout.trained {
        let weight = weights[trained.item];
        let row = &mut dx.values_mut()[trained.row as usize * columns..][..columns];
        row.iter_mut().for_each(|x| *x *= weight);
    }
}

/// The items' losses as one sum per adapter.
fn by_adapter(losses: &[LossSum], batch: &[BatchItem<'_>], adapters: usize) -> Vec<LossSum> {
    let mut sums = vec![LossSum::default(); adapters];
    for (loss, item) in losses.iter().zip(batch) {
        sums[item.adapter].add(*loss);
    }
    sums
}

impl Learner for ModelLearner {
    fn forward_backward(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        loss_scale: &[f32],
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        let alike = |losses: &[LossSum]| vec![1.0; losses.len()];
        let losses = self.forward_backward_weighted(params, batch, loss_scale, &alike, grads)?;
        Ok(by_adapter(&losses, batch, params.len()))
    }

    fn losses(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        let losses = self.item_losses(params, batch)?;
        Ok(by_adapter(&losses, batch, params.len()))
    }

    fn item_losses(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        self.run(params, batch, None)
    }

    fn forward_backward_weighted(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        loss_scale: &[f32],
        weigh: Weigh<'_>,
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        let gradients = Gradients {
            loss_scale,
            weigh,
            grads,
        };
        self.run(params, batch, Some(gradients))
    }
}
