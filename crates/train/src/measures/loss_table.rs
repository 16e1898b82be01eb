//! Losses as a matrix: every set of rows under every adapter. Asks a [`Learner`].

use serde::Serialize;

use crate::batch;
use crate::error::TrainError;
use crate::example::Example;
use crate::learner::{BatchItem, Learner, LossSum};
use crate::params::LoraParams;

/// Losses of each set of rows under each adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossTable {
    /// Names of the row sets, in order.
    pub sets: Vec<String>,
    /// Names of the adapters, in order.
    pub adapters: Vec<String>,
    /// `losses[set][adapter]`.
    pub losses: Vec<Vec<LossSum>>,
}

/// Computes the loss of every set of `sets` under every adapter of `adapters`; an adapter without pairs is the base.
///
/// `batch_tokens` bounds the tokens of one call of the learner (0: no bound).
///
/// # Errors
/// The learner fails.
pub fn loss_table(
    learner: &mut dyn Learner,
    sets: &[(&str, &[Example])],
    adapters: &[(&str, &LoraParams)],
    batch_tokens: usize,
) -> Result<LossTable, TrainError> {
    let params: Vec<LoraParams> = adapters
        .iter()
        .map(|(_, params)| (*params).clone())
        .collect();
    let mut losses = Vec::with_capacity(sets.len());
    for (_, examples) in sets {
        let mut row = Vec::with_capacity(adapters.len());
        for adapter in 0..adapters.len() {
            let items: Vec<BatchItem<'_>> = examples
                .iter()
                .map(|example| BatchItem::new(adapter, example))
                .collect();
            row.push(losses_of(learner, &params, &items, batch_tokens)?[adapter]);
        }
        losses.push(row);
    }
    Ok(LossTable {
        sets: sets.iter().map(|(name, _)| (*name).to_owned()).collect(),
        adapters: adapters
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect(),
        losses,
    })
}

/// The losses of `items` by adapter, in calls of at most `batch_tokens` tokens.
fn losses_of(
    learner: &mut dyn Learner,
    params: &[LoraParams],
    items: &[BatchItem<'_>],
    batch_tokens: usize,
) -> Result<Vec<LossSum>, TrainError> {
    let lengths: Vec<usize> = items.iter().map(|item| item.example.tokens.len()).collect();
    let mut sums = vec![LossSum::default(); params.len()];
    for piece in batch::pieces(&lengths, batch_tokens) {
        for (sum, loss) in sums.iter_mut().zip(learner.losses(params, &items[piece])?) {
            sum.add(loss);
        }
    }
    Ok(sums)
}
