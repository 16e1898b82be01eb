//! A row as the loop takes it, and what a pass over rows adds up to: one example and its loss, or a pair of answers and
//! what it says of the preference.

use crate::dropout::DropoutMask;
use crate::example::Example;
use crate::learner::{BatchItem, LossSum};
use crate::preference::{
    DpoTotals, PreferenceSettings, PreferenceStats, RejectedExamples, dpo_loss,
};

/// The rows of one adapter's training or validation.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub adapter: usize,
    pub examples: &'a [Example],
    /// Where preferences are trained: how, and the rejected answers.
    pub preference: Option<(&'a PreferenceSettings, &'a RejectedExamples)>,
    /// Names the step's masks, of which every sequence has one of its own; none where nothing is dropped.
    pub mask: Option<DropoutMask>,
}

impl<'a> Rows<'a> {
    pub fn unit(&self, row: usize) -> Unit<'a> {
        let pair = self.preference.map(|(settings, rejected)| Other {
            example: &rejected.examples[row],
            reference: rejected.reference[row],
            settings,
        });
        let mask = self.mask.map(|mask| DropoutMask {
            row: 2 * row as u64,
            ..mask
        });
        Unit {
            adapter: self.adapter,
            example: &self.examples[row],
            pair,
            mask,
        }
    }

    pub fn units(&self) -> Vec<Unit<'a>> {
        (0..self.examples.len()).map(|row| self.unit(row)).collect()
    }
}

/// What must stand in one call of the learner.
#[derive(Clone, Copy)]
pub(super) struct Unit<'a> {
    pub adapter: usize,
    /// The example, or the chosen answer.
    example: &'a Example,
    pair: Option<Other<'a>>,
    /// The masks of the example, or of the chosen answer.
    mask: Option<DropoutMask>,
}

/// The rejected answer of a pair.
#[derive(Clone, Copy)]
struct Other<'a> {
    example: &'a Example,
    reference: [f64; 2],
    settings: &'a PreferenceSettings,
}

impl<'a> Unit<'a> {
    /// The sequences, the chosen one first.
    pub fn items(&self) -> impl Iterator<Item = BatchItem<'a>> + use<'a> {
        let adapter = self.adapter;
        let rejected = self.mask.map(|mask| DropoutMask {
            row: mask.row + 1,
            ..mask
        });
        let sequences = [
            Some((self.example, self.mask)),
            self.pair.map(|other| (other.example, rejected)),
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
        self.pair.is_some()
    }
}

/// The weights of the items of `units`, whose losses are `losses`.
pub(super) fn weights(units: &[Unit<'_>], losses: &[LossSum]) -> Vec<f32> {
    let mut weights = Vec::with_capacity(losses.len());
    for_each(units, losses, |unit, losses| match unit.pair {
        None => weights.push(1.0),
        Some(other) => {
            let pair = dpo_loss(other.settings, losses[0], losses[1], other.reference);
            weights.extend(pair.weights.map(|weight| weight as f32));
        }
    });
    weights
}

/// Gives each of `units` with the losses of its items to `each`.
fn for_each<'a>(
    units: &[Unit<'a>],
    losses: &[LossSum],
    mut each: impl FnMut(&Unit<'a>, &[LossSum]),
) {
    let mut rest = losses;
    for unit in units {
        let (own, others) = rest.split_at(unit.items().count());
        each(unit, own);
        rest = others;
    }
}

/// What a pass over an adapter's rows adds up to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    losses: LossSum,
    pairs: DpoTotals,
}

impl Tally {
    /// Adds the losses of rows without a pair.
    pub(super) fn add(&mut self, losses: LossSum) {
        self.losses.add(losses);
    }

    /// What is brought down, in the mean: a token's loss, or a pair's.
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

    /// What the pairs say, where there are any.
    pub(super) fn preference(&self) -> Option<PreferenceStats> {
        self.pairs.stats()
    }
}

/// Adds `units`, whose items have the losses `losses`, to their adapters' `tallies`.
pub(super) fn tally(units: &[Unit<'_>], losses: &[LossSum], tallies: &mut [Tally]) {
    for_each(units, losses, |unit, losses| {
        let tally = &mut tallies[unit.adapter];
        match unit.pair {
            None => tally.add(losses[0]),
            Some(other) => {
                let pair = dpo_loss(other.settings, losses[0], losses[1], other.reference);
                tally.pairs.add(&pair, losses[0], losses[1]);
            }
        }
    });
}
