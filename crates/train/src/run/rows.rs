//! Rows of a batch and the sums of their losses. A row is one example, or a pair of a chosen and a rejected answer.

use crate::dropout::DropoutMask;
use crate::example::Example;
use crate::learner::{BatchItem, LossSum};
use crate::preference::{DpoTotals, PreferenceStats, RejectedExamples, dpo_loss};
use crate::settings::PreferenceSettings;

/// The rows of one adapter's training or validation.
#[derive(Clone, Copy)]
pub(super) struct RowSet<'a> {
    pub adapter: usize,
    pub examples: &'a [Example],
    /// In preference tuning: its settings and the rejected answers.
    pub preference: Option<(&'a PreferenceSettings, &'a RejectedExamples)>,
    /// The step's dropout mask, from which every sequence derives its own; `None` without dropout.
    pub mask: Option<DropoutMask>,
}

impl<'a> RowSet<'a> {
    pub fn row(&self, row: usize) -> BatchRow<'a> {
        let rejected = self.preference.map(|(settings, examples)| RejectedAnswer {
            example: &examples.examples[row],
            reference_logps: examples.reference_logps[row],
            settings,
        });
        let mask = self.mask.map(|mask| DropoutMask {
            row: 2 * row as u64,
            ..mask
        });
        BatchRow {
            adapter: self.adapter,
            example: &self.examples[row],
            rejected,
            mask,
        }
    }

    pub fn rows(&self) -> Vec<BatchRow<'a>> {
        (0..self.examples.len()).map(|row| self.row(row)).collect()
    }
}

/// One row. All its sequences must be in the same call of the learner.
#[derive(Clone, Copy)]
pub(super) struct BatchRow<'a> {
    pub adapter: usize,
    /// The example, or the chosen answer.
    example: &'a Example,
    rejected: Option<RejectedAnswer<'a>>,
    /// The masks of the example, or of the chosen answer.
    mask: Option<DropoutMask>,
}

/// The rejected answer of a pair.
#[derive(Clone, Copy)]
struct RejectedAnswer<'a> {
    example: &'a Example,
    reference_logps: [f64; 2],
    settings: &'a PreferenceSettings,
}

impl<'a> BatchRow<'a> {
    /// The sequences, the chosen one first.
    pub fn items(&self) -> impl Iterator<Item = BatchItem<'a>> + use<'a> {
        let adapter = self.adapter;
        let rejected = self.mask.map(|mask| DropoutMask {
            row: mask.row + 1,
            ..mask
        });
        let sequences = [
            Some((self.example, self.mask)),
            self.rejected.map(|other| (other.example, rejected)),
        ];
        sequences
            .into_iter()
            .flatten()
            .map(move |(example, mask)| BatchItem {
                adapter,
                example,
                mask,
            })
    }

    /// Tokens of its sequences.
    pub fn tokens(&self) -> usize {
        self.items().map(|item| item.example.tokens.len()).sum()
    }

    pub fn is_pair(&self) -> bool {
        self.rejected.is_some()
    }
}

/// The weights of the items of `rows`, whose losses are `losses`.
pub(super) fn gradient_weights(rows: &[BatchRow<'_>], losses: &[LossSum]) -> Vec<f32> {
    let mut weights = Vec::with_capacity(losses.len());
    for_each(rows, losses, |row, losses| match row.rejected {
        None => weights.push(1.0),
        Some(other) => {
            let pair = dpo_loss(other.settings, losses[0], losses[1], other.reference_logps);
            weights.extend(pair.weights.map(|weight| weight as f32));
        }
    });
    weights
}

/// Gives each of `rows` with the losses of its items to `each`.
fn for_each<'a>(
    rows: &[BatchRow<'a>],
    losses: &[LossSum],
    mut each: impl FnMut(&BatchRow<'a>, &[LossSum]),
) {
    let mut rest = losses;
    for row in rows {
        let (own, others) = rest.split_at(row.items().count());
        each(row, own);
        rest = others;
    }
}

/// Sums of a pass over an adapter's rows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LossTally {
    losses: LossSum,
    pairs: DpoTotals,
}

impl LossTally {
    /// Adds the losses of rows without a pair.
    pub(super) fn add(&mut self, losses: LossSum) {
        self.losses.add(losses);
    }

    /// Mean of the minimized objective: the loss of a token, or the objective of a pair.
    pub(super) fn loss(&self) -> f64 {
        match self.preference() {
            None => self.losses.mean(),
            Some(_) => self.pairs.loss(),
        }
    }

    /// Trained tokens.
    pub(super) fn tokens(&self) -> usize {
        self.losses.tokens + self.pairs.tokens()
    }

    /// Statistics of the pairs, if there are any.
    pub(super) fn preference(&self) -> Option<PreferenceStats> {
        self.pairs.stats()
    }
}

/// Adds `rows`, whose items have the losses `losses`, to their adapters' `tallies`.
pub(super) fn add_losses(rows: &[BatchRow<'_>], losses: &[LossSum], tallies: &mut [LossTally]) {
    for_each(rows, losses, |row, losses| {
        let tally = &mut tallies[row.adapter];
        match row.rejected {
            None => tally.add(losses[0]),
            Some(other) => {
                let pair = dpo_loss(other.settings, losses[0], losses[1], other.reference_logps);
                tally.pairs.add(&pair, losses[0], losses[1]);
            }
        }
    });
}
