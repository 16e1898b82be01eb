//! The decoder as a [`Learner`]: rows of several adapters in one pass over the frozen base.
//!
//! Examples are concatenated without padding, adapter by adapter. Only rows whose next token has a loss go through the head.

use std::sync::Arc;

use kernels::{Compute, KvCache, KvType, LoraType, Tensor, Workspace};
use model::{Activations, Adapter, Batch, Model, Step, YieldPoint};

use crate::activation_cache::ActivationCache;
use crate::backward::{Pass, Scratch, Slots};
use crate::error::TrainError;
use crate::layout::{Layout, TrainedRow};
use crate::learner::{BatchItem, Learner, LossSum, Weigh, weights};
use crate::params::{LoraGrads, LoraParams};
use crate::yield_guard::{LayerPace, YieldGuard};

/// Rows that go through the head at once. Memory holds the logits of this many rows.
pub(crate) const HEAD_ROWS: usize = 256;
/// The same with a yield point, so that a piece of the head takes no longer than a layer. Rows do not depend on each other, so
/// the results are the same.
const YIELDING_HEAD_ROWS: usize = 32;

/// Default size of the activation cache, in bytes. [`ModelLearner::set_activation_cache`] changes it.
pub const ACTIVATION_CACHE: u64 = 640 << 20;

/// A model that trains adapters.
pub struct ModelLearner {
    model: Arc<Model>,
    forward: Compute,
    backward: Compute,
    cache: Option<KvCache>,
    activation_cache: ActivationCache,
    /// Every layer's input, kept from the forward to the backward.
    inputs: Vec<Tensor>,
    activations: Activations,
    scratch: Scratch,
    head: Head,
    yield_point: Option<Arc<dyn YieldPoint>>,
    pace: LayerPace,
}

/// Tensors of the output head, reused by every call.
struct Head {
    input: Workspace,
    /// The trained rows of a chunk.
    selected: Tensor,
    logits: Tensor,
    dnormed: Tensor,
    dselected: Tensor,
    /// One loss for each trained row of the batch.
    losses: Tensor,
}

/// The arguments of a pass with a backward.
struct Gradients<'a> {
    loss_scale: &'a [f32],
    weigh: Weigh<'a>,
    grads: &'a mut [LoraGrads],
}

impl ModelLearner {
    /// Trains on `model`, with the forward pass in `forward`. With `Int8`, an adapter trains on the same products as serving,
    /// rounding included, and the gradient ignores the rounding (a straight-through estimator). The backward pass, whose values
    /// have no fixed range, is in f32 for `F32` and in 16 bits otherwise.
    pub fn new(model: Arc<Model>, forward: Compute) -> ModelLearner {
        let device = model.device();
        ModelLearner {
            forward,
            backward: match forward {
                Compute::F32 => Compute::F32,
                Compute::Int8 | Compute::Bits16 => Compute::Bits16,
            },
            cache: None,
            activation_cache: ActivationCache::new(ACTIVATION_CACHE),
            inputs: Vec::new(),
            activations: Activations::new(device),
            scratch: Scratch::new(device),
            head: Head {
                input: device.workspace(),
                selected: device.tensor(),
                logits: device.tensor(),
                dnormed: device.tensor(),
                dselected: device.tensor(),
                losses: device.tensor(),
            },
            yield_point: None,
            pace: LayerPace::default(),
            model,
        }
    }

    /// The same learner, with a yield point before each layer.
    #[must_use]
    pub fn yielding(mut self, yield_point: Arc<dyn YieldPoint>) -> ModelLearner {
        self.yield_point = Some(yield_point);
        self
    }

    /// Keeps at most `bytes` of activations from the forward to the backward. Layers that do not fit are recomputed, to the same
    /// bits.
    pub fn set_activation_cache(&mut self, bytes: u64) {
        self.activation_cache = ActivationCache::new(bytes);
    }

    /// Runs the forward pass, and the backward pass if there are `gradients`. Returns the loss of every item, in the batch's order.
    fn run(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        gradients: Option<Gradients<'_>>,
    ) -> Result<Vec<LossSum>, TrainError> {
        let model = self.model.clone();
        let device = model.device();
        let yield_point = self.yield_point.clone();
        let guard = YieldGuard::new(yield_point.as_ref(), device, self.pace);
        check(batch, &model)?;
        if gradients.is_some() && !device.trains() {
            return Err(TrainError::Learner(format!(
                "training on {} is not supported; train with --device cpu",
                device.describe()
            )));
        }
        let layout = Layout::new(params.len(), batch);
        if layout.trained.is_empty() {
            return Ok(vec![LossSum::default(); batch.len()]);
        }
        let packed: Vec<Adapter> = params
            .iter()
            .map(|p| model.pack_adapter(&p.pairs, LoraType::F32))
            .collect::<Result<_, _>>()
            .map_err(|e| TrainError::Learner(e.to_string()))?;
        let adapters: Vec<&Adapter> = packed.iter().collect();
        let spans = layout.spans();
        let step = model.step(Batch {
            tokens: &layout.tokens,
            spans: &spans,
            runs: &layout.runs,
            adapters: &adapters,
            dropout: &layout.dropout,
        });
        let mut cache = match self.cache.take() {
            Some(cache) if cache.blocks() >= layout.blocks() => cache,
            _ => model
                .new_cache(1, layout.blocks(), KvType::F32)
                .map_err(|e| TrainError::Learner(e.to_string()))?,
        };

        let x = self.layers(&step, &mut cache, gradients.is_some(), &guard)?;
        let mut dx = device.zeros(if gradients.is_some() { x.rows() } else { 0 }, x.columns());
        let scale = gradients.as_ref().map(|gradients| gradients.loss_scale);
        let losses = self.head(&x, &layout, batch.len(), scale, &mut dx, &guard)?;

        if let Some(Gradients { weigh, grads, .. }) = gradients {
            // The gradient is linear in the loss, so the head's backward can run before the items' weights are known. A weight of 1
            // does not change a bit.
            let weights = weights(weigh, &losses)?;
            let rows: Vec<u32> = layout.trained.iter().map(|trained| trained.row).collect();
            let of_row = |trained: &TrainedRow| weights[trained.item];
            let factors: Vec<f32> = layout.trained.iter().map(of_row).collect();
            device.scale_rows(&mut dx, &rows, &factors);
            let slots = Slots::new(&model, params, grads);
            self.layers_backward(&step, &mut dx, slots, &mut cache, &guard)?;
        }
        self.cache = Some(cache);
        self.pace = guard.pace();
        Ok(losses)
    }

    /// The backward through all layers: adds the gradients of `slots`, and replaces `dx`, the gradient by the last layer's output,
    /// with the one by the embeddings.
    fn layers_backward(
        &mut self,
        step: &Step<'_>,
        dx: &mut Tensor,
        mut slots: Slots<'_>,
        cache: &mut KvCache,
        guard: &YieldGuard<'_>,
    ) -> Result<(), TrainError> {
        let pass = Pass {
            model: &self.model,
            step,
            forward: self.forward,
            backward: self.backward,
        };
        let step_rows = dx.rows();
        for (layer, x) in self.inputs.iter().enumerate().rev() {
            guard.layer(step_rows, || {
                pass.layer(
                    layer,
                    x,
                    dx,
                    &mut slots,
                    cache,
                    &mut self.activation_cache,
                    &mut self.activations,
                    &mut self.scratch,
                );
            })?;
        }
        slots.read(self.model.device());
        Ok(())
    }

    /// Runs the forward pass through all layers and returns the residual stream. With `backward`, keeps every layer's input and
    /// the activations of the last layers.
    fn layers(
        &mut self,
        step: &Step<'_>,
        cache: &mut KvCache,
        backward: bool,
        guard: &YieldGuard<'_>,
    ) -> Result<Tensor, TrainError> {
        let (model, device) = (&self.model, self.model.device());
        let config = model.config();
        self.inputs.resize_with(config.layers, || device.tensor());
        let mut x = device.tensor();
        model.embed(step, &mut x);
        let first_kept = if backward {
            self.activation_cache.reserve(device, config, x.rows())
        } else {
            config.layers
        };
        for layer in 0..config.layers {
            let activations = &mut self.activations;
            guard.layer(x.rows(), || {
                if backward {
                    device.copy(&x, &mut self.inputs[layer]);
                }
                activations.keep_middle = layer >= first_kept;
                model.layer(layer, &mut x, step, cache, 0, activations, self.forward);
            })?;
            if layer >= first_kept {
                self.activation_cache
                    .swap(config.layers - 1 - layer, activations);
            }
        }
        Ok(x)
    }

    /// Returns the losses of `items` items. With `scale`, also writes the gradient by the trained rows of the residual stream to
    /// `dx`, chunk by chunk.
    fn head(
        &mut self,
        x: &Tensor,
        layout: &Layout,
        items: usize,
        scale: Option<&[f32]>,
        dx: &mut Tensor,
        guard: &YieldGuard<'_>,
    ) -> Result<Vec<LossSum>, TrainError> {
        let (model, device, h) = (&self.model, self.model.device(), &mut self.head);
        let chunk_rows = match self.yield_point {
            Some(_) => YIELDING_HEAD_ROWS,
            None => HEAD_ROWS,
        };
        device.clear(&mut h.losses, layout.trained.len(), 1);
        for (i, chunk) in layout.trained.chunks(chunk_rows).enumerate() {
            let rows: Vec<u32> = chunk.iter().map(|t| t.row).collect();
            let targets: Vec<u32> = chunk.iter().map(|t| t.next).collect();
            let scales: Vec<f32> = chunk
                .iter()
                .map(|t| scale.map_or(0.0, |s| s[t.adapter]))
                .collect();
            guard.part(true, || {
                device.gather_rows(x, &rows, &mut h.selected);
                model.project_head(&h.selected, &mut h.input, self.forward, &mut h.logits);
                device.cross_entropy(
                    &mut h.logits,
                    &targets,
                    &scales,
                    &mut h.losses,
                    i * chunk_rows,
                );
                if scale.is_some() {
                    device.head_backward(&h.logits, model.head(), &mut h.dnormed, self.backward);
                    device.clear(&mut h.dselected, rows.len(), x.columns());
                    let norm = model.head_norm();
                    device.rmsnorm_backward(&h.dnormed, &h.selected, norm, &mut h.dselected);
                    device.scatter_rows(&h.dselected, &rows, dx);
                }
            })?;
        }
        let mut losses = vec![LossSum::default(); items];
        for (loss, trained) in h.losses.read().iter().zip(&layout.trained) {
            losses[trained.item].add(LossSum {
                loss: f64::from(*loss),
                tokens: 1,
            });
        }
        Ok(losses)
    }
}

/// Checks that the model can run the batch.
fn check(batch: &[BatchItem<'_>], model: &Model) -> Result<(), TrainError> {
    let config = model.config();
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
    Ok(())
}

/// Sums the items' losses by adapter.
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
        let equal = |losses: &[LossSum]| vec![1.0; losses.len()];
        let losses = self.forward_backward_weighted(params, batch, loss_scale, &equal, grads)?;
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
