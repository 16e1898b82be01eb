//! Dropout on adapters' inputs. A mask is a function of its row's key, the linear layer and the column: no mask is stored, and any
//! part of one can be computed separately.

use crate::cpu::isa::Isa;
use crate::cpu::isa::per_isa;
use crate::rows::RowDropout;
use kernels_common::step::Step;

/// Dropout at one linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// One for each row of the batch.
    pub rows: &'a [RowDropout],
    /// The number of the linear layer.
    pub linear: u32,
}

impl<'a> Dropout<'a> {
    /// A step's dropout at one linear layer, if it has any.
    pub fn of(step: &'a Step, linear: u32) -> Option<Dropout<'a>> {
        (!step.dropout.is_empty()).then_some(Dropout {
            rows: &step.dropout,
            linear,
        })
    }

    /// Whether any of these rows has dropout.
    pub(crate) fn drops(&self, rows: std::ops::Range<usize>) -> bool {
        self.rows[rows].iter().any(|row| row.share > 0.0)
    }

    /// Multiplies `values`, columns `first..` of row `row`, with their mask.
    pub(crate) fn apply(&self, isa: Isa, row: usize, first: usize, values: &mut [f32]) {
        let RowDropout { share, key } = self.rows[row];
        if share > 0.0 {
            let key = mix(key ^ mix(self.linear.wrapping_mul(STRIDE)));
            let kept = ((1.0 - share) * RANGE).round() as i32;
            mask(isa, key, kept, 1.0 / (1.0 - share), first, values);
        }
    }

    /// The same for whole rows of `columns`, from row `row` on.
    pub(crate) fn apply_rows(&self, isa: Isa, row: usize, columns: usize, values: &mut [f32]) {
        for (i, values) in values.chunks_exact_mut(columns).enumerate() {
            self.apply(isa, row + i, 0, values);
        }
    }
}

/// Numbers drawn are below this.
const RANGE: f32 = (1 << 24) as f32;

/// From one column to the next: 2^32 by the golden ratio, odd.
const STRIDE: u32 = 0x9e37_79b9;

/// A permutation of 32 bits in which every bit of the input changes every bit of the output about half the time: the constants are
/// those of Wellons, "Prospecting for Hash Functions", 2018 (lowbias32).
#[inline(always)]
fn mix(x: u32) -> u32 {
    let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

per_isa! {
    fn mask(key: u32, kept: i32, scale: f32, first: usize, values: &mut [f32]) {
        for (i, value) in values.iter_mut().enumerate() {
            let drawn = mix(key.wrapping_add((first as u32 + i as u32).wrapping_mul(STRIDE))) >> 8;
            *value *= if (drawn as i32) < kept { scale } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[RowDropout], linear: u32, row: usize, first: usize, count: usize) -> Vec<f32> {
        let mut values = vec![1.0; count];
        Dropout { rows, linear }.apply(Isa::Scalar, row, first, &mut values);
        values
    }

    #[test]
    fn mask_drops_its_share_and_keeps_the_mean() {
        for share in [0.1, 0.25, 0.9] {
            let rows = [RowDropout { share, key: 7 }];
            let values = of(&rows, 3, 0, 0, 40_000);
            let scale = 1.0 / (1.0 - share);
            assert!(values.iter().all(|v| *v == 0.0 || *v == scale));
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            assert!((mean - 1.0).abs() < 0.02 * scale, "{share}: {mean}");
        }
        let none = [RowDropout { share: 0.0, key: 7 }];
        assert_eq!(of(&none, 3, 0, 0, 100), [1.0; 100]);
    }

    #[test]
    fn part_of_a_mask_equals_that_part_of_the_full_mask_on_every_isa() {
        let rows = [RowDropout { share: 0.4, key: 9 }; 2];
        let whole = of(&rows, 5, 1, 0, 101);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut part = [1.0; 70];
            let dropout = Dropout {
                rows: &rows,
                linear: 5,
            };
            dropout.apply(isa, 1, 31, &mut part);
            assert_eq!(part, whole[31..]);
        }
    }

    /// Masks of neighbouring keys and layers agree as often as random ones.
    #[test]
    fn masks_of_different_keys_and_layers_are_independent() {
        let count = 20_000;
        let mask = |key: u32, linear: u32| {
            let rows = [RowDropout { share: 0.5, key }];
            of(&rows, linear, 0, 0, count)
        };
        let this = mask(1000, 11);
        assert_eq!(this, mask(1000, 11));
        for other in [mask(1001, 11), mask(1000, 12), mask(999, 10), mask(0, 11)] {
            let agree = this.iter().zip(&other).filter(|(a, b)| a == b).count();
            let share = agree as f64 / count as f64;
            assert!((share - 0.5).abs() < 0.02, "{share}");
        }
        // Nor do a mask's own neighbours.
        let follow = this.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((follow as f64 / count as f64 - 0.5).abs() < 0.02);
    }
}
