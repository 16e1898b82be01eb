//! Random numbers that are the same on every machine and in every release: xoshiro256++ seeded by SplitMix64.
//!
//! Blackman and Vigna, "Scrambled Linear Pseudorandom Number Generators" (2021). A generator is named by a seed and a
//! path of labels, so that no stream depends on how much another one was used: a resumed run has no state to restore.

use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use rand_xoshiro::{SplitMix64, Xoshiro256PlusPlus};

/// One stream of random numbers.
#[derive(Debug, Clone)]
pub struct Rng(Xoshiro256PlusPlus);

impl Rng {
    /// The stream that `seed` and `labels` name. Other labels give an unrelated stream.
    #[must_use]
    pub fn new(seed: u64, labels: &[u64]) -> Self {
        let key = labels.iter().fold(split_mix(seed), |key, label| {
            split_mix(key ^ label.wrapping_mul(0xd134_2543_de82_ef95))
        });
        Self(Xoshiro256PlusPlus::seed_from_u64(key))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), on a grid of 2^-24: exact in f32.
    pub fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in 0..`end`, without bias; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 {
            return 0;
        }
        // Lemire 2019: take the high half of the product, redraw in the biased sliver.
        let sliver = end.wrapping_neg() % end;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(end);
            if product as u64 >= sliver {
                return (product >> 64) as u64;
            }
        }
    }

    /// Puts `items` in a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// One step of SplitMix64 from `state`.
fn split_mix(state: u64) -> u64 {
    SplitMix64::seed_from_u64(state).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_gives_the_published_sequence() {
        let mut random = SplitMix64::seed_from_u64(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(
            first,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423
            ]
        );
    }

    #[test]
    fn xoshiro_gives_the_published_sequence() {
        let mut state = [0; 32];
        for (word, bytes) in [1u64, 2, 3, 4].iter().zip(state.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = Rng(Xoshiro256PlusPlus::from_seed(state));
        let first: Vec<u64> = (0..5).map(|_| rng.next_u64()).collect();
        assert_eq!(
            first,
            [
                41943041,
                58720359,
                3588806011781223,
                3591011842654386,
                9228616714210784205
            ]
        );
    }

    /// A run with a seed gives the same weights in every release.
    #[test]
    fn streams_are_stable() {
        let first = |labels: &[u64]| {
            let mut rng = Rng::new(7, labels);
            [rng.next_u64(), rng.next_u64(), rng.next_u64()]
        };
        assert_eq!(
            first(&[]),
            [
                17332331373651132471,
                12483220123959339309,
                10326480139797107209
            ]
        );
        assert_eq!(
            first(&[1, 2]),
            [
                1044225776638877012,
                15647431388407788476,
                16794804457987521939
            ]
        );
    }

    #[test]
    fn labels_name_streams() {
        let draw = |labels: &[u64]| Rng::new(7, labels).next_u64();
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        assert_ne!(draw(&[1, 2]), draw(&[2, 1]));
        assert_ne!(draw(&[1]), draw(&[1, 0]));
        assert_ne!(draw(&[0]), Rng::new(8, &[0]).next_u64());
    }

    #[test]
    fn shuffle_keeps_every_item_and_units_stay_below_one() {
        let mut rng = Rng::new(3, &[]);
        let mut items: Vec<u32> = (0..100).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
        let units: Vec<f32> = (0..10_000).map(|_| rng.unit()).collect();
        assert!(units.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = units.iter().sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).all(|_| rng.below(3) < 3));
    }
}
