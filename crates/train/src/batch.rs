//! Assigns rows to optimizer steps, and splits a step into pieces that fit in memory.
//!
//! Knows lengths and indices only. Sequences are laid end to end, never padded; rows of similar length still go together,
//! so that the steps of a run cost about the same in attention and memory. The order is a pure function of seed and epoch:
//! a resumed run computes it again instead of loading it.

use std::ops::Range;

use crate::rng::Rng;

/// Number of steps whose rows are sorted by length together.
const WINDOW: usize = 16;

/// How the rows of an epoch are put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordering {
    /// Names the shuffle, together with the epoch.
    pub seed: u64,
    /// Rows that make one optimizer step.
    pub rows_per_step: usize,
    /// If false, rows keep the order of the file.
    pub shuffle: bool,
    /// Rows of similar length go together within windows of 16 steps. Without effect when `shuffle` is off.
    pub group_by_length: bool,
}

impl Ordering {
    /// Optimizer steps of one epoch over `rows` rows.
    #[must_use]
    pub fn steps(&self, rows: usize) -> usize {
        rows.div_ceil(self.rows_per_step.max(1))
    }

    /// The rows of each step of `epoch` (from 0), as indices into `lengths` (tokens of each row).
    ///
    /// Every row is in exactly one step; every step but one holds `rows_per_step` rows.
    #[must_use]
    pub fn epoch(&self, lengths: &[usize], epoch: u64) -> Vec<Vec<usize>> {
        let rows_per_step = self.rows_per_step.max(1);
        let mut rows: Vec<usize> = (0..lengths.len()).collect();
        if !self.shuffle {
            return rows.chunks(rows_per_step).map(<[usize]>::to_vec).collect();
        }
        let mut rng = Rng::new(self.seed, &[ORDER, epoch]);
        rng.shuffle(&mut rows);
        if !self.group_by_length {
            return rows.chunks(rows_per_step).map(<[usize]>::to_vec).collect();
        }
        let mut steps = Vec::with_capacity(self.steps(lengths.len()));
        for window in rows.chunks_mut(rows_per_step * WINDOW) {
            window.sort_by_key(|&row| lengths[row]);
            let mut chunks: Vec<Vec<usize>> = window
                .chunks(rows_per_step)
                .map(<[usize]>::to_vec)
                .collect();
            rng.shuffle(&mut chunks);
            steps.extend(chunks);
        }
        steps
    }
}

/// The label of this module's random streams.
const ORDER: u64 = 0x6f72_6465_7200;

/// Cuts a run of rows, given by their `lengths` in tokens, into pieces of at most `max_tokens` tokens each.
///
/// A row longer than the limit is a piece by itself. The pieces cover the rows in order; 0 sets no limit.
#[must_use]
pub fn pieces(lengths: &[usize], max_tokens: usize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut start, mut tokens) = (0, 0usize);
    for (row, &length) in lengths.iter().enumerate() {
        let together = tokens.saturating_add(length);
        if row > start && max_tokens > 0 && together > max_tokens {
            pieces.push(start..row);
            (start, tokens) = (row, length);
        } else {
            tokens = together;
        }
    }
    if start < lengths.len() {
        pieces.push(start..lengths.len());
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Ordering = Ordering {
        seed: 1,
        rows_per_step: 4,
        shuffle: true,
        group_by_length: true,
    };

    fn lengths(rows: usize) -> Vec<usize> {
        (0..rows).map(|i| 20 + (i * 7919) % 200).collect()
    }

    #[test]
    fn every_row_is_in_exactly_one_step() {
        for ordering in [
            PLAIN,
            Ordering {
                shuffle: false,
                ..PLAIN
            },
            Ordering {
                group_by_length: false,
                ..PLAIN
            },
            Ordering {
                rows_per_step: 0,
                ..PLAIN
            },
        ] {
            let steps = ordering.epoch(&lengths(131), 2);
            assert_eq!(steps.len(), ordering.steps(131));
            let mut rows: Vec<usize> = steps.concat();
            rows.sort_unstable();
            assert_eq!(rows, (0..131).collect::<Vec<_>>());
        }
        assert!(PLAIN.epoch(&[], 0).is_empty());
    }

    #[test]
    fn order_depends_only_on_seed_and_epoch() {
        let lengths = lengths(100);
        assert_eq!(PLAIN.epoch(&lengths, 3), PLAIN.epoch(&lengths, 3));
        assert_ne!(PLAIN.epoch(&lengths, 3), PLAIN.epoch(&lengths, 4));
        assert_ne!(
            PLAIN.epoch(&lengths, 3),
            Ordering { seed: 2, ..PLAIN }.epoch(&lengths, 3)
        );
        let given = Ordering {
            shuffle: false,
            ..PLAIN
        }
        .epoch(&lengths, 3);
        assert_eq!(given.concat(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn rows_of_a_step_have_similar_lengths() {
        let lengths = lengths(640);
        let spread = |ordering: Ordering| -> usize {
            let spread = |step: &Vec<usize>| {
                let of_step = || step.iter().map(|&row| lengths[row]);
                of_step().max().unwrap() - of_step().min().unwrap()
            };
            ordering.epoch(&lengths, 0).iter().map(spread).sum()
        };
        let alone = spread(Ordering {
            group_by_length: false,
            ..PLAIN
        });
        assert!(
            spread(PLAIN) * 4 < alone,
            "{} against {alone}",
            spread(PLAIN)
        );
    }

    #[test]
    fn pieces_cover_all_rows_within_the_limit() {
        assert_eq!(pieces(&[3, 3, 3, 9, 1], 6), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(pieces(&[3, 3], 0).first(), Some(&(0..2)));
        assert_eq!(pieces(&[usize::MAX, 1], 6), [0..1, 1..2]);
        assert!(pieces(&[], 6).is_empty());
    }
}
