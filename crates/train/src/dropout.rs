//! Dropout on the adapters' input during training: the keys of the masks.
//!
//! A mask is a function of seed, step, row, layer and module: a layer that is run again in the backward sees the
//! mask that it ran with, a resumed run the masks of the whole one, and a step cut into micro-batches those of the large
//! batch. `kernels` applies them.

use kernels::RowDropout;

use crate::rng::Rng;

/// The label of this module's random streams.
const DROP: u64 = 0x6472_6f70_0000;

/// Names the masks of one sequence in one step, wherever in a batch it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    /// Share of the inputs that are set to zero.
    pub share: f32,
    /// The adapter's seed.
    pub seed: u64,
    /// The optimizer step, from 0.
    pub step: u64,
    /// The sequence among the adapter's training rows: twice the row's index, and 1 more for a rejected answer.
    pub row: u64,
}

impl DropoutMask {
    /// The masks of the sequence's first `tokens` tokens, each by its own name.
    pub(crate) fn rows(self, tokens: usize) -> impl Iterator<Item = RowDropout> {
        let mut rng = Rng::new(self.seed, &[DROP, self.step, self.row]);
        std::iter::repeat_with(move || RowDropout {
            share: self.share,
            key: (rng.next_u64() >> 32) as u32,
        })
        .take(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: DropoutMask = DropoutMask {
        share: 0.25,
        seed: 7,
        step: 3,
        row: 2,
    };

    #[test]
    fn mask_keys_depend_on_seed_step_row_and_token() {
        let keys =
            |mask: DropoutMask, tokens| mask.rows(tokens).map(|row| row.key).collect::<Vec<_>>();
        let these = keys(MASK, 100);
        assert_eq!(these[..30], keys(MASK, 30));
        assert!(MASK.rows(3).all(|row| row.share == 0.25));
        let mut all = these.clone();
        for other in [
            DropoutMask { seed: 8, ..MASK },
            DropoutMask { step: 4, ..MASK },
            DropoutMask { row: 3, ..MASK },
        ] {
            all.extend(keys(other, 100));
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 400);
    }
}
