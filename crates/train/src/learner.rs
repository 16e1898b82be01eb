//! The interface between the training loop and the model: losses and gradients of rows of several adapters at once.
//!
//! The training loop knows only this trait. The decoder implements it, and so do tests, with a few lines of arithmetic.

use serde::Serialize;

use crate::dropout::DropoutMask;
use crate::error::TrainError;
use crate::example::Example;
use crate::params::{LoraGrads, LoraParams};

/// One row of a batch: which adapter it trains, and its tokens.
#[derive(Debug, Clone, Copy)]
pub struct BatchItem<'a> {
    /// Index into the parameters.
    pub adapter: usize,
    /// The row.
    pub example: &'a Example,
    /// Selects the dropped inputs of its adapter; `None` without dropout.
    pub mask: Option<DropoutMask>,
}

impl<'a> BatchItem<'a> {
    /// A row of `adapter` without dropout.
    #[must_use]
    pub fn new(adapter: usize, example: &'a Example) -> Self {
        Self {
            adapter,
            example,
            mask: None,
        }
    }
}

/// Losses summed over trained tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct LossSum {
    /// Sum of the tokens' losses, in nats.
    pub loss: f64,
    /// Trained tokens.
    pub tokens: usize,
}

impl LossSum {
    /// Adds another sum.
    pub fn add(&mut self, other: LossSum) {
        self.loss += other.loss;
        self.tokens += other.tokens;
    }

    /// Mean loss of a token, in nats; 0 if there are none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.tokens == 0 {
            0.0
        } else {
            self.loss / self.tokens as f64
        }
    }

    /// Exponential of the mean loss.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }
}

/// A frozen base that computes losses and gradients of adapters.
///
/// A row's loss is the sum of -ln p(tokens\[i\] | tokens\[..i\]) over the i with loss_mask\[i\]. Rows do not see each
/// other. An item's dropout mask applies in every method. [`Learner::forward_backward`] and [`Learner::losses`] return
/// one sum for each adapter of `params`, zero for an adapter that has no row in the batch. The same arguments give the same
/// bits. An adapter without pairs is the bare base.
pub trait Learner {
    /// Adds to `grads[a]` the gradient of loss_scale\[a\] * (sum of the losses of a's rows), for every adapter a.
    ///
    /// `grads` has the shapes of `params` and is not cleared first: micro-batches add up in it.
    ///
    /// # Errors
    /// [`TrainError::Learner`], when the model cannot run the batch.
    fn forward_backward(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        loss_scale: &[f32],
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError>;

    /// Computes the losses only.
    ///
    /// # Errors
    /// [`TrainError::Learner`], when the model cannot run the batch.
    fn losses(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError>;

    /// The loss of every item by itself, in the batch's order.
    ///
    /// # Errors
    /// As [`Learner::losses`].
    fn item_losses(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
    ) -> Result<Vec<LossSum>, TrainError> {
        let mut each = Vec::with_capacity(batch.len());
        for item in batch {
            let sums = self.losses(params, std::slice::from_ref(item))?;
            each.push(sums.get(item.adapter).copied().unwrap_or_default());
        }
        Ok(each)
    }

    /// Adds to `grads[a]` the gradient of loss_scale\[a\] * (sum over a's items of weight * loss), and returns the loss of
    /// every item, in the batch's order.
    ///
    /// `weigh` maps those losses to the items' weights, which are treated as constants. By the chain rule, they are the derivatives
    /// of an objective by the losses. This default implementation is the definition and takes two forward passes; a learner that
    /// can weigh between its forward and its backward needs one.
    ///
    /// # Errors
    /// As [`Learner::forward_backward`]. Also if the number of weights is not that of the items.
    fn forward_backward_weighted(
        &mut self,
        params: &[LoraParams],
        batch: &[BatchItem<'_>],
        loss_scale: &[f32],
        weigh: Weigh<'_>,
        grads: &mut [LoraGrads],
    ) -> Result<Vec<LossSum>, TrainError> {
        let losses = self.item_losses(params, batch)?;
        let weights = weights(weigh, &losses)?;
        for (item, weight) in batch.iter().zip(weights) {
            let mut scale = vec![0.0; params.len()];
            scale[item.adapter] = loss_scale[item.adapter] * weight;
            self.forward_backward(params, std::slice::from_ref(item), &scale, grads)?;
        }
        Ok(losses)
    }
}

/// Maps the items' losses to their weights.
pub type Weigh<'a> = &'a dyn Fn(&[LossSum]) -> Vec<f32>;

/// The weights that `weigh` returns for `losses`, one for each item.
pub(crate) fn weights(weigh: Weigh<'_>, losses: &[LossSum]) -> Result<Vec<f32>, TrainError> {
    let weights = weigh(losses);
    if weights.len() == losses.len() {
        return Ok(weights);
    }
    Err(TrainError::Learner(format!(
        "{} weights for {} rows",
        weights.len(),
        losses.len()
    )))
}
